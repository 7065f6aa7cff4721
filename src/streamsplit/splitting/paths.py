"""What each cut does to windows of a stream: the bytes that cross, and the embedding that results from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamsplit.audio.logmel import LogMelSettings, StreamingLogMel
from streamsplit.audio.windows import Window
from streamsplit.codec.features import pack_features, unpack_features
from streamsplit.codec.opus import decode_segment, encode_segment
from streamsplit.codec.pcm import pack_pcm, unpack_pcm
from streamsplit.codec.tinystream.bitstream import unpack
from streamsplit.codec.tinystream.segment_decoder import SegmentDecoder
from streamsplit.codec.tinystream.segments import DEFAULT_CODEC, packaged_segments
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing, pack_crossing, unpack_crossing
from streamsplit.encoders.embedding_codec import pack_embedding, unpack_embedding
from streamsplit.splitting.cut import AUDIO_ENCODINGS, Cut
from streamsplit.weights.codec_file import read_codec
from streamsplit.wire.media import Encoding, Resolution

Floats = NDArray[np.float32]
Pair = tuple[Window, Window]
"""A window and the one before it: at block 0 the server holds what the earlier one brought."""
OPUS_BPS = 24_000


class Path(NamedTuple):
    """One cut at the device, `pack`, and at the server: `complete` is `unpack` and the rest of the encoder.

    All take the number of the pair.
    """

    pack: Callable[[int], bytes]
    unpack: Callable[[int, bytes], object]
    complete: Callable[[int, bytes], Floats]  # unit-norm embedding [d]


class Piece(NamedTuple):
    """What a block-0 cut sends of a window: the part that the window before it did not hold."""

    frames: int
    before: Floats  # what the device has of the sound before it
    audio: Floats
    features: Floats  # [f, frames]


class CutPaths:
    """The paths of every cut over pairs of full-resolution windows, on an encoder in evaluation mode without gradients.

    Whoever measures one cut after the other in order of depth has the blocks before it computed once.
    """

    def __init__(self, encoder: SplitEncoder, pairs: Sequence[Pair], logmel: LogMelSettings | None = None) -> None:
        """`pairs` are windows that follow each other, see `pairs_of`."""
        logmel = logmel or LogMelSettings()
        self.encoder = encoder
        self.analysis = StreamingLogMel(logmel, Resolution.FULL)
        self.length_frames = pairs[0][1].features.shape[1]
        self.pieces = [_piece(window, window.new_frames, logmel) for _, window in pairs]
        self.before = [_piece(window, self.length_frames, logmel) for window, _ in pairs]
        self.inputs = [torch.from_numpy(window.features)[None] for _, window in pairs]
        self._recent = [window.audio[-logmel.span(window.new_frames) :] for _, window in pairs]
        self._reached: tuple[int, list[Crossing]] | None = None
        self._old: tuple[Encoding, list[bytes], list[Floats], list[Floats]] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def full(self, i: int) -> Floats:
        """The embedding [d] of the uncut fp32 path."""
        return np.asarray(self.encoder(self.inputs[i])[0].numpy(), np.float32)

    def extract(self, i: int) -> Floats:
        """The features of the new frames, as the device computes them."""
        return np.asarray(self.analysis.frames(self._recent[i], self.pieces[i].frames), np.float32)

    def crossings(self, block: int) -> list[Crossing]:
        """What crosses after `block` for every window; kept, so that a deeper block goes on from there."""
        if self._reached is None or self._reached[0] > block:
            self._reached = (0, [self.encoder.forward_to(x, 0) for x in self.inputs])
        while self._reached[0] < block:
            deeper = self._reached[0] + 1
            self._reached = (deeper, [self.encoder.advance(crossing, deeper) for crossing in self._reached[1]])
        return self._reached[1]

    def path(self, cut: Cut) -> Path:
        """The path of a cut that sends something; an exit's is that of the early exit itself, sure or not."""
        if cut.encoding in AUDIO_ENCODINGS:
            return self._audio(cut.encoding)
        if cut.block == 0:
            return self._features(cut.encoding)
        crossings = self.crossings(cut.block)
        if cut.block == self.encoder.num_blocks or cut.encoding is Encoding.EXIT_FP16:
            return Path(
                lambda i: pack_embedding(self.encoder.exit_embedding(crossings[i], cut.block)[0].numpy(), cut.encoding),
                lambda i, payload: _unit(unpack_embedding(payload)),
                lambda i, payload: _unit(unpack_embedding(payload)),
            )
        through = self.encoder.bottlenecks[cut.block] if cut.encoding is Encoding.BOTTLENECK_INT8 else None
        return Path(
            lambda i: pack_crossing(crossings[i], cut.encoding, through),
            lambda i, payload: unpack_crossing(payload, through),
            lambda i, payload: np.asarray(
                self.encoder.forward_from(unpack_crossing(payload, through), cut.block)[0].numpy(), np.float32
            ),
        )

    def heard(self, i: int, cut: Cut, payload: bytes) -> Floats:
        """The log-mel window [f, t] that the server of a block-0 cut has."""
        packed, decoded, old = self._held(cut.encoding)
        new = self._new_frames(i, packed[i], decoded[i], payload, cut.encoding)
        return np.concatenate([old[i][:, old[i].shape[1] - self.length_frames + new.shape[1] :], new], axis=1)

    def _audio(self, encoding: Encoding) -> Path:
        """The server decodes the new audio, joins it to the end of the old, and computes the new frames."""
        self._held(encoding)
        write = _AUDIO[encoding].write
        return Path(
            lambda i: write(self.pieces[i]),
            lambda i, payload: self.heard(i, Cut(0, encoding), payload),
            lambda i, payload: self._embed(self.heard(i, Cut(0, encoding), payload)),
        )

    def _features(self, encoding: Encoding) -> Path:
        self._held(encoding)
        return Path(
            lambda i: pack_features(self.pieces[i].features, encoding),
            lambda i, payload: self.heard(i, Cut(0, encoding), payload),
            lambda i, payload: self._embed(self.heard(i, Cut(0, encoding), payload)),
        )

    def _held(self, encoding: Encoding) -> tuple[list[bytes], list[Floats], list[Floats]]:
        """What the server has of the windows before: payload, audio (features cuts: neither) and log-mel [f, t]."""
        if self._old is None or self._old[0] is not encoding:
            if encoding in AUDIO_ENCODINGS:
                write, read = _AUDIO[encoding]
                packed = [write(piece) for piece in self.before]
                decoded = [
                    read(b"", payload, len(piece.audio), 0) for payload, piece in zip(packed, self.before, strict=True)
                ]
                old = [np.asarray(self.analysis.frames(audio, self.length_frames)) for audio in decoded]
            else:
                old = [unpack_features(pack_features(piece.features, encoding)) for piece in self.before]
                packed, decoded = [b""] * len(self), [piece.audio[:0] for piece in self.before]
            self._old = (encoding, packed, decoded, old)
        return self._old[1:]

    def _new_frames(self, i: int, packed: bytes, decoded: Floats, payload: bytes, encoding: Encoding) -> Floats:
        if encoding not in AUDIO_ENCODINGS:
            return unpack_features(payload)
        piece = self.pieces[i]
        reach = self.analysis.settings.span(piece.frames)
        fresh = _AUDIO[encoding].read(packed, payload, len(piece.audio), reach - len(piece.audio))
        audio = np.concatenate([decoded[len(fresh) - reach :], fresh]) if len(fresh) < reach else fresh
        return np.asarray(self.analysis.frames(audio, piece.frames), np.float32)

    def _embed(self, features: Floats) -> Floats:
        return np.asarray(self.encoder(torch.from_numpy(features)[None])[0].numpy(), np.float32)


def pairs_of(windows: Sequence[Window]) -> list[Pair]:
    """The windows of a stream that follow another one at full resolution, each with the one before it."""
    return [pair for pair in pairwise(windows) if _in_a_row(*pair)]


class _AudioCode(NamedTuple):
    write: Callable[[Piece], bytes]
    read: Callable[[bytes, bytes, int, int], Floats]
    """Of the payload before it (b"": none), its own, its samples, and how many before them it may give anew."""


@cache
def _decoder() -> SegmentDecoder:
    return SegmentDecoder(read_codec(DEFAULT_CODEC).model)


def _read_codes(before: bytes, payload: bytes, samples: int, lead: int) -> Floats:
    context = unpack(before).indices[:, -_decoder().context_frames :] if before else None
    return _decoder().decode(payload, samples, context, lead)[0]


_AUDIO = {
    Encoding.PCM16: _AudioCode(
        lambda piece: pack_pcm(piece.audio), lambda before, payload, samples, lead: unpack_pcm(payload)
    ),
    Encoding.OPUS24: _AudioCode(
        lambda piece: encode_segment(piece.audio, OPUS_BPS),
        lambda before, payload, samples, lead: decode_segment(payload, samples),
    ),
    Encoding.TINYSTREAM: _AudioCode(lambda piece: packaged_segments().encode(piece.audio, piece.before), _read_codes),
}


def _in_a_row(before: Window, window: Window) -> bool:
    return (
        window.index == before.index + 1
        and window.resolution == before.resolution == Resolution.FULL
        and window.new_frames < window.features.shape[1]
    )


def _piece(window: Window, frames: int, logmel: LogMelSettings) -> Piece:
    """The last `frames` frames of a window as they cross at block 0."""
    length = window.features.shape[1]
    overlap = logmel.window_samples - logmel.hop_samples if frames < length else 0
    start = (length - frames) * logmel.hop_samples + overlap
    return Piece(
        frames, window.audio[:start], window.audio[start:], np.ascontiguousarray(window.features[:, length - frames :])
    )


def _unit(z: Floats) -> Floats:
    return np.asarray(z / np.linalg.norm(z), np.float32)
