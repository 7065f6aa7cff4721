"""A window's bytes for a cut: which frame carries it, what is packed, and how little of it the server still lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamsplit.audio.windows import Window
from streamsplit.codec.features import pack_features
from streamsplit.codec.opus import encode_segment
from streamsplit.codec.pcm import pack_pcm
from streamsplit.codec.tinystream.segments import SegmentEncoder, packaged_segments
from streamsplit.encoders.embedding_codec import pack_embedding
from streamsplit.errors import CutError
from streamsplit.splitting.cut import AUDIO_ENCODINGS, Cut, overlap_rank
from streamsplit.wire.media import Encoding, Resolution
from streamsplit.wire.types import FrameType

if TYPE_CHECKING:
    from streamsplit.encoders.crossing import Crossing, Transform

HOP_SAMPLES = 160
CONTEXT_SAMPLES = 240  # an analysis window of 400 samples reaches this far beyond its hop


class PieceChain:
    """Remembers what the server was given at block 0, so that a window sends only the frames that are new.

    A window may leave out the overlap with the one before if that one was accepted for sending at block 0, directly
    before it, in the same resolution, and not followed by a gap in the audio; coded audio also needs audio before it,
    because its first frames reach back into samples, and a neural codec's codes need codes, because its decoder
    remembers. Anything else, and any refusal, means sending the whole window.
    """

    def __init__(self, length_frames: int, stride_frames: int) -> None:
        self.length_frames = length_frames
        self.stride_frames = stride_frames
        self._last: tuple[int, Resolution, int] | None = None  # index, resolution, rank of the overlap

    def new_frames(self, window: Window, encoding: Encoding) -> int:
        """How many of the window's last full-rate frames have to cross at block 0."""
        if self._last is None or window.new_frames >= self.length_frames:
            return self.length_frames
        index, resolution, rank = self._last
        continues = index == window.index - 1 and resolution == window.resolution
        return window.new_frames if continues and rank >= overlap_rank(Cut(0, encoding)) else self.length_frames

    def accepted(self, window: Window, cut: Cut) -> None:
        """The window was accepted into the queue."""
        self._last = (window.index, window.resolution, overlap_rank(cut))

    def break_off(self) -> None:
        """The server lacks something: the next window goes up whole."""
        self._last = None


class Packed(NamedTuple):
    """What crosses, without the media header."""

    frame_type: FrameType
    payload: bytes
    new_frames: int  # 0 except at block 0


def pack_input(window: Window, encoding: Encoding, new_frames: int, codec: SegmentEncoder | None = None) -> Packed:
    """Block 0: coded audio, or features, of the window's last `new_frames` full-rate frames.

    `codec` is for TINYSTREAM; None: the packaged one.
    """
    length = (len(window.audio) - CONTEXT_SAMPLES) // HOP_SAMPLES
    first = length - new_frames
    if encoding in AUDIO_ENCODINGS:
        start = HOP_SAMPLES * first + (CONTEXT_SAMPLES if first else 0)
        audio = window.audio[start:]
        if encoding is Encoding.TINYSTREAM:
            data = (codec or packaged_segments()).encode(audio, window.audio[:start])
        else:
            data = pack_pcm(audio) if encoding is Encoding.PCM16 else encode_segment(audio)
        return Packed(FrameType.AUDIO, data, new_frames)
    frames = new_frames // 2 if window.resolution is Resolution.REDUCED else new_frames
    return Packed(FrameType.FEATURES, pack_features(window.features[:, -frames:], encoding), new_frames)


def pack_activation(crossing: Crossing, encoding: Encoding, through: Transform | None = None) -> Packed:
    """Between the blocks; BOTTLENECK_INT8 crosses `through` the encoder's bottleneck."""
    from streamsplit.encoders.crossing import pack_crossing  # needs torch, as whoever made the crossing had

    return Packed(FrameType.FEATURES, pack_crossing(crossing, encoding, through), 0)


def pack_result(z: np.ndarray, encoding: Encoding) -> Packed:
    """An embedding [d]: after the last block the window's own, EXIT_FP16 that of an early exit."""
    if encoding is Encoding.NONE:
        raise CutError("a cut that sends nothing has no payload")
    return Packed(FrameType.EMBEDDING, pack_embedding(z, encoding), 0)
