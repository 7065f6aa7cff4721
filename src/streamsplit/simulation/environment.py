"""The gymnasium environment: one episode is one device on one stretch of a trace, one step is one window's cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.network.trace import BandwidthTrace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.device import SimulatedDevice, Step
from streamsplit.simulation.foresight import PerfectModel
from streamsplit.simulation.load import LoadTrace
from streamsplit.splitting.constraints import Constraints, ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import DEVICES, device_profile
from streamsplit.splitting.features import STATE_FEATURES, FeatureBuilder
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable
from streamsplit.splitting.useful import useful_cuts

BOUND = 100.0  # of every number in an observation
LOAD_SCALES = 6  # how many strengths of each recorded load there are


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings(Settings):
    """What an episode is drawn from. Every draw comes from the environment's own generator."""

    simulation: SimulationSettings = section(SimulationSettings)
    constraints: ConstraintSettings = section(ConstraintSettings)
    devices: tuple[str, ...] = setting(("pi4", "pi-zero-2w", "jetson-nano", "m2", "host"))
    episode_windows: int = setting(240, low=2)
    least_load: float = setting(0.1, low=0.0, high=1.0)  # the recorded load is scaled by a factor between these
    most_load: float = setting(1.0, low=0.0, high=1.0)
    most_server_load: float = setting(3.0, low=1.0)  # the server's time is scaled by 1 up to this
    battery_share: float = setting(0.3, low=0.0, high=1.0)  # of the episodes run on a battery, at any level
    battery_wh: float = setting(5.0, low=0.01)
    fetching_share: float = setting(0.05, low=0.0, high=1.0)  # of the episodes begin without the deeper blocks' weights
    unknown_share: float = setting(0.1, low=0.0, high=1.0)  # of the episodes never hear of a window's uncertainty
    relative: bool = setting(False)  # rewards less what an idle device would get: less noise, the same best policy

    def check(self) -> None:
        """Devices must be known, the load's range not empty, and energy counted as the constraints count it."""
        for name in self.devices:
            device_profile(name)
        if not self.devices or self.least_load > self.most_load:
            raise ConfigError(
                f"got devices {self.devices}, load {self.least_load}..{self.most_load}; "
                f"expected some of {', '.join(DEVICES)} and a range that is not empty"
            )

        own, counted = self.simulation, self.constraints
        if counted.energy_budget_mw and (own.stride_ms, own.energy_window_s) != (
            counted.interval_ms, counted.energy_window_s,
        ):  # fmt: skip
            raise ConfigError(
                f"got an energy budget over {counted.energy_window_s:g} s in steps of {counted.interval_ms:g} ms, "
                f"expected the simulation's {own.energy_window_s:g} s and {own.stride_ms:g} ms"
            )

    @property
    def greedy(self) -> GreedySettings:
        """The expectation of this reward, as a policy counts it."""
        return GreedySettings.from_objective(self.simulation.objective, self.simulation.stride_ms)


class SplitEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Observations [f + n + n]: state features, expected cost above the least of every action, and 1 for what may be
    taken now (splitting/features.py). Action i takes `cuts[i]`; one that may not be taken is replaced by the cheapest
    that may, and `info["masked"]` says so. Reward: splitting/objective.py, per window.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own name and type

    def __init__(
        self,
        table: CutTable,
        traces: Sequence[BandwidthTrace],
        loads: Sequence[LoadTrace],
        settings: EnvironmentSettings | None = None,
        cuts: tuple[Cut, ...] | None = None,
    ) -> None:
        """`table` of any device: it is scaled to each of `settings.devices`. `cuts` default to `useful_cuts(table)`."""
        if not traces or not loads:
            raise ConfigError(f"got {len(traces)} traces and {len(loads)} loads, expected at least one of each")
        self.settings = settings or EnvironmentSettings()
        self.traces = list(traces)
        scales = np.linspace(self.settings.least_load, self.settings.most_load, LOAD_SCALES)
        self.loads = [load.scaled(float(scale)) for load in loads for scale in scales]
        self.cuts = cuts or useful_cuts(table)
        self._worlds: list[_World] = [_World(table, name, self.cuts, self.settings) for name in self.settings.devices]
        n = len(self.cuts)
        self.observation_space = gymnasium.spaces.Box(-BOUND, BOUND, (len(STATE_FEATURES) + 2 * n,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(n)
        self._world = self._worlds[0]
        self.device: SimulatedDevice | None = None
        self._mask = np.ones(n, bool)
        self._costs = np.zeros(n)
        self._baseline: NDArray[np.float64] = np.zeros(0)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new episode; `options` may fix `device` (name) and `trace` (index)."""
        super().reset(seed=seed)
        s, rng, chosen = self.settings, self.np_random, dict(options or {})
        self._world = self._worlds[int(rng.integers(len(self._worlds)))]
        if "device" in chosen:
            if chosen["device"] not in s.devices:
                raise ConfigError(f"got device '{chosen['device']}', expected one of {', '.join(s.devices)}")
            self._world = self._worlds[s.devices.index(chosen["device"])]
        trace = self.traces[int(rng.integers(len(self.traces)))]
        if "trace" in chosen:
            if not 0 <= int(chosen["trace"]) < len(self.traces):
                raise ConfigError(f"got trace {chosen['trace']}, expected 0..{len(self.traces) - 1}")
            trace = self.traces[int(chosen["trace"])]
        load = self.loads[int(rng.integers(len(self.loads)))]
        simulation = s.simulation.replace(
            server_load=float(rng.uniform(1.0, s.most_server_load)),
            uncertainty_mean=float(np.clip(s.simulation.uncertainty_mean + rng.normal(0.0, 0.1), 0.05, 0.95)),
        )
        # Memory decides nothing here, but a policy that has only ever seen one value of it trusts no other.
        simulation = simulation.replace(
            memory=float(rng.uniform(0.0, 1.0)), uncertainty_known=bool(rng.random() >= s.unknown_share)
        )
        if rng.random() < s.battery_share:
            simulation = simulation.replace(battery_wh=s.battery_wh, battery_level=float(rng.uniform(0.05, 1.0)))
        if rng.random() < s.fetching_share:
            simulation = simulation.replace(blocks=int(rng.integers(0, self._world.table.num_blocks)))
        self.device = SimulatedDevice(
            self._world.table, self._world.profile, trace, load, simulation, seed=int(rng.integers(1 << 31)),
            link_start_s=float(rng.uniform(0.0, trace.duration_s)), load_start_s=float(rng.uniform(0, load.duration_s)),
            windows=s.episode_windows,
        )  # fmt: skip
        # An episode is shorter than heat and mean power remember: it begins with what an hour might have left.
        self.device.thermal = float(rng.uniform(0.0, max(load.shares)))
        power_mw = float(rng.choice(self._world.powers_mw) * rng.uniform(0.0, 1.25))
        self.device.power_mw = min(power_mw, s.constraints.energy_budget_mw or power_mw)
        self._baseline = PerfectModel(self.device).idle_best() if s.relative else np.zeros(s.episode_windows)
        return self._look(), {"device": self._world.name, "trace": trace.name}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One window; the episode is over after `episode_windows` of them."""
        if self.device is None:
            raise ConfigError("the environment was stepped before it was reset; call reset() first")
        chosen = int(action)
        masked = not self._mask[chosen]
        if masked:
            chosen = int(np.where(self._mask, self._costs, np.inf).argmin())
        window = self.device.index
        step: Step = self.device.step(self._world.rows[chosen])
        done = self.device.done
        observation = self._look()  # of the last window, too: the episode is cut off there, and has a value
        info = {"step": step, "masked": masked}
        return observation, step.reward - float(self._baseline[window]), False, done, info

    @property
    def rows(self) -> list[int]:
        """The rows of the present device's table that the actions take, in order."""
        return self._world.rows

    def action_masks(self) -> NDArray[np.bool_]:
        """What may be taken now [n]."""
        return self._mask

    def _look(self) -> NDArray[np.float32]:
        assert self.device is not None
        seen = self.device.observe()
        vector, self._costs = self._world.builder.build(seen)
        self._mask = self._world.allowed(seen)
        return np.concatenate((vector, self._mask), dtype=np.float32)


class _World:
    """A device class with its table, prepared."""

    def __init__(self, table: CutTable, name: str, cuts: tuple[Cut, ...], settings: EnvironmentSettings) -> None:
        self.name = name
        self.profile = device_profile(name)
        self.table = table.for_device(self.profile).only(cuts)
        self.powers_mw = [row.energy_mj / settings.simulation.stride_ms * 1000.0 for row in self.table.rows]
        self.builder = FeatureBuilder(self.table, cuts, settings.greedy)
        self.rows = [self.table.cuts.index(cut) for cut in cuts]
        self._constraints = Constraints(settings.constraints, self.table)
        fixed = not settings.constraints.energy_budget_mw
        self._always = self._constraints.allowed(Observation())[self.rows] if fixed else None

    def allowed(self, observation: Observation) -> NDArray[np.bool_]:
        """Of the actions [n], in their order."""
        if self._always is not None:
            return self._always
        return self._constraints.allowed(observation)[self.rows]
