"""How much of the sound crosses: small decoders are trained to draw the log-mel window from what a server gets.

The risk of a cut is the share of the log-mel's variance on held-out windows that the decoder explains beyond the
trivial guess, each band's mean over the training windows (R^2, held to [0, 1]). 1: the input itself; 0: nothing about
the window. The attacker has windows of the same kind of sound, the encoder's weights and all that crosses: the map and
the partial sum of the readout, or the embedding. The decoder is made of stages, each fitted to what the ones before
left: a linear map from every place's neighbourhood to the patch of the log-mel above it, two convolutions trained for a
few seconds, and kernel ridge regression from pooled maps and sums; or the last alone. Penalties, and whether a stage
counts at all, are chosen on a part of the training windows that the stages did not learn from.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Floats = NDArray[np.float32]

RIDGES = (1e-2, 1e-1, 1.0, 10.0)  # penalties tried, as shares of the kernel's mean diagonal
VALIDATION_SHARE = 0.25
_LOCAL_CHANNELS = 96  # more are first brought to their principal directions
_LOCAL_PLACES = 60_000  # places of maps that the linear stage is fitted to
_HIDDEN = 64
DECODER_STEPS = 150
_STEP_PLACES = 4_096  # places a step of the convolutions
_RATE = 2e-3


class Evidence(NamedTuple):
    """What the server has of n windows."""

    vectors: Floats  # [n, d]: partial sums, or embeddings
    maps: Floats | None = None  # [n, c, f, t]; None where only the vectors cross

    def rows(self, chosen: NDArray[np.int64]) -> Evidence:
        """Some of the windows."""
        return Evidence(self.vectors[chosen], None if self.maps is None else self.maps[chosen])


def variance_share(true: Floats, guess: Floats, trivial: Floats) -> float:
    """R^2 of log-mel windows guess [n, f, t] against true ones beyond the trivial guess [f], held to [0, 1]."""
    total = float(np.square(true - trivial[:, None], dtype=np.float64).sum())
    left = float(np.square(true - guess, dtype=np.float64).sum())
    return 0.0 if total <= 0 else min(max(1.0 - left / total, 0.0), 1.0)


class Decoder:
    """Draws log-mel windows from evidence; fitted at once, deterministic by seed."""

    def __init__(self, evidence: Evidence, windows: Floats, *, steps: int = DECODER_STEPS, seed: int = 0) -> None:
        """Learns from the evidence of n windows and their log-mel [n, f, t]; `steps` of Adam for the convolutions."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(windows))
        held = max(1, round(VALIDATION_SHARE * len(windows)))
        learn, check = order[held:], order[:held]
        self.trivial: Floats = windows.mean((0, 2))
        self._stages: list[_Stage] = []
        seen, unseen = evidence.rows(learn), evidence.rows(check)

        def residual() -> Floats:
            return windows[learn] - self.draw(seen)

        def consider(stages: list[_Stage]) -> None:
            """Adds the stage that leaves least, if that is less than there was."""
            before = windows[check] - self.draw(unseen)
            left = [float(np.square(before - stage.draw(unseen)).sum()) for stage in stages]
            best = int(np.argmin(left))
            if left[best] < float(np.square(before).sum()):
                self._stages.append(stages[best])

        def regress() -> None:
            views = (False,) if evidence.maps is None else (False, True)
            consider([_Global(seen, residual(), ridge, pooled) for pooled in views for ridge in RIDGES])

        if evidence.maps is not None:  # what generalises best comes first: later stages learn from what it leaves
            consider([_Local(seen, residual(), channels, rng) for channels in _channel_counts(evidence.maps.shape[1])])
            consider([_Convolutions(seen, residual(), steps, rng)])
        regress()
        left = float(np.square(windows[check] - self.draw(unseen)).sum())
        local, self._stages = self._stages, []
        regress()
        if left < float(np.square(windows[check] - self.draw(unseen)).sum()):
            self._stages = local

    def draw(self, evidence: Evidence) -> Floats:
        """Log-mel windows [n, f, t], or [n, f, 1] as long as nothing is known to help."""
        guess: Floats = np.broadcast_to(self.trivial[None, :, None], (len(evidence.vectors), len(self.trivial), 1))
        for stage in self._stages:
            guess = guess + stage.draw(evidence)
        return guess

    def risk(self, evidence: Evidence, windows: Floats) -> float:
        """The share of the variance of windows [n, f, t], not learned from, that the evidence gives away."""
        return variance_share(windows, self.draw(evidence), self.trivial)


class _Stage(Protocol):
    """One part of a decoder."""

    def draw(self, evidence: Evidence) -> Floats:
        """What it adds [n, f, t]."""


class _Global:
    """Kernel ridge regression to the whole window: from the vectors, `pooled` also from the maps' course in time."""

    def __init__(self, evidence: Evidence, target: Floats, ridge: float, pooled: bool) -> None:
        self._shape, self._with_maps = target.shape[1:], pooled
        x = self._inputs(evidence)
        self._mean, self._scale = x.mean(0), np.maximum(x.std(0), 1e-6)
        self._x: Floats = (x - self._mean) / self._scale
        self._width = float(self._x.shape[1])
        kernel = self._kernel(self._x).astype(np.float64)
        penalty = ridge * float(np.trace(kernel)) / len(kernel)
        y = target.reshape(len(target), -1)
        self._weights = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), y).astype(np.float32)

    def draw(self, evidence: Evidence) -> Floats:
        x = (self._inputs(evidence) - self._mean) / self._scale
        drawn: Floats = (self._kernel(x) @ self._weights).reshape(len(x), *self._shape)
        return drawn

    def _inputs(self, evidence: Evidence) -> Floats:
        return _pooled(evidence) if self._with_maps else evidence.vectors

    def _kernel(self, x: Floats) -> Floats:
        """A linear and a Gaussian part, so that neither straight nor bent dependence is missed."""
        product = x @ self._x.T / self._width
        squares = np.square(x).sum(1)[:, None] + np.square(self._x).sum(1)[None] - 2 * self._width * product
        kernel: Floats = (product + np.exp(-0.5 * np.maximum(squares, 0.0) / self._width)).astype(np.float32)
        return kernel


class _Local:
    """A linear map from the 3 x 3 places around each place of the map, and its row, to the patch above it."""

    def __init__(self, evidence: Evidence, target: Floats, channels: int, rng: np.random.Generator) -> None:
        maps = _maps(evidence)
        self._channels = _Channels(maps, channels)
        self._patches = _Patches(maps.shape[2:], target.shape[1:])
        patches = self._patches.cut(target)  # [n, patch, f', t']
        n, _, rows, frames = patches.shape
        places = rng.permutation(n * rows * frames)[:_LOCAL_PLACES]
        at = np.stack(np.unravel_index(places, (n, rows, frames)), 1)
        x = _neighbourhoods(self._channels.seen(maps), at)
        y = patches.transpose(0, 2, 3, 1).reshape(-1, patches.shape[1])[places]
        gram = (x.T @ x).astype(np.float64)
        penalty = 1e-3 * np.trace(gram) / len(gram) + 1e-9
        self._weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), (x.T @ y).astype(np.float64)).astype(
            np.float32
        )

    def draw(self, evidence: Evidence) -> Floats:
        maps = self._channels.seen(_maps(evidence))
        n, _, rows, frames = maps.shape
        drawn = np.empty((n, self._weights.shape[1], rows, frames), np.float32)
        places = np.stack(np.unravel_index(np.arange(rows * frames), (rows, frames)), 1)
        for i in range(n):
            at = np.concatenate([np.zeros((len(places), 1), np.int64), places], 1)
            drawn[i] = (_neighbourhoods(maps[i : i + 1], at) @ self._weights).T.reshape(-1, rows, frames)
        return self._patches.joined(drawn)


class _Convolutions:
    """Two 3 x 3 convolutions and a patch per place, trained with Adam; the vectors join at every place."""

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __init__(self, evidence: Evidence, target: Floats, steps: int, rng: np.random.Generator) -> None:
        maps = _maps(evidence)
        self._channels = _Channels(maps, _LOCAL_CHANNELS)
        self._patches = _Patches(maps.shape[2:], target.shape[1:])
        self._vector_scale = np.maximum(evidence.vectors.std(), 1e-6)
        seen, vectors = torch.from_numpy(self._channels.seen(maps)), self._vectors(evidence)
        patches = torch.from_numpy(self._patches.cut(target))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            self._first = nn.Conv2d(seen.shape[1], _HIDDEN, 3, padding=1)
            self._join = nn.Linear(vectors.shape[1], _HIDDEN)
            self._second = nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1)
            self._last = nn.Conv2d(_HIDDEN, patches.shape[1], 1)
        for parameter in self._last.parameters():
            nn.init.zeros_(parameter)
        layers = (self._first, self._join, self._second, self._last)
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=_RATE)
        batch = max(1, min(len(seen), _STEP_PLACES // (seen.shape[2] * seen.shape[3])))
        power = patches.square().mean().clamp(min=1e-9)
        for step in range(steps):
            rows = torch.from_numpy(rng.integers(0, len(seen), batch))
            for group in optimiser.param_groups:
                group["lr"] = _RATE * (1.0 - step / steps)
            loss = (self._run(seen[rows], vectors[rows]) - patches[rows]).square().mean() / power
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def draw(self, evidence: Evidence) -> Floats:
        seen, vectors = torch.from_numpy(self._channels.seen(_maps(evidence))), self._vectors(evidence)
        with torch.no_grad():
            parts = [self._run(a, b).numpy() for a, b in zip(seen.split(16), vectors.split(16), strict=True)]
        return self._patches.joined(np.concatenate(parts))

    def _run(self, maps: Tensor, vectors: Tensor) -> Tensor:
        h = functional.relu(self._first(maps) + self._join(vectors)[:, :, None, None])
        result: Tensor = self._last(functional.relu(self._second(h)))
        return result

    def _vectors(self, evidence: Evidence) -> Tensor:
        return torch.from_numpy(np.asarray(evidence.vectors / self._vector_scale, np.float32))


class _Channels:
    """Maps with channels of mean 0 and variance 1, or their `most` principal directions where there are more."""

    def __init__(self, maps: Floats, most: int) -> None:
        flat = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
        self._mean = flat.mean(0)
        centred = flat - self._mean
        self._basis = np.diag(1.0 / np.maximum(flat.std(0), 1e-6))
        if maps.shape[1] > most:
            values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(flat))
            kept = slice(maps.shape[1] - most, None)
            self._basis = vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1e-12))
        self._basis = self._basis.astype(np.float32)

    def seen(self, maps: Floats) -> Floats:
        """[n, c, f, t] to [n, c', f, t]."""
        moved = (maps.transpose(0, 2, 3, 1) - self._mean) @ self._basis
        return np.ascontiguousarray(moved.transpose(0, 3, 1, 2), np.float32)


class _Patches:
    """Which part of the log-mel window [f, t] lies above each place of a map [f', t']."""

    def __init__(self, places: tuple[int, ...], window: tuple[int, ...]) -> None:
        self._places, self._window = places, window
        stride = -(-window[0] // places[0])
        self._size = (stride, stride if stride * places[1] >= window[1] else -(-window[1] // places[1]))

    def cut(self, windows: Floats) -> Floats:
        """[n, f, t] to [n, patch, f', t']."""
        (rows, frames), (height, width) = self._places, self._size
        padded = np.zeros((len(windows), rows * height, frames * width), np.float32)
        padded[:, : self._window[0], : self._window[1]] = windows
        parts = padded.reshape(len(windows), rows, height, frames, width).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(parts.reshape(len(windows), height * width, rows, frames))

    def joined(self, patches: Floats) -> Floats:
        """Back to [n, f, t]."""
        (rows, frames), (height, width) = self._places, self._size
        parts = patches.reshape(len(patches), height, width, rows, frames).transpose(0, 3, 1, 4, 2)
        whole = parts.reshape(len(patches), rows * height, frames * width)
        return np.ascontiguousarray(whole[:, : self._window[0], : self._window[1]])


def _channel_counts(channels: int) -> list[int]:
    """How many principal directions of the channels to try: as many as can be taken, and as few as a bottleneck has."""
    return [min(channels, _LOCAL_CHANNELS), max(1, min(channels, _LOCAL_CHANNELS) // 4)]


def _neighbourhoods(maps: Floats, at: NDArray[np.int64]) -> Floats:
    """[places, 9 c + f']: the values around each place (n, row, frame), zeros beyond the border, and its row."""
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    n, row, frame = at.T
    parts = [padded[n, :, row + i, frame + j] for i in range(3) for j in range(3)]
    return np.concatenate([*parts, np.eye(maps.shape[2], dtype=np.float32)[row]], 1)


def _pooled(evidence: Evidence) -> Floats:
    """[n, .]: the vectors, and the maps' mean and deviation over time, rows joined where there are too many."""
    parts = [evidence.vectors]
    if evidence.maps is not None:
        n, channels, rows, _ = evidence.maps.shape
        while channels * rows > 2048 and rows % 2 == 0:
            rows //= 2
        maps = evidence.maps.reshape(n, channels, rows, -1)
        parts += [maps.mean(3).reshape(n, -1), maps.std(3).reshape(n, -1)]
    return np.concatenate(parts, 1).astype(np.float32)


def _maps(evidence: Evidence) -> Floats:
    assert evidence.maps is not None  # stages that need maps are only made where there are some
    return evidence.maps
