"""Windows from what block-0 cuts send: each payload holds only the frames that the device has not sent before.

The overlap with the window before is kept per stream, in exact float32, and is made durable with the commit, so that a
restarted server continues with the same numbers.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from streamsplit.audio.logmel import BLOCK_FRAMES, StreamingLogMel
from streamsplit.errors import AudioError, CutError, ProtocolError
from streamsplit.server.codecs import CodecShelf
from streamsplit.server.settings import SignalSettings
from streamsplit.wire.media import Encoding, MediaHeader, Resolution

SAMPLES_PER_FRAME = 160
CONTEXT_SAMPLES = 240  # an analysis window (400) reaches this far beyond its hop (160)
AUDIO = (Encoding.PCM16, Encoding.OPUS24, Encoding.TINYSTREAM)
_OVERLAP = struct.Struct("<BBQIII4sBH")
# version, resolution, first frame, bands, frames, samples, codec, quantizers, coded frames
_OVERLAP_VERSION = 2


class _Codes(NamedTuple):
    """What a neural codec's decoder remembers."""

    codec: bytes  # id, 4 bytes
    indices: np.ndarray  # [quantizers, frames] int64


_NO_CODES = _Codes(bytes(4), np.zeros((0, 0), np.int64))
_PACKAGED = CodecShelf()


class Assembler:
    """Full windows [f, t] float32 of one device's stream from consecutive pieces.

    Frames are counted on the stream's full-rate grid of 10 ms (`stride * window + i`) and held at the piece's
    resolution, where one reduced frame stands for two. What is missing from a piece comes from the window before; a
    piece whose overlap is not there is refused with 'missing_overlap', yet kept, so that the window after it can be
    whole.
    """

    def __init__(self, settings: SignalSettings, codecs: CodecShelf | None = None) -> None:
        """`codecs` may have written what comes (None: the packaged one)."""
        self._codecs = codecs or _PACKAGED
        self._length = settings.window_frames
        self._stride = settings.stride_frames
        self._resolution = Resolution.FULL
        self._start = 0  # full-rate index of the first frame held
        self._frames = np.zeros((0, 0), np.float32)  # [f, t], the newest frames, without holes
        self._context = np.zeros(0, np.float32)  # audio that follows the last frame's hop
        self._codes = _NO_CODES  # that it was decoded from, where a neural codec's were
        self._analyses = {resolution: StreamingLogMel(resolution=resolution) for resolution in Resolution}

    def add(self, header: MediaHeader, payload: memoryview) -> np.ndarray:
        """The window [f, t] that this piece completes.

        Raises ProtocolError with the code to answer: 'bad_media', 'nan_features' or 'missing_overlap'.
        """
        new, length = header.new_frames, self._length
        if not 0 < new <= length or new % 2:
            raise ProtocolError("bad_media", f"got {new} new frames, expected an even number in 2..{length}")
        resolution = Resolution(header.resolution)
        encoding = Encoding(header.encoding)
        first = self._stride * header.window + length - new  # full-rate index of the first new frame
        try:
            if encoding in AUDIO:
                start, piece, context, codes = self._from_audio(encoding, payload, first, new, resolution)
            else:
                start, piece, context = first, _features(payload, new, resolution), np.zeros(0, np.float32)
                codes = _NO_CODES
        except (AudioError, CutError, ValueError) as error:
            raise ProtocolError("bad_media", f"{encoding.label}: {error}") from None
        if not np.isfinite(piece).all():
            raise ProtocolError("nan_features", f"window {header.window}: features are not all finite")
        self._append(start, piece, context, resolution)
        self._codes = codes
        step = _step(resolution)
        begin = self._stride * header.window
        if self._start > begin:
            raise ProtocolError(
                "missing_overlap",
                f"window {header.window}: got {new} of {length} frames and the frames before them are not here; "
                "send the whole window",
            )
        offset = (begin - self._start) // step
        window: np.ndarray = self._frames[:, offset : offset + length // step].copy()
        self._trim(header.window)
        return window

    def save(self) -> bytes:
        """The overlap as bytes, for `load` after a restart."""
        codes = self._codes
        head = _OVERLAP.pack(
            _OVERLAP_VERSION, self._resolution, self._start, *self._frames.shape, self._context.size, codes.codec,
            *codes.indices.shape,
        )  # fmt: skip
        return head + self._frames.tobytes() + self._context.tobytes() + codes.indices.astype("<u2").tobytes()

    def load(self, data: bytes) -> None:
        """Takes up an overlap; one from another layout is dropped (the next piece is then asked for whole)."""
        if len(data) < _OVERLAP.size:
            return
        version, resolution, start, bands, frames, samples, codec, quantizers, coded = _OVERLAP.unpack_from(data)
        floats = bands * frames + samples
        if version != _OVERLAP_VERSION or len(data) != _OVERLAP.size + 4 * floats + 2 * quantizers * coded:
            return
        values = np.frombuffer(data, np.float32, floats, _OVERLAP.size)
        indices = np.frombuffer(data, "<u2", offset=_OVERLAP.size + 4 * floats).astype(np.int64)
        self._resolution = Resolution(resolution)
        self._start = start
        self._frames = values[: bands * frames].reshape(bands, frames).copy()
        self._context = values[bands * frames :].copy()
        self._codes = _Codes(codec, indices.reshape(quantizers, coded))

    def _end(self) -> int:
        return self._start + self._frames.shape[1] * _step(self._resolution)

    def _from_audio(
        self, encoding: Encoding, payload: memoryview, first: int, new: int, resolution: Resolution
    ) -> tuple[int, np.ndarray, np.ndarray, _Codes]:
        """Start (full-rate frame), frames [f, t], the audio after the last hop and the codes, from coded audio."""
        whole = new == self._length
        samples = SAMPLES_PER_FRAME * (new - 1) + 400 - (0 if whole else CONTEXT_SAMPLES)
        codes = _NO_CODES
        continues = not whole and self._context.size == CONTEXT_SAMPLES and self._end() == first
        if encoding is Encoding.TINYSTREAM:
            audio, codes = self._from_codes(bytes(payload), samples, continues)
        else:
            audio = _decode(encoding, payload, samples)
            if continues:
                audio = np.concatenate([self._context, audio])
        if not np.isfinite(audio).all():
            raise ProtocolError("nan_features", "audio is not all finite")
        start, lead = first, 0
        if not (whole or continues):  # the first frames reach back into audio that is not here: what follows is left
            hop = SAMPLES_PER_FRAME * _step(resolution)
            skipped = math.ceil(CONTEXT_SAMPLES / hop)
            lead = skipped * hop - CONTEXT_SAMPLES
            start = first + skipped * _step(resolution)
        analysis = self._analyses[resolution]
        count = analysis.settings.frames(audio.size - lead, resolution)
        position = start // _step(resolution) % BLOCK_FRAMES  # the device's block grid: the same rounding
        return start, analysis.frames(audio[lead:], count, position), audio[-CONTEXT_SAMPLES:].copy(), codes

    def _from_codes(self, payload: bytes, samples: int, continues: bool) -> tuple[np.ndarray, _Codes]:
        """Audio, with the context before it where it continues: decoded anew, now that what follows it is known."""
        decoder = self._codecs.decoder_of(payload)
        if not continues:
            audio, indices = decoder.decode(payload, samples)
        else:
            before = self._codes.indices if self._codes.codec == decoder.model_id else None
            audio, indices = decoder.decode(payload, samples, before, CONTEXT_SAMPLES)
            audio = np.concatenate([self._context, audio])[-samples - CONTEXT_SAMPLES :]
        return audio, _Codes(decoder.model_id, indices)

    def _append(self, start: int, piece: np.ndarray, context: np.ndarray, resolution: Resolution) -> None:
        """Joins a piece to the frames held where it touches or overlaps them; otherwise starts anew with it."""
        step = _step(resolution)
        gap = start - self._start
        joins = (
            resolution == self._resolution
            and self._frames.shape[0] == piece.shape[0]
            and gap % step == 0
            and 0 <= gap <= self._frames.shape[1] * step
        )
        if joins:
            self._frames = np.concatenate([self._frames[:, : gap // step], piece], axis=1)
        else:
            self._start, self._frames = start, piece
        self._resolution, self._context = resolution, context

    def _trim(self, window: int) -> None:
        """Drops what no later window needs."""
        surplus = (self._stride * (window + 1) - self._start) // _step(self._resolution)
        if surplus > 0:
            self._frames = self._frames[:, surplus:].copy()
            self._start += surplus * _step(self._resolution)


def _step(resolution: Resolution) -> int:
    """Full-rate frames that one frame stands for."""
    return 2 if resolution is Resolution.REDUCED else 1


def _decode(encoding: Encoding, payload: memoryview, samples: int) -> np.ndarray:
    if encoding is Encoding.PCM16:
        from streamsplit.codec.pcm import unpack_pcm

        audio: np.ndarray = unpack_pcm(bytes(payload))
    else:
        from streamsplit.codec.opus import decode_segment

        audio = decode_segment(bytes(payload), samples)
    if audio.size != samples:
        raise ProtocolError("bad_media", f"{encoding.label}: got {audio.size} samples, expected {samples}")
    return audio


def _features(payload: memoryview, new: int, resolution: Resolution) -> np.ndarray:
    from streamsplit.codec.features import unpack_features

    features = unpack_features(bytes(payload))
    expected = (128, new) if resolution is Resolution.FULL else (64, new // 2)
    if features.shape != expected:
        raise ProtocolError("bad_media", f"features: got shape {features.shape}, expected {expected}")
    return np.asarray(features, np.float32)
