"""What every compared method gets (a corpus, a budget, a seed) and gives (vectors, and what they took)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from streamsplit.config import Settings, setting
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.projection import fit_projection
from streamsplit.evaluation.corpus import Corpus
from streamsplit.refinement.refiner import Refiner
from streamsplit.refinement.settings import RefinerSettings
from streamsplit.weights.pretrained import Pretrained, pretrained_encoder, read_pretrained

Embed = Callable[[np.ndarray], np.ndarray]  # windows [n, f, t] float32 -> vectors [n, d]
Progress = Callable[[float, str], None]  # share done in 0..1, and what was last

START_WINDOWS = 192  # that the PCA start is fitted on, as a device on its own does it
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Budget(Settings):
    """What a method may take. A method that learns stops at `windows` or `updates`, whichever comes first."""

    heard: int = setting(2256, low=64)  # windows of all devices' streams together
    windows: int = setting(16_000, low=64)  # that went into optimiser steps
    updates: int = setting(500, low=1)  # optimiser steps
    converge_updates: int = setting(400, low=1)  # most steps of a server that trains to convergence
    server_batch: int = setting(256, low=4, high=4096)  # windows in a server's optimiser step
    devices: int = setting(3, low=1, high=64)  # where a method has several
    start: str = setting("")  # published encoder, by name or path, that learning begins with; "": the seed's untrained

    def identity(self) -> dict[str, Any]:
        """What results depend on: the values, the start by its weights, whatever it is called; CheckpointError."""
        values = self.as_dict()
        del values["start"]
        return values | ({"start": published(self.start).revision} if self.start else {})

    @property
    def start_about(self) -> str:
        """The start in a few words, for people: '' without one; CheckpointError."""
        if not self.start:
            return ""
        found = published(self.start)
        return f"{found.card['name']} ({found.settings.name}, {found.revision[:8]})"


@dataclass
class Effort:
    """What a run took; bytes are those of frames as they go over the wire, headers included."""

    heard: int = 0
    heard_s: float = 0.0
    windows: int = 0  # windows in optimiser steps, with a gradient
    updates: int = 0
    server_windows: int = 0  # the same, of the server, where device and server both learn
    server_updates: int = 0
    cpu_s: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    sent: int = 0  # heard windows of which anything went up

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, with what follows from them: MB an hour of sound, share sent."""
        hours = self.heard_s / 3600.0
        return {
            **vars(self),
            "uplink_mb_per_h": self.uplink_bytes / 1e6 / hours if hours else 0.0,
            "downlink_mb_per_h": self.downlink_bytes / 1e6 / hours if hours else 0.0,
            "share_sent": self.sent / self.heard if self.heard else 0.0,
        }


class Outcome(NamedTuple):
    """What a method came to."""

    embed: Embed
    effort: Effort
    peak_rank: float  # highest effective rank seen while learning; nan where none was
    last_rank: float
    notes: tuple[str, ...] = ()
    encoder: SplitEncoder | None = None  # what `embed` runs, where it is one that can be cut


class Method(Protocol):
    """One row of the table; `name` is how the command line calls it, `about` what it is in a few words."""

    name: str
    about: str

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Learns from `corpus.learn` without its labels."""


@dataclass
class Ranks:
    """Effective rank over a run: its peak and its last value."""

    peak: float = float("nan")
    last: float = float("nan")
    trace: list[float] = field(default_factory=list)

    def see(self, value: float) -> None:
        """Takes one value; 0 means that it is not known yet."""
        if value > 0:
            self.last = value
            self.peak = value if not self.trace else max(self.peak, value)
            self.trace.append(value)


class Stopwatch:
    """Process seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.process_time()

    def read(self) -> float:
        """Seconds so far."""
        return time.process_time() - self._started


def encoder_of(seed: int, name: str = "mobilenet") -> SplitEncoder:
    """The untrained encoder of this seed."""
    return make_encoder(EncoderSettings(name=name, seed=seed))


@lru_cache(maxsize=4)
def published(name: str) -> Pretrained:
    """The published encoder of this name or path, as it was when this process first read it; CheckpointError."""
    return read_pretrained(name)


def first_encoder(budget: Budget, seed: int) -> SplitEncoder:
    """What every method that learns begins with: the budget's published encoder, or the untrained one of the seed."""
    return pretrained_encoder(published(budget.start)) if budget.start else encoder_of(seed)


def first_refiner(budget: Budget, settings: RefinerSettings, seed: int) -> Refiner:
    """A server's learning around it; a published encoder keeps its space: its projection is not fitted anew."""
    refiner = Refiner(first_encoder(budget, seed), settings, seed)
    refiner.warm_started = bool(budget.start)
    return refiner


def embedder(encoder: torch.nn.Module) -> Embed:
    """Vectors of windows by an encoder, in batches and without gradients."""

    @torch.no_grad()
    def embed(windows: np.ndarray) -> np.ndarray:
        starts = range(0, len(windows), _BATCH)
        parts = [encoder(torch.from_numpy(np.asarray(windows[i : i + _BATCH], np.float32))).numpy() for i in starts]
        return np.concatenate(parts)

    return embed


def heard_by(corpus: Corpus, budget: Budget, seed: int, devices: int = 1) -> Iterator[tuple[int, int, bool]]:
    """(device, row of `learn.windows`, follows that device's window before), `budget.heard` in all, devices in turn."""
    streams = [corpus.stream(seed, devices, device) for device in range(devices)]
    for number in range(budget.heard):
        device = number % devices
        yield device, *next(streams[device])


def start_rows(corpus: Corpus, seed: int, devices: int = 1) -> list[int]:
    """The first START_WINDOWS rows of `learn.windows` that the devices hear."""
    budget = Budget(heard=START_WINDOWS)
    return [row for _, row, _ in heard_by(corpus, budget, seed, devices)]


def fitted_encoder(corpus: Corpus, budget: Budget, seed: int) -> SplitEncoder:
    """What devices begin with together: the budget's published encoder as it is, or the untrained one by PCA."""
    encoder = first_encoder(budget, seed)
    return encoder if budget.start else pca_started(encoder, corpus, seed, budget.devices)


def pca_started(encoder: SplitEncoder, corpus: Corpus, seed: int, devices: int = 1) -> SplitEncoder:
    """The encoder with its projection fitted to the first windows heard; no label, no optimiser step."""
    fit_projection(encoder, corpus.learn.batch(np.array(start_rows(corpus, seed, devices))), seed)
    return encoder
