"""Measures a cut table: process time of every cut on this machine, the bytes it really packs, what it does to the
embedding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamsplit.audio.logmel import LogMelSettings, StreamingLogMel
from streamsplit.audio.windows import Window
from streamsplit.codec.features import pack_features, unpack_features
from streamsplit.codec.opus import decode_segment, encode_segment
from streamsplit.codec.pcm import pack_pcm, unpack_pcm
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.bottleneck import Bottleneck
from streamsplit.encoders.crossing import Crossing, pack_crossing, unpack_crossing
from streamsplit.encoders.embedding_codec import pack_embedding, unpack_embedding
from streamsplit.errors import CutError
from streamsplit.splitting.cut import AUDIO_ENCODINGS, Cut, all_cuts
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.wire.media import MEDIA_HEADER_BYTES, Encoding, Resolution

Floats = NDArray[np.float32]
OPUS_BPS = 24_000
WARM_UP = 3


class _Piece(NamedTuple):
    """What a block-0 cut sends of a window: the part that the window before it did not hold."""

    frames: int
    audio: Floats
    features: Floats  # [f, frames]


class _Measured(NamedTuple):
    edge_ms: float
    server_ms: float
    payload_bytes: float
    agreement: float


def profile_encoder(
    encoder: SplitEncoder,
    device: DeviceProfile,
    windows: Sequence[Window],
    repeats: int = 50,
    *,
    logmel: LogMelSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CutTable:
    """The cut table of `encoder` on `device`, measured over consecutive full-resolution `windows` of a stream.

    Times are medians of `repeats` process times (one thread; the device's are scaled by its factor, the server's are
    this machine's at batch 1, unpacking and decoding included). Bytes and agreement are means over the windows that
    follow another one, as in a running stream. `progress(done, total)` is called after each cut. Raises CutError when
    no window follows another.

    What the encoder's bottlenecks make of their cuts in int8 is in `meta["bottlenecks"]`, apart from the rows: policies
    choose among the rows, and devices send the whole map.
    """
    with _quiet_torch(encoder):
        bench = _Bench(encoder, windows, max(repeats, 1), logmel or LogMelSettings())
        cuts, narrowed = all_cuts(encoder.num_blocks), list(encoder.bottlenecks)
        rows, beside = [], []
        for done, cut in enumerate(cuts, start=1):
            rows.append(_row(cut, bench.measure(cut), device))
            if cut.block in narrowed and cut.encoding is Encoding.INT8:
                through = encoder.bottlenecks[cut.block]
                row = _row(cut, bench.measure(cut, through), device)
                beside.append({**row._asdict(), "cut": str(cut), "channels": [through.channels, through.narrow]})
            if progress is not None:
                progress(done, len(cuts))
    meta: dict[str, Any] = {
        "windows": len(bench.pieces),
        "repeats": repeats,
        "length_frames": bench.length_frames,
        "stride_frames": bench.pieces[0].frames,
        "radio": device.radio.name,
    }
    if beside:
        for values in beside:
            del values["privacy_risk"]
        meta["bottlenecks"] = beside
    return make_table(CutTable(encoder.name, device.name, device.factor, encoder.num_blocks, tuple(rows), meta))


def _row(cut: Cut, measured: _Measured, device: DeviceProfile) -> CutRow:
    edge_ms = measured.edge_ms * device.factor
    energy_mj = device.energy_mj(edge_ms, measured.payload_bytes)
    return CutRow(cut, edge_ms, measured.server_ms, measured.payload_bytes, energy_mj, measured.agreement)


class _Bench:
    """The windows, prepared, and the measurements of one cut."""

    def __init__(self, encoder: SplitEncoder, windows: Sequence[Window], repeats: int, logmel: LogMelSettings) -> None:
        pairs = [pair for pair in pairwise(windows) if _in_a_row(*pair)]
        if not pairs:
            raise CutError(f"got {len(windows)} windows, expected at least two in a row at full resolution to profile")
        self.encoder, self.repeats = encoder, repeats
        self.analysis = StreamingLogMel(logmel, Resolution.FULL)
        self.length_frames = pairs[0][1].features.shape[1]
        self.pieces = [_piece(window, window.new_frames, logmel) for _, window in pairs]
        self.before = [_piece(window, self.length_frames, logmel) for window, _ in pairs]
        self.inputs = [torch.from_numpy(window.features)[None] for _, window in pairs]
        self.reference = [encoder(x)[0].numpy() for x in self.inputs]
        reach = [window.audio[-logmel.span(window.new_frames) :] for _, window in pairs]
        self.features_ms = self.median_ms(lambda i: self.analysis.frames(reach[i], self.pieces[i].frames))
        self._reached: tuple[int, list[Crossing], float] | None = None

    def measure(self, cut: Cut, through: Bottleneck | None = None) -> _Measured:
        """Everything about one cut on this machine; an activation may cross `through` a bottleneck."""
        if not cut.sends:
            return _Measured(self.features_ms + self._reach(cut.block)[1], 0.0, 0.0, 1.0)
        if cut.encoding in AUDIO_ENCODINGS:
            pack, complete, before_ms = *self._audio(cut.encoding), 0.0
        elif cut.block == 0:
            pack, complete, before_ms = *self._features(cut.encoding), self.features_ms
        else:
            crossings, reach_ms = self._reach(cut.block)
            before_ms = self.features_ms + reach_ms
            if cut.block == self.encoder.num_blocks:
                pack, complete = self._embedding(cut, crossings)
            else:
                pack, complete = self._activation(cut, crossings, through)
        payloads = [pack(i) for i in range(len(self.inputs))]
        agreement = float(np.mean([complete(i, payloads[i]) @ z for i, z in enumerate(self.reference)]))
        return _Measured(
            edge_ms=before_ms + self.median_ms(pack),
            server_ms=self.median_ms(lambda i: complete(i, payloads[i])),
            payload_bytes=float(np.mean([len(payload) for payload in payloads])) + MEDIA_HEADER_BYTES,
            agreement=min(agreement, 1.0),
        )

    def median_ms(self, call: Callable[[int], object]) -> float:
        """Median process time of `call(window)` over `repeats` calls, the windows taking turns."""
        count = len(self.pieces)
        for i in range(WARM_UP):
            call(i % count)
        times = []
        for i in range(self.repeats):
            start = time.process_time_ns()
            call(i % count)
            times.append(time.process_time_ns() - start)
        return float(np.median(times)) / 1e6

    def _audio(self, encoding: Encoding) -> tuple[_Pack, _Complete]:
        """The server decodes the new audio, joins it to the end of the old, and computes the new frames."""
        write, read = _AUDIO[encoding]
        decoded = [read(write(piece.audio), len(piece.audio)) for piece in self.before]
        old = [self.analysis.frames(audio, self.length_frames) for audio in decoded]

        def complete(i: int, payload: bytes) -> Floats:
            piece = self.pieces[i]
            reach = self.analysis.settings.span(piece.frames)
            fresh = read(payload, len(piece.audio))
            audio = np.concatenate([decoded[i][len(fresh) - reach :], fresh]) if len(fresh) < reach else fresh
            return self._from_input(old[i], self.analysis.frames(audio, piece.frames))

        return lambda i: write(self.pieces[i].audio), complete

    def _features(self, encoding: Encoding) -> tuple[_Pack, _Complete]:
        old = [unpack_features(pack_features(piece.features, encoding)) for piece in self.before]
        return (
            lambda i: pack_features(self.pieces[i].features, encoding),
            lambda i, payload: self._from_input(old[i], unpack_features(payload)),
        )

    def _activation(self, cut: Cut, crossings: list[Crossing], through: Bottleneck | None) -> tuple[_Pack, _Complete]:
        return (
            lambda i: pack_crossing(crossings[i], cut.encoding, through),
            lambda i, payload: self.encoder.forward_from(unpack_crossing(payload, through), cut.block)[0].numpy(),
        )

    def _embedding(self, cut: Cut, crossings: list[Crossing]) -> tuple[_Pack, _Complete]:
        def complete(i: int, payload: bytes) -> Floats:
            z = unpack_embedding(payload)
            return np.asarray(z / np.linalg.norm(z), np.float32)

        return lambda i: pack_embedding(crossings[i].h[0].numpy(), cut.encoding), complete

    def _from_input(self, old: Floats, new: Floats) -> Floats:
        """The embedding of the window made of the end of `old` [f, t] and all of `new` [f, t]."""
        kept = self.length_frames - new.shape[1]
        features = np.concatenate([old[:, old.shape[1] - kept :], new], axis=1)
        return np.asarray(self.encoder(torch.from_numpy(features)[None])[0].numpy(), np.float32)

    def _reach(self, block: int) -> tuple[list[Crossing], float]:
        """What crosses after `block` for every window, and the time it takes to get there from the features."""
        if self._reached is None or self._reached[0] != block:
            crossings = [self.encoder.forward_to(x, block) for x in self.inputs]
            reach_ms = self.median_ms(lambda i: self.encoder.forward_to(self.inputs[i], block))
            self._reached = (block, crossings, reach_ms)
        return self._reached[1], self._reached[2]


_Pack = Callable[[int], bytes]
_Complete = Callable[[int, bytes], Floats]
_AUDIO: dict[Encoding, tuple[Callable[[Floats], bytes], Callable[[bytes, int], Floats]]] = {
    Encoding.PCM16: (pack_pcm, lambda payload, samples: unpack_pcm(payload)),
    Encoding.OPUS24: (lambda audio: encode_segment(audio, OPUS_BPS), decode_segment),
}


def _in_a_row(before: Window, window: Window) -> bool:
    return (
        window.index == before.index + 1
        and window.resolution == before.resolution == Resolution.FULL
        and window.new_frames < window.features.shape[1]
    )


def _piece(window: Window, frames: int, logmel: LogMelSettings) -> _Piece:
    """The last `frames` frames of a window as they cross at block 0."""
    length = window.features.shape[1]
    overlap = logmel.window_samples - logmel.hop_samples if frames < length else 0
    start = (length - frames) * logmel.hop_samples + overlap
    return _Piece(frames, window.audio[start:], np.ascontiguousarray(window.features[:, length - frames :]))


@contextmanager
def _quiet_torch(encoder: SplitEncoder) -> Iterator[None]:
    """One thread, no gradients, evaluation mode; as it was afterwards."""
    threads, training = torch.get_num_threads(), encoder.training
    torch.set_num_threads(1)
    encoder.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        encoder.train(training)
