"""Server-Only: all sound goes up, and the server learns from it in batches of 256, to convergence or to a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from streamsplit.audio.windows import cut_windows
from streamsplit.codec.opus import decode_segment, encode_segment
from streamsplit.encoders.base import SplitEncoder
from streamsplit.evaluation.baselines.base import (
    Budget,
    Effort,
    Outcome,
    Progress,
    Ranks,
    Stopwatch,
    embedder,
    first_refiner,
    heard_by,
)  # fmt: skip
from streamsplit.evaluation.baselines.traffic import InputTraffic
from streamsplit.evaluation.corpus import WINDOW_FRAMES, Corpus, Part
from streamsplit.refinement.batch import embed_windows, frozen_targets, stored_features
from streamsplit.refinement.hybrid import HybridSettings
from streamsplit.refinement.refiner import Refiner
from streamsplit.refinement.reservoir import Reservoir, StoredWindow
from streamsplit.refinement.settings import RefinerSettings
from streamsplit.refinement.task import task_loss
from streamsplit.weights.revision import Weights, encoder_weights, load_weights
from streamsplit.wire.media import Encoding

HELD_OUT_SHARE = 0.1
CHECK_EVERY = 20  # updates
PATIENCE = 4  # checks without a better loss
BETTER = 0.998  # of the best loss so far
HELD_OUT_PAIRS = 128

TASK_ONLY = RefinerSettings(
    min_devices=1, reservoir_bytes=1 << 30,
    loss=HybridSettings(wasserstein_weight=0.0, laplacian_weight=0.0),
)  # fmt: skip


class ServerOnly:
    """All audio up; `until` says when to stop: 'convergence', 'windows' (same samples) or 'updates' (same steps)."""

    def __init__(self, name: str, about: str, until: str, encoding: Encoding = Encoding.PCM16) -> None:
        self.name, self.about, self.until, self.encoding = name, about, until, encoding

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Hears the stream, starts by PCA unless with published weights, then takes optimiser steps on all of it."""
        watch, effort, ranks = Stopwatch(), Effort(), Ranks()
        learn = corpus.learn if self.encoding is Encoding.PCM16 else through_opus(corpus.learn)
        refiner = first_refiner(budget, TASK_ONLY.replace(batch_windows=budget.server_batch), seed)
        held_out = HeldOut(seed) if self.until == "convergence" else None
        self._hear(corpus, learn, budget, seed, refiner, held_out, effort)
        refiner.warm_start()
        stale, note = 0, ""
        if held_out is not None and not held_out.pairs(refiner.settings):
            held_out, note = None, "no pairs held out: not stopped before the most updates"
        best: tuple[float, Weights] | None = None
        if held_out is not None:  # the start counts too: learning that makes it no better leaves it as it is
            best = (held_out.loss(refiner), encoder_weights(refiner.encoder))
        limit = budget.converge_updates if self.until == "convergence" else budget.updates
        while refiner.steps < limit and not (self.until == "windows" and effort.windows >= budget.windows):
            report = refiner.step()
            if report.skipped:
                note = f"stopped: {report.skipped}"
                break
            effort.windows += report.samples
            ranks.see(report.effective_rank)
            if (
                held_out is not None
                and best is not None
                and (refiner.steps % CHECK_EVERY == 0 or refiner.steps == limit)
            ):
                loss = held_out.loss(refiner)
                stale = 0 if loss < BETTER * best[0] else stale + 1
                if loss < best[0]:
                    best = (loss, encoder_weights(refiner.encoder))
                if stale >= PATIENCE:
                    note = f"converged after {refiner.steps} updates, held-out loss {best[0]:.3f}"
                    break
            progress(refiner.steps / limit, f"{refiner.steps} updates, loss {report.loss:.3f}")
        if held_out is not None and not note:
            note = f"not converged within {limit} updates"
        if best is not None:
            load_weights(refiner.encoder, best[1])
        effort.updates, effort.cpu_s = refiner.steps, watch.read()
        return Outcome(
            embedder(refiner.encoder), effort, ranks.peak, ranks.last, (note,) if note else (), encoder=refiner.encoder
        )

    def _hear(
        self, corpus: Corpus, learn: Part, budget: Budget, seed: int, refiner: Refiner, held_out: HeldOut | None,
        effort: Effort,
    ) -> None:  # fmt: skip
        """Every window goes up; the server keeps each once, some pieces only to see when learning has converged."""
        traffic = InputTraffic(corpus.learn, self.encoding)
        known: set[int] = set()
        kept_apart = _pieces_apart(corpus, seed) if held_out is not None else set()
        for number, (device, row, continuous) in enumerate(heard_by(corpus, budget, seed, budget.devices)):
            effort.heard += 1
            effort.sent += 1
            effort.heard_s += float(learn.seconds[row])
            effort.uplink_bytes += traffic.bytes_of(row)
            if row in known:
                continue
            known.add(row)
            name, features = f"device{device}", learn.batch(slice(row, row + 1))[0]
            index = number // budget.devices
            if held_out is not None and int(learn.owners[row]) in kept_apart:
                held_out.add(stored_features(name, index, features, not continuous))
            else:
                refiner.add(name, index, features=features, starts=not continuous)


class HeldOut:
    """Pairs of windows that are never learned from, and the task loss on them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._reservoir = Reservoir(1 << 28, seed)

    def add(self, window: StoredWindow) -> None:
        """Keeps a window."""
        self._reservoir.add(window)

    @torch.no_grad()
    def loss(self, refiner: Refiner) -> float:
        """The refiner's task loss on the same pairs every time; there must be some."""
        settings = refiner.settings
        return float(held_out_loss(refiner.encoder, refiner.teacher, self.pairs(settings), settings))

    def pairs(self, settings: RefinerSettings) -> list[tuple[StoredWindow, StoredWindow]]:
        """Windows close in time, the same every time; none where there would be a single pair."""
        pairs = self._reservoir.pairs(
            np.random.default_rng(self._seed), HELD_OUT_PAIRS,
            min_gap=settings.positive_min_gap, max_gap=settings.positive_max_gap, decay=settings.positive_decay,
        )  # fmt: skip
        return pairs if len(pairs) > 1 else []


def held_out_loss(
    encoder: SplitEncoder,
    teacher: SplitEncoder,
    pairs: Sequence[tuple[StoredWindow, StoredWindow]],
    settings: RefinerSettings,
) -> torch.Tensor:
    """The refiner's task loss, a scalar, on pairs of windows close in time."""
    batch = [first for first, _ in pairs] + [second for _, second in pairs]
    z, targets = embed_windows(encoder, batch), frozen_targets(teacher, batch)
    frames = np.array([item.window for item in batch], dtype=np.int64)
    return task_loss(z, targets, frames, [item.device for item in batch], settings).total


def through_opus(part: Part) -> Part:
    """The part as the server hears it when devices send Opus at 24 kbit/s: coded, decoded, analysed anew."""
    windows = []
    for sound in part.sounds:
        audio = sound / np.float32(32_767.0)
        heard = decode_segment(encode_segment(audio), len(audio))
        cut = cut_windows(heard, None, WINDOW_FRAMES, part.stride_frames)
        windows += [window.features.astype(np.float16) for window in cut]
    return part._replace(windows=np.stack(windows))


def _pieces_apart(corpus: Corpus, seed: int) -> set[int]:
    count = len(corpus.learn.labels)
    apart = np.random.default_rng([seed, 29]).permutation(count)[: max(2, round(HELD_OUT_SHARE * count))]
    return {int(piece) for piece in apart}
