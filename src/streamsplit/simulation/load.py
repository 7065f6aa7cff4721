"""What else a device is busy with: processor load recorded on a real machine, replayed from any point in time."""

from __future__ import annotations

import json
import zipfile
import zlib
from importlib import resources
from pathlib import Path

import numpy as np

from streamsplit.errors import ConfigError

STEP_S = 0.1
FOLDER = Path(str(resources.files("streamsplit.simulation"))) / "loads"


class LoadTrace:
    """Share of all cores taken by other work, a sample every `STEP_S`; repeats. Made by `make_load`."""

    def __init__(self, share: np.ndarray, name: str = "load", note: str = "") -> None:
        self.share = share  # [n], in [0, 1]
        self.name = name
        self.note = note  # what the machine was doing
        self.shares: list[float] = share.tolist()
        self._smoothed: dict[float, list[float]] = {}
        self._scaled: dict[float, LoadTrace] = {}

    @property
    def duration_s(self) -> float:
        """Length before it repeats."""
        return len(self.share) * STEP_S

    def at(self, t_s: float) -> float:
        """The share taken at a time."""
        return self.shares[int(t_s / STEP_S + 1e-9) % len(self.shares)]

    def scaled(self, factor: float) -> LoadTrace:
        """The same work on a device that it keeps less busy; raises ConfigError when a share would pass 1."""
        if factor not in self._scaled:
            self._scaled[factor] = make_load(self.share * factor, self.name, self.note)
        return self._scaled[factor]

    def smoothed(self, weight: float) -> list[float]:
        """What a monitor shows that smooths exponentially [n]; the recording's end runs into its start."""
        if weight not in self._smoothed:
            shown, value = [], float(self.share.mean())
            for seen in self.shares:
                value += weight * (seen - value)
                shown.append(value)
            self._smoothed[weight] = shown
        return self._smoothed[weight]


def constant_load(share: float) -> LoadTrace:
    """Other work that never changes; raises ConfigError outside of [0, 1]."""
    return make_load([share], name=f"constant {share:g}")


def step_load(before: float, after: float, at_s: float, duration_s: float) -> LoadTrace:
    """`before` up to `at_s`, then `after`: for measuring how fast a policy adapts."""
    count, change = round(duration_s / STEP_S), round(at_s / STEP_S)
    return make_load([before] * change + [after] * (count - change), name=f"step {before:g}-{after:g}")


def make_load(share: np.ndarray | list[float], name: str = "load", note: str = "") -> LoadTrace:
    """A checked load trace; raises ConfigError."""
    values = np.asarray(share, float)
    if values.ndim != 1 or not len(values) or not np.all((values >= 0) & (values <= 1)):
        raise ConfigError(f"load '{name}': expected a list of at least one share, each in 0..1")
    return LoadTrace(values, name, note)


def recorded_loads(folder: Path = FOLDER) -> list[LoadTrace]:
    """The recordings that ship with the package, by name; `python -m benchmarks.record_load` makes one.

    Raises ConfigError when there is none or one is damaged.
    """
    loads = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as held:
                about = json.loads(str(held["about"]))
                loads.append(make_load(held["percent"] / 100.0, path.stem, str(about["note"])))
        except (OSError, LookupError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(f"{path}: not a load recording ({error}); record it anew") from None
    if not loads:
        raise ConfigError(f"{folder}: no load recording there; run `python -m benchmarks.record_load`")
    return loads
