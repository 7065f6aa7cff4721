"""Clips as a fleet hears them: long correlated streams a device, classes that shift, devices that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError
from streamsplit.evaluation.data.allocation import allocate
from streamsplit.evaluation.datasets import Clip

SHIFTS = ("none", "gradual", "abrupt")
_MOST_STEPS = 20  # of a gradual shift
_ADJACENT_S = 0.001
_PERIODS_HELD = 8  # of an endless stream, for devices that are read at different paces
_SMALLEST = 1e-12  # of a share, where a small alpha gives none at all


@dataclass(frozen=True, kw_only=True)
class StreamSettings(Settings):
    """How correlated, how unlike between devices and how unsteady a stream is."""

    seed: int = setting(0, low=0)
    shift: str = setting("none", choices=SHIFTS)  # of a device's class mix over the stream
    dirichlet_alpha: float | None = setting(
        0.5, low=0.001, high=1e9
    )  # devices' mixes: small = one class, None = i.i.d.
    shift_alpha: float = setting(0.5, low=0.001, high=1e9)  # of the mixes that i.i.d. devices shift between together
    run_clips: float = setting(4.0, low=1.0)  # mean clips of one class before the class is drawn anew
    passes: int = setting(1, low=0)  # over all clips, by the fleet as a whole; 0 = endless


class Heard(NamedTuple):
    """One clip of a stream; `continuous` where its sound goes on from that of the clip before, without a cut."""

    clip: int
    continuous: bool


class Stream:
    """Which clip every device hears when: indices only, the same for the same seed.

    Each pass deals every clip to exactly one device, in equal numbers. A device's class mix is drawn from
    Dirichlet(alpha * classes * share of the class), as by Hsu et al. 2019, then brought as near as the supply of clips
    allows (`allocate`). A shift goes from one drawn mix to another: 'gradual' linearly over the stream, 'abrupt' at its
    middle. An endless stream is made of passes, each shifting on from the mix that the one before ended with. Within
    a mix, clips come in runs of one class with geometric lengths; clips that follow one another in a recording stay
    together.
    """

    def __init__(
        self,
        labels: Sequence[str],
        devices: int,
        settings: StreamSettings | None = None,
        *,
        follows: Sequence[int] | None = None,
    ) -> None:
        """`labels` has one entry a clip; follows[i] is the clip that i goes on from without a cut, -1 for none.

        Raises ConfigError for fewer clips than devices, fewer than two classes, or clips that follow in a circle.
        """
        self.settings = settings or StreamSettings()
        self.devices = devices
        self.classes = tuple(sorted(set(labels)))
        if devices < 1 or len(labels) < devices:
            raise ConfigError(f"got {len(labels)} clips for {devices} devices, expected at least one clip a device")
        if len(self.classes) < 2:
            raise ConfigError(f"got {len(self.classes)} class in the stream, expected at least 2")
        self._label = np.searchsorted(np.array(self.classes), np.asarray(labels))
        self._follows = np.full(len(labels), -1) if follows is None else np.asarray(follows, np.int64)
        self._chains = self._find_chains()
        self._prior = np.bincount(self._label) / len(labels)
        self._made: dict[int, list[list[int]]] = {}

    def device(self, device: int) -> Iterator[Heard]:
        """What a device hears, from the start; ends after the passes, never with passes = 0."""
        if not 0 <= device < self.devices:
            raise ConfigError(f"got device {device}, expected 0..{self.devices - 1}")
        before, period = -1, 0
        while period == 0 or not self.settings.passes:
            for clip in self._period(period)[device]:
                yield Heard(clip, before >= 0 and int(self._follows[clip]) == before)
                before = clip
            period += 1

    def wished_mix(self, device: int, share: float, period: int = 0) -> np.ndarray:
        """Class proportions [classes] drawn for a device at `share` (0..1) of a period, before the supply is minded."""
        if self.settings.shift == "none":
            return self._mix(device, 0)
        start, end = self._mix(device, period), self._mix(device, period + 1)
        weight = share if self.settings.shift == "gradual" else float(share >= 0.5)
        mixed: np.ndarray = (1.0 - weight) * start + weight * end
        return mixed

    def _mix(self, device: int, number: int) -> np.ndarray:
        alpha, owner = self.settings.dirichlet_alpha, device + 1
        if alpha is None:
            if self.settings.shift == "none":
                return self._prior
            alpha, owner = self.settings.shift_alpha, 0  # one mix for all
        rng = np.random.default_rng((self.settings.seed, 0, owner, number))
        concentration = alpha * len(self.classes) * self._prior
        drawn = np.log1p(-rng.uniform(size=len(concentration))) / concentration  # gamma(a) = gamma(a + 1) u^(1/a)
        logs = np.log(rng.standard_gamma(concentration + 1.0)) + drawn  # in logarithms: small a would underflow
        shares = np.exp(logs - logs.max()) + _SMALLEST
        mix: np.ndarray = shares / shares.sum()
        return mix

    def _period(self, period: int) -> list[list[int]]:
        """Clips by device; an endless stream has a period a pass, a finite one has a single period."""
        if period not in self._made:
            if len(self._made) >= _PERIODS_HELD:
                del self._made[next(iter(self._made))]
            self._made[period] = self._make(period)
        return self._made[period]

    def _make(self, period: int) -> list[list[int]]:
        rng = np.random.default_rng((self.settings.seed, 1, period))
        copies = self.settings.passes or 1
        total = copies * len(self._label)
        shares = rng.permutation(_even(total, self.devices))
        steps = self._steps(int(shares.min()))
        sizes = np.stack([_even(int(share), steps) for share in shares], axis=1)  # [steps, devices]
        mixes = [
            self.wished_mix(device, (step + 0.5) / steps, period)
            for step in range(steps)
            for device in range(self.devices)
        ]
        supply = copies * np.bincount(self._label)
        counts = allocate(np.stack(mixes), sizes.ravel(), supply, rng)
        queues = [self._queue(number, copies, rng) for number in range(len(self.classes))]
        heard: list[list[int]] = [[] for _ in range(self.devices)]
        for row, own in enumerate(counts):
            for number, length in self._runs(own, rng):
                heard[row % self.devices] += [next(queues[number]) for _ in range(length)]
        return heard

    def _steps(self, clips: int) -> int:
        """How many stretches of constant mix a device's stream has: two runs or more each, in a gradual shift."""
        if self.settings.shift == "none":
            return 1
        if self.settings.shift == "abrupt":
            return min(2, clips)
        return min(clips, max(2, min(_MOST_STEPS, int(clips / (2.0 * self.settings.run_clips)))))

    def _runs(self, counts: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
        """(class, length) of the runs that use up the counts [classes], in an order drawn at random."""
        runs = []
        for number, left in enumerate(counts.tolist()):
            while left > 0:
                length = min(left, int(rng.geometric(1.0 / self.settings.run_clips)))
                runs.append((number, length))
                left -= length
        return [runs[place] for place in rng.permutation(len(runs))]

    def _queue(self, number: int, copies: int, rng: np.random.Generator) -> Iterator[int]:
        """A class's clips, all of them before any comes again."""
        chains = self._chains[number]
        for _ in range(copies):
            for place in rng.permutation(len(chains)):
                yield from chains[place]

    def _find_chains(self) -> list[list[list[int]]]:
        """By class: clips that follow one another, in order."""
        follows, label = self._follows, self._label
        if follows.shape != label.shape or np.any((follows < -1) | (follows >= len(label))):
            raise ConfigError(
                f"got follows of shape {follows.shape}, expected for each of {len(label)} clips a clip or -1"
            )
        next_of = {
            int(before): clip for clip, before in enumerate(follows) if before >= 0 and label[before] == label[clip]
        }
        inner = set(next_of.values())
        chains: list[list[list[int]]] = [[] for _ in self.classes]
        for clip in range(len(label)):
            if clip not in inner:
                chain = [clip]
                while chain[-1] in next_of:
                    chain.append(next_of[chain[-1]])
                chains[label[clip]].append(chain)
        if sum(len(chain) for held in chains for chain in held) != len(label):
            raise ConfigError("got clips that follow one another in a circle, expected recordings with a first clip")
        return chains


def directly_follows(clips: Sequence[Clip]) -> list[int]:
    """For each clip the one that ends where it starts, in the same recording; -1 for whole files and after gaps."""
    place = {clip: row for row, clip in enumerate(clips)}
    follows = [-1] * len(clips)
    pieces = sorted(
        (clip for clip in clips if clip.start_s is not None), key=lambda clip: (clip.path, clip.start_s or 0.0)
    )
    for before, clip in pairwise(pieces):
        end_s = (before.start_s or 0.0) + (before.duration_s or 0.0)
        if before.path == clip.path and abs(end_s - (clip.start_s or 0.0)) < _ADJACENT_S:
            follows[place[clip]] = place[before]
    return follows


def _even(total: int, parts: int) -> np.ndarray:
    """`total` cut into parts that differ by one at most."""
    return np.diff(np.arange(parts + 1) * total // parts)
