"""What else a device is busy with: processor load recorded on a real machine, replayed from any point in time."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamsplit.errors import ConfigError

STEP_S = 0.1
FOLDER = Path(str(resources.files("streamsplit.simulation"))) / "loads"


class LoadTrace(NamedTuple):
    """Share of all cores taken by other work, a sample every `STEP_S`; repeats."""

    share: np.ndarray  # [n], in [0, 1]
    name: str = "load"
    note: str = ""  # what the machine was doing

    @property
    def duration_s(self) -> float:
        """Length before it repeats."""
        return len(self.share) * STEP_S

    def at(self, t_s: float) -> float:
        """The share taken at a time."""
        return float(self.share[int(t_s / STEP_S) % len(self.share)])


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
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise ConfigError(f"{path}: not a load recording ({error}); record it anew") from None
    if not loads:
        raise ConfigError(f"{folder}: no load recording there; run `python -m benchmarks.record_load`")
    return loads
