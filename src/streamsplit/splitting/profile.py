"""Measures a cut table: process time of every cut on this machine, the bytes it really packs, what it does to the
embedding, and what of the encoder a device must hold for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from streamsplit.audio.logmel import LogMelSettings
from streamsplit.audio.windows import Window
from streamsplit.encoders.base import SplitEncoder
from streamsplit.errors import CutError
from streamsplit.splitting.cut import AUDIO_ENCODINGS, Cut, all_cuts
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.paths import CutPaths, pairs_of
from streamsplit.splitting.quality import Material, Probe, Quality, measure_quality, sure_windows
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.wire.media import MEDIA_HEADER_BYTES, Encoding

Floats = NDArray[np.float32]
WARM_UP = 3


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
    uncertainty: Callable[[Floats], float] | None = None,
    material: Material | None = None,
    probe: Callable[[Floats], Probe] | None = None,
    privacy_windows: int = 0,
    seed: int = 0,
    quality: Quality | None = None,
    reference_ms: float | None = None,
    only: Sequence[Cut] = (),
) -> CutTable:
    """The cut table of `encoder` on `device`, measured over consecutive full-resolution `windows` of a stream.

    Times are process times at batch 1 and on one thread, see `Stopwatch`; the device's are scaled by its factor, the
    server's are this machine's, unpacking and decoding included. Each block is timed once for all cuts: a deeper cut
    takes the device longer, and the server less, by exactly the blocks in between. Bytes and agreement are means over
    the windows that follow another one, as in a running stream. Every bottleneck of the encoder gives a row, fitted or
    not: fit them before. An exit's row is the mean of the windows that cross early and those that its exit is not sure
    of (`uncertainty` of an early embedding, nats; without it all cross early), which are finished on the device.
    Device factors are against an idle core; `reference_ms`, what blocks 1..L take together on one, scales all times of
    a machine that is busy or of another kind to it, which `meta["reference"]` then says.

    With `material`, agreement and risk come from its held-out windows, and accuracy from the probe that
    `probe(embeddings of the training windows)` gives; see `measure_quality`. `quality` of an earlier table
    (`quality_of`) stands in for all that. `only` are the cuts to measure (empty: all). `progress(done, total)` is
    called after each cut. Raises CutError when no window follows another, and for a cut that the encoder lacks.
    """
    with _quiet_torch(encoder):
        cuts = all_cuts(encoder.num_blocks, encoder.bottlenecks)
        unknown = sorted(set(only) - set(cuts))
        if unknown:
            raise CutError(f"got cut {unknown[0]}, which this encoder does not have; expected one of {_named(cuts)}")
        cuts = [cut for cut in cuts if not only or cut in only]
        total = len(cuts) * (1 if material is None else 2)
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        if material is not None:
            told = None if probe is None else probe(embed(encoder, material.train))
            quality = measure_quality(
                encoder, material, cuts, probe=told, uncertainty=uncertainty, privacy_windows=privacy_windows,
                seed=seed, progress=step,
            )  # fmt: skip
        bench = _Bench(encoder, windows, max(repeats, 1), logmel, uncertainty, quality, reference_ms)
        rows = []
        for cut in cuts:
            rows.append(_row(cut, bench.measure(cut), device, _fetch_bytes(encoder, cut), quality))
            step()
    meta: dict[str, Any] = {
        "windows": len(bench.paths), "repeats": repeats, "length_frames": bench.paths.length_frames,
        "stride_frames": bench.paths.pieces[0].frames, "radio": device.radio.name,
    }  # fmt: skip
    if reference_ms is not None:
        measured_ms = reference_ms / bench.stopwatch.scale
        meta["reference"] = {"uncut_ms": reference_ms, "uncut_ms_as_measured": round(measured_ms, 3)}
    if quality is not None:
        meta["quality"] = quality.meta
    return make_table(CutTable(encoder.name, device.name, device.factor, encoder.num_blocks, tuple(rows), meta))


def _named(cuts: Sequence[Cut]) -> str:
    return ", ".join(map(str, cuts))


def embed(encoder: SplitEncoder, windows: Floats, batch: int = 32) -> Floats:
    """Full embeddings [n, d] of log-mel windows [n, f, t]."""
    with torch.no_grad():
        parts = [encoder(torch.from_numpy(windows[at : at + batch])).numpy() for at in range(0, len(windows), batch)]
    return np.concatenate(parts)


def _row(cut: Cut, measured: _Measured, device: DeviceProfile, fetch_bytes: float, quality: Quality | None) -> CutRow:
    edge_ms = measured.edge_ms * device.factor
    energy_mj = device.energy_mj(edge_ms, measured.payload_bytes)
    row = CutRow(
        cut, edge_ms, measured.server_ms, measured.payload_bytes, energy_mj, measured.agreement,
        fetch_bytes=fetch_bytes,
    )  # fmt: skip
    if quality is None:
        return row
    found = quality.cuts[cut]
    return row._replace(agreement=found.agreement, privacy_risk=found.privacy_risk, accuracy=found.accuracy)


def _fetch_bytes(encoder: SplitEncoder, cut: Cut) -> float:
    """Blocks 1..k, each a safetensors file of float16 as weights travel, and the cut's own bottleneck or exit head."""
    parts = [encoder.block_weights(block) for block in range(1, cut.block + 1)]
    if cut.encoding is Encoding.BOTTLENECK_INT8:
        parts.append(_arrays(encoder.bottlenecks[cut.block].down))
    if cut.encoding is Encoding.EXIT_FP16:
        parts.append(_arrays(encoder.exit_heads()[encoder.exit_index(cut.block)]))
    return float(sum(len(save({name: array.astype(np.float16) for name, array in part.items()})) for part in parts))


def _arrays(module: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


class Stopwatch:
    """Process times of calls that take turns, so that a busy moment of the machine hits all of them alike.

    Of `repeats` rounds, the quietest fifth (by the time of the whole round) counts, and of it the median of each call.
    """

    def __init__(self, windows: int, repeats: int) -> None:
        self.windows, self.repeats, self.scale = windows, repeats, 1.0

    def times_ms(self, calls: Sequence[Callable[[int], object]]) -> list[float]:
        """Median milliseconds of each `call(window)`; every call of a round sees the same window."""
        rounds = []
        for i in range(-WARM_UP, self.repeats):
            at = []
            for call in calls:
                start = time.process_time_ns()
                call(i % self.windows)
                at.append(time.process_time_ns() - start)
            if i >= 0:
                rounds.append(at)
        times = np.array(rounds, np.float64)
        quiet = np.argsort(times.sum(1), kind="stable")[: (len(times) + 4) // 5]
        return [float(value) for value in np.median(times[quiet], axis=0) / 1e6 * self.scale]


class _Bench:
    """The windows, prepared, and the measurements of one cut."""

    def __init__(
        self,
        encoder: SplitEncoder,
        windows: Sequence[Window],
        repeats: int,
        logmel: LogMelSettings | None,
        uncertainty: Callable[[Floats], float] | None,
        quality: Quality | None,
        reference_ms: float | None,
    ) -> None:
        pairs = pairs_of(windows)
        if not pairs:
            raise CutError(f"got {len(windows)} windows, expected at least two in a row at full resolution to profile")
        self.encoder, self.uncertainty, self.quality = encoder, uncertainty, quality
        self.paths = CutPaths(encoder, pairs, logmel)
        self.reference = [self.paths.full(i) for i in range(len(pairs))]
        self.stopwatch = Stopwatch(len(pairs), repeats)
        crossing = [encoder.forward_to(x, 0) for x in self.paths.inputs]

        def block(number: int) -> Callable[[int], object]:
            def run(i: int) -> None:
                crossing[i] = encoder.advance(
                    crossing[i] if number > 1 else encoder.forward_to(self.paths.inputs[i], 0), number
                )

            return run

        calls = [self.paths.extract, *(block(number) for number in range(1, encoder.num_blocks + 1))]
        times_ms = self.stopwatch.times_ms(calls)
        if reference_ms is not None:
            self.stopwatch.scale = reference_ms / sum(times_ms[1:])
        self.features_ms, *self.block_ms = (value * self.stopwatch.scale for value in times_ms)

    def measure(self, cut: Cut) -> _Measured:
        """Everything about one cut on this machine."""
        before_ms = sum(self.block_ms[: cut.block])
        rest_ms = sum(self.block_ms[cut.block :])
        if cut.encoding not in AUDIO_ENCODINGS:
            before_ms += self.features_ms
        if not cut.sends:
            return _Measured(before_ms, 0.0, 0.0, 1.0)
        path = self.paths.path(cut)
        payloads = [path.pack(i) for i in range(len(self.paths))]
        z = [path.complete(i, payload) for i, payload in enumerate(payloads)]
        pack_ms, unpack_ms = self.stopwatch.times_ms([path.pack, lambda i: path.unpack(i, payloads[i])])
        edge_ms, server_ms = before_ms + pack_ms, rest_ms + unpack_ms
        if cut.encoding is Encoding.EXIT_FP16:
            sure = self._sure(z, cut.block)
            share = float(sure.mean()) if self.quality is None else self.quality.exit_shares[cut.block]
            edge_ms += (1.0 - share) * rest_ms
            server_ms = unpack_ms
            z = [early if use else self.reference[i] for i, (early, use) in enumerate(zip(z, sure, strict=True))]
        agreement = float(np.mean([one @ whole for one, whole in zip(z, self.reference, strict=True)]))
        return _Measured(
            edge_ms=edge_ms,
            server_ms=server_ms,
            payload_bytes=float(np.mean([len(payload) for payload in payloads])) + MEDIA_HEADER_BYTES,
            agreement=min(agreement, 1.0),
        )

    def _sure(self, early: list[Floats], block: int) -> NDArray[np.bool_]:
        if self.uncertainty is None:
            return np.ones(len(early), np.bool_)
        return sure_windows(np.stack(early), block, self.uncertainty)


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
