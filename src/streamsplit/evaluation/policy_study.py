"""Compares policies on simulated devices over traces they have never seen: every policy x device class x seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.config import Settings, nearest, section, setting
from streamsplit.errors import ConfigError, CutError
from streamsplit.evaluation.statistics import MeanInterval, mean_interval
from streamsplit.network.trace import BandwidthTrace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.device import SimulatedDevice, Step
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.foresight import GreedyOracle, LookAheadOracle, PresentOracle
from streamsplit.simulation.load import LoadTrace
from streamsplit.splitting.argmin import ArgminPolicy
from streamsplit.splitting.bandit import BanditPolicy
from streamsplit.splitting.correction import CorrectedPolicy
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import DeviceProfile, device_profile
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.policy import FixedPolicy, HeuristicPolicy, KeepLocalPolicy
from streamsplit.splitting.policy_file import policy_from_bytes
from streamsplit.splitting.table import CutTable
from streamsplit.splitting.useful import useful_cuts
from streamsplit.wire.media import Encoding

SERVER_ONLY, SERVER_ONLY_OPUS = "server-only", "server-only-opus"
FIXED = "best-fixed"
RIVALS = ("heuristic", "argmin", "bandit")  # what the learned policy has to beat
POLICIES = (
    SERVER_ONLY, SERVER_ONLY_OPUS, "edge-only", FIXED, "heuristic", "argmin", "bandit", "greedy", "ppo",
    "ppo-corrected", "present-oracle", "greedy-oracle", "look-ahead",
)  # fmt: skip
ORACLES = ("present-oracle", "greedy-oracle", "look-ahead")  # what no device can know
ORACLE_SEEDS = 2  # they take long, and hardly differ from seed to seed
LOAD_STRENGTHS = (0.4, 0.7, 1.0)  # the recorded load times these, one run after the other
HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class StudySettings(Settings):
    """What is compared, on what."""

    policies: tuple[str, ...] = setting(POLICIES)
    devices: tuple[str, ...] = setting(("pi4", "pi-zero-2w", "jetson-nano", "m2"))
    seeds: int = setting(5, low=1, high=1000)
    simulation: SimulationSettings = section(SimulationSettings)
    processes: int = setting(2, low=1, high=256)

    def check(self) -> None:
        """Names must be known."""
        for name in self.policies:
            if name not in POLICIES:
                raise ConfigError(f"got policy '{name}'; {nearest(name, POLICIES)}")
        for name in self.devices:
            device_profile(name)
        if not self.devices or not self.policies:
            raise ConfigError("got no devices or no policies to compare, expected at least one of each")

    @property
    def greedy(self) -> GreedySettings:
        """The expectation of the reward, as policies that count it do."""
        return GreedySettings.from_objective(self.simulation.objective, self.simulation.stride_ms)


class Material(NamedTuple):
    """What every cell of the study works on; goes to worker processes."""

    table: CutTable  # of any device: scaled to each
    traces: tuple[BandwidthTrace, ...]
    loads: tuple[LoadTrace, ...]
    policy: bytes  # of the learned policy's file; b"" without one


class Cell(NamedTuple):
    """One policy on one device class with one seed, over all traces."""

    policy: str
    device: str
    seed: int
    cut: str  # of a fixed policy, else ""
    reward: float  # mean a window
    run_rewards: list[float]  # mean a window of every trace, in order: for paired comparisons
    latency_ms: dict[str, float]  # p50, p95, p99; None where windows were lost
    uplink_mb_per_h: float
    downlink_mb_per_h: float
    marginal_j_per_h: float
    quality_loss_points: float  # accuracy lost against the whole encoder, in points, over answered windows
    deadline_misses: float  # share of windows whose result came after the deadline or never
    seen: float  # share of windows that the server got
    changes_per_h: float  # of the cut
    fallbacks: float  # share of decisions that a learned policy left to the greedy one
    cuts: dict[str, float]  # shares of the cuts used most

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self._asdict()


def run_study(
    material: Material, settings: StudySettings, progress: Callable[[int, int, Cell], None] | None = None
) -> list[Cell]:
    """All cells, in the order of policies, devices, seeds; oracles with `ORACLE_SEEDS` at the most.

    The best fixed cut is chosen with hindsight, on the traces of the study itself with seed 0, one for each device: the
    strongest fixed rule there is. `progress(done, total, cell)` is called as cells come in.
    """
    jobs: list[tuple[str, str, int, str]] = []
    trials: list[tuple[str, str, int, str]] = []
    if FIXED in settings.policies:
        cuts = [str(cut) for cut in useful_cuts(material.table)]
        trials = [(FIXED, device, 0, cut) for device in settings.devices for cut in cuts]
    for policy in settings.policies:
        seeds = min(settings.seeds, ORACLE_SEEDS) if policy in ORACLES else settings.seeds
        jobs += [(policy, device, seed, "") for device in settings.devices for seed in range(seeds)]
    total = len(trials) + len(jobs) - (0 if FIXED not in settings.policies else len(settings.devices))
    cells: dict[tuple[str, str, int, str], Cell] = {}
    with ProcessPoolExecutor(
        settings.processes, mp_context=get_context("spawn"), initializer=_start, initargs=(material, settings)
    ) as pool:

        def gather(wanted: Sequence[tuple[str, str, int, str]]) -> None:
            for future in as_completed([pool.submit(_work, job) for job in wanted]):
                cell = future.result()
                cells[(cell.policy, cell.device, cell.seed, cell.cut)] = cell
                if progress is not None:
                    progress(len(cells), total, cell)

        gather(trials)
        best = {
            device: max((cells[t] for t in trials if t[1] == device), key=lambda cell: cell.reward).cut
            for device in settings.devices
            if trials
        }
        jobs = [(p, d, s, best[d] if p == FIXED else "") for p, d, s, _ in jobs]
        gather([job for job in jobs if job not in cells])
    return [cells[job] for job in jobs]


def run_cell(policy: str, device: str, seed: int, cut: str, material: Material, settings: StudySettings) -> Cell:
    """One policy on one device class over all traces; a policy that learns goes on from trace to trace."""
    profile = device_profile(device)
    table = material.table.for_device(profile)
    if policy in ORACLES:
        table = table.only(useful_cuts(table))
    chooser = None if policy == "look-ahead" else make_contestant(policy, cut, material, settings)
    runs = []
    for index, trace in enumerate(material.traces):
        simulated = simulated_run(table, profile, trace, material.loads, settings.simulation, seed, index)
        runs.append(FollowPolicy(simulated).run(chooser or LookAheadOracle(simulated)))
    return _summarise(policy, device, seed, cut, runs, settings, getattr(chooser, "fallbacks", 0))


def simulated_run(
    table: CutTable,
    profile: DeviceProfile,
    trace: BandwidthTrace,
    loads: Sequence[LoadTrace],
    settings: SimulationSettings,
    seed: int,
    index: int,
) -> SimulatedDevice:
    """The device of run number `index`: the same surroundings for every policy."""
    rng = np.random.default_rng([seed, index])
    load = loads[index % len(loads)].scaled(LOAD_STRENGTHS[index % len(LOAD_STRENGTHS)])
    return SimulatedDevice(
        table, profile, trace, load, settings, seed=int(rng.integers(1 << 31)),
        load_start_s=float(rng.uniform(0.0, load.duration_s)),
    )  # fmt: skip


def make_contestant(policy: str, cut: str, material: Material, settings: StudySettings) -> Any:
    """The policy called `policy`; raises ConfigError for a learned one without a file."""
    expectation = settings.greedy
    if policy in ("ppo", "ppo-corrected"):
        if not material.policy:
            raise ConfigError(f"policy '{policy}' needs a trained file; give --policy, or leave it out of --policies")
        learned = LearnedPolicy(policy_from_bytes(material.policy))
        return learned if policy == "ppo" else CorrectedPolicy(learned)
    if policy == FIXED:
        return FixedPolicy(Cut.parse(cut))
    return {
        SERVER_ONLY: lambda: FixedPolicy(Cut(0, Encoding.PCM16)),
        SERVER_ONLY_OPUS: lambda: FixedPolicy(Cut(0, Encoding.OPUS24)),
        "edge-only": KeepLocalPolicy,
        "heuristic": HeuristicPolicy,
        "argmin": ArgminPolicy,
        "bandit": lambda: BanditPolicy(objective=expectation),
        "greedy": lambda: GreedyPolicy(expectation),
        "present-oracle": lambda: PresentOracle(expectation),
        "greedy-oracle": GreedyOracle,
    }[policy]()


def of(cells: Sequence[Cell], policy: str, device: str) -> list[Cell]:
    """The cells of one policy on one device, by seed."""
    return sorted((c for c in cells if c.policy == policy and c.device == device), key=lambda cell: cell.seed)


def verdict(cells: Sequence[Cell], device: str, policy: str = "ppo") -> dict[str, Any]:
    """How `policy` stands on one device class against the best fixed cut, the look-ahead oracle and its rivals."""
    own = of(cells, policy, device)
    mine = mean_interval([cell.reward for cell in own])
    found: dict[str, Any] = {"device": device, "reward": mine._asdict()}
    fixed, oracle = of(cells, FIXED, device), of(cells, "look-ahead", device)
    if fixed and oracle:
        # Seeds differ by more than policies do: only those that all three have run compare.
        seeds = {cell.seed for cell in oracle}
        got, low, high = (
            float(np.mean([cell.reward for cell in held if cell.seed in seeds])) for held in (own, fixed, oracle)
        )
        found["best_fixed"] = fixed[0].cut
        found["gap_closed"] = (got - low) / max(high - low, 1e-9)
        found["seeds_compared"] = sorted(seeds)
    for rival in (*RIVALS, "greedy"):
        theirs = of(cells, rival, device)
        if not theirs:
            continue
        other = mean_interval([cell.reward for cell in theirs])
        paired = paired_difference(of(cells, policy, device), theirs)
        found[f"over_{rival}"] = {
            "difference": mine.mean - other.mean,
            "intervals_apart": bool(mine.low > other.high),
            "over_runs": paired._asdict(),
        }
    return found


def paired_difference(mine: Sequence[Cell], theirs: Sequence[Cell]) -> MeanInterval:
    """Mean difference of rewards over traces (averaged over seeds first), with its 95 % interval: same surroundings."""
    ours = np.mean([cell.run_rewards for cell in mine], axis=0)
    others = np.mean([cell.run_rewards for cell in theirs], axis=0)
    return mean_interval((ours - others).tolist())


_held: tuple[Material, StudySettings] | None = None


def _start(material: Material, settings: StudySettings) -> None:
    global _held
    _held = (material, settings)


def _work(job: tuple[str, str, int, str]) -> Cell:
    if _held is None:
        raise CutError("a worker of the study was not given its material; start the study with run_study")
    return run_cell(*job, *_held)


def _summarise(
    policy: str, device: str, seed: int, cut: str, runs: Sequence[Sequence[Step]], s: StudySettings, fallbacks: int
) -> Cell:
    steps = [step for run in runs for step in run]
    hours = len(steps) * s.simulation.stride_ms / 1000.0 / HOUR_S
    latency: NDArray[np.float64] = np.array([step.consequence.latency_ms for step in steps])
    answered = [step.consequence.quality_loss for step in steps if not step.lost]
    changes = sum(a.cut != b.cut for run in runs for a, b in pairwise(run))
    used = Counter(str(step.cut) for step in steps)
    return Cell(
        policy=policy, device=device, seed=seed, cut=cut, reward=float(np.mean([step.reward for step in steps])),
        run_rewards=[float(np.mean([step.reward for step in run])) for run in runs],
        latency_ms={f"p{p}": float(np.percentile(latency, p, method="higher")) for p in (50, 95, 99)},
        uplink_mb_per_h=sum(step.uplink_bytes for step in steps) / 1e6 / hours,
        downlink_mb_per_h=sum(step.downlink_bytes for step in steps) / 1e6 / hours,
        marginal_j_per_h=sum(step.consequence.energy_mj for step in steps) / 1e3 / hours,
        quality_loss_points=100.0 * float(np.mean(answered)) if answered else math.nan,
        deadline_misses=float(np.mean(latency > s.simulation.objective.deadline_ms)),
        seen=float(np.mean([step.consequence.seen for step in steps])), changes_per_h=changes / hours,
        fallbacks=fallbacks / len(steps),
        cuts={name: count / len(steps) for name, count in used.most_common(6)},
    )  # fmt: skip


def plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells for JSON: infinite latencies become None."""
    rows = []
    for cell in cells:
        values = cell.as_dict()
        values["latency_ms"] = {k: (v if math.isfinite(v) else None) for k, v in cell.latency_ms.items()}
        values["run_rewards"] = [round(value, 4) for value in cell.run_rewards]
        rows.append(values)
    return rows
