"""`DynamicSplittingAgent`: asks the same policy objects as the live runtime where to cut."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamsplit.config import nearest
from streamsplit.edge.readings import HostReadings, Readings
from streamsplit.edge.settings import DeviceSettings, EdgeSettings
from streamsplit.edge.tables import device_table
from streamsplit.errors import ConfigError
from streamsplit.facade.config import REWARDS, greedy_settings
from streamsplit.splitting.decision import Decision, Experience, Policy
from streamsplit.splitting.decision_log import Decided, DecisionLog, Judged
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.expected import share
from streamsplit.splitting.greedy import LEAST_FREE_CPU
from streamsplit.splitting.hindsight import Realised
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy import DEFAULT_POLICY, PolicySettings, learner_of, usable_policy
from streamsplit.splitting.steady import SteadySettings
from streamsplit.splitting.table import CutTable
from streamsplit.wire.frame import HEADER_BYTES

log = logging.getLogger(__name__)
REMEMBERED = 1024  # decisions in the log
SMOOTHING = 0.3  # weight of a new sample (v2, section 7)
# Names that `update_performance` takes: bandwidth in Mbit/s, latency and rtt in ms, the rest as in Observation.
HISTORIES = (
    "bandwidth", "latency", "rtt", "uncertainty", "cpu", "memory", "accuracy", "resource_usage", "privacy_risk",
)  # fmt: skip


class DynamicSplittingAgent:
    """Chooses cuts for one device from its readings and the performance it is told of.

    `config` is any object with (some of) `bandwidth_range` in Mbit/s, `latency_range` in ms, `split_reward_weights`,
    `device_type`, `window_frames` and `stride_frames`, `policy` (a name, by default the live device's) and
    `policy_file`. The table is the packaged one of `device_type`, unless another is given; a policy here is what it is
    everywhere: `decide(observation, table)`. Where a trained one cannot be used, the heuristic decides, and `problem`
    says why.
    """

    def __init__(
        self,
        config: Any = None,
        *,
        table: CutTable | None = None,
        policy: Policy | None = None,
        readings: Callable[[], Readings] | None = None,
        clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000.0,
    ) -> None:
        self.bandwidth_range = _range(config, "bandwidth_range", (0.5, 8.0))
        self.latency_range = _range(config, "latency_range", (50.0, 200.0))
        device_type = getattr(config, "device_type", "host")
        weights = dict(getattr(config, "split_reward_weights", REWARDS))
        interval_ms = 10.0 * getattr(config, "stride_frames", 50)
        settings = greedy_settings(weights, self.latency_range[1], interval_ms)
        self.table = table or device_table(EdgeSettings(device=DeviceSettings(type=device_type)))
        self.problem = ""
        if policy is None:
            wanted = PolicySettings(
                name=getattr(config, "policy", DEFAULT_POLICY), policy_file=getattr(config, "policy_file", ""),
                encoder=self.table.encoder, greedy=settings,
                steady=SteadySettings(whole_factor=10.0 * getattr(config, "window_frames", 100) / interval_ms),
            )  # fmt: skip
            policy, self.problem = usable_policy(wanted, self.table)
            if self.problem:
                log.warning("%s", self.problem)
        self.policy: Policy = policy
        self.running = False
        self._readings = readings or HostReadings()
        self._clock_ms = clock_ms
        self._averages: dict[str, float] = {}
        self._told_ms: dict[str, float] = {}
        self._last: Decision | None = None
        self._log = DecisionLog(device_profile(device_type), interval_ms=interval_ms)
        self._made: deque[Decided] = deque(maxlen=REMEMBERED)
        self._judged: dict[int, tuple[float, Judged | None]] = {}  # by number: latency, and what hindsight says
        self._answered = -1  # number of the newest decision whose latency is known

    async def start(self) -> None:
        """Takes the first readings; decisions before it work too."""
        self._readings()
        self.running = True

    async def stop(self) -> None:
        """Ends the run; what was learned of the link stays."""
        self.running = False

    async def get_split_decision(self) -> dict[str, Any]:
        """Where to cut the next window: split_point (block), encoding, confidence in [0, 1], reasoning."""
        decision = self.decide(self.observation())
        return {
            "split_point": decision.cut.block,
            "encoding": decision.cut.encoding.label,
            "cut": str(decision.cut),
            "confidence": decision.confidence,
            "reasoning": decision.reason,
            "alternatives": self._made[-1].plain(),
            "network_quality": self.get_network_quality(),
        }

    async def update_performance(self, performance_history: Mapping[str, Sequence[float]]) -> None:
        """Takes lists of what was measured, oldest first: 'bandwidth' in Mbit/s, 'rtt' (or 'latency') in ms,
        'uncertainty' in nats, 'cpu' and 'memory' in [0, 1] feed the next decisions. Latencies, from a window's end to
        its result, are also the outcomes of as many of the newest decisions: policies that learn learn from them, and
        `decision_log` judges by them. 'accuracy', 'resource_usage' and 'privacy_risk' are averaged only. Raises
        ConfigError for other names and for what is not a number.
        """
        samples: dict[str, list[float]] = {}
        for name, history in performance_history.items():
            if name not in HISTORIES:
                raise ConfigError(f"got performance '{name}'; {nearest(name, HISTORIES)}")
            try:
                samples[name] = [float(value) for value in history]
            except (TypeError, ValueError):
                raise ConfigError(f"performance '{name}': got {history!r}, expected a list of numbers") from None
            if not all(map(math.isfinite, samples[name])):
                raise ConfigError(f"performance '{name}': got NaN or infinity, expected finite numbers")
        now_ms = self._clock_ms()
        for name, values in samples.items():
            for value in values:
                known = self._averages.get(name)
                self._averages[name] = value if known is None else SMOOTHING * value + (1 - SMOOTHING) * known
            if values:
                self._told_ms[name] = now_ms
        self._learn(samples.get("latency", []))

    def decision_log(self) -> list[dict[str, Any]]:
        """The newest decisions, oldest first: cut, confidence, reasoning, expected cost, alternatives [[cut, cost], ..]
        and, where `update_performance` was told the latency, latency_ms, regret and the best cut in hindsight (None
        before). Costs and regret are in units of v2's reward."""
        rows = []
        for made in self._made:
            latency_ms, judged = self._judged.get(made.number, (None, None))
            rows.append({
                "number": made.number, "cut": str(made.cut), "confidence": made.confidence, "reasoning": made.reason,
                "expected": made.expected, "alternatives": made.plain(), "latency_ms": latency_ms,
                "regret": judged.regret if judged is not None else None,
                "best": str(judged.best) if judged is not None else None,
            })  # fmt: skip
        return rows

    @property
    def mean_regret(self) -> float:
        """Of all judged decisions; nan before the first."""
        return self._log.mean_regret

    def get_network_quality(self) -> float:
        """Share in [0, 1]: mean of where bandwidth and round trip lie in their ranges, 0.5 for one not known."""
        bandwidth, rtt = self._averages.get("bandwidth"), self._averages.get(self._delay)
        rate = 0.5 if bandwidth is None else _position(bandwidth, *self.bandwidth_range)
        delay = 0.5 if rtt is None else 1.0 - _position(rtt, *self.latency_range)
        return (rate + delay) / 2

    def decide(self, observation: Observation) -> Decision:
        """The policy's answer, remembered for the next observation."""
        self._last = self.policy.decide(observation, self.table)
        if len(self._made) == REMEMBERED:
            self._judged.pop(self._made[0].number, None)
        self._made.append(self._log.decided(observation, self._last, self.table))
        return self._last

    def observation(self, uncertainty: float = math.nan) -> Observation:
        """What is known now."""
        readings, told = self._readings(), self._averages
        now_ms = self._clock_ms()
        return Observation(
            uncertainty=told.get("uncertainty", math.nan) if math.isnan(uncertainty) else uncertainty,
            cpu=told.get("cpu", readings.cpu), memory=told.get("memory", readings.memory),
            battery=readings.battery, thermal=readings.thermal,
            bandwidth_bps=told.get("bandwidth", math.nan) * 1e6,
            bandwidth_age_ms=now_ms - self._told_ms.get("bandwidth", -math.inf),
            rtt_ms=told.get(self._delay, math.nan), rtt_age_ms=now_ms - self._told_ms.get(self._delay, -math.inf),
            last_cut=self._last.cut if self._last is not None else None,
        )  # fmt: skip

    def _learn(self, latencies_ms: Sequence[float]) -> None:
        """Latencies, oldest first, of the newest decisions that have none yet."""
        waiting = [made for made in self._made if made.number > self._answered]
        count = min(len(waiting), len(latencies_ms))
        learner = learner_of(self.policy)
        for made, latency_ms in zip(
            waiting[len(waiting) - count :], latencies_ms[len(latencies_ms) - count :], strict=True
        ):
            seen, row = made.observation, self.table.row(made.cut)
            edge_ms = min(row.edge_ms / max(1.0 - share(seen.cpu), LEAST_FREE_CPU), latency_ms)
            network_ms = latency_ms - edge_ms if made.cut.sends else math.nan
            if learner is not None:
                learner.learn(Experience(seen, made.cut, latency_ms, network_ms))
            size = row.payload_bytes + HEADER_BYTES if made.cut.sends else 0.0
            what = Realised(
                made.cut, latency_ms, network_ms, edge_ms, size, self._averages.get("bandwidth", math.nan) * 1e6,
                self._averages.get("rtt", math.nan), doubt=self._log.doubt(seen.uncertainty), last_cut=seen.last_cut,
            )  # fmt: skip
            self._judged[made.number] = (latency_ms, self._log.judge(made, what))
            self._answered = made.number

    @property
    def _delay(self) -> str:
        return "rtt" if "rtt" in self._averages else "latency"


def _range(config: Any, name: str, default: tuple[float, float]) -> tuple[float, float]:
    low, high = getattr(config, name, default)
    if not 0 <= low < high:
        raise ConfigError(f"'{name}': got ({low}, {high}), expected two numbers, the smaller first")
    return float(low), float(high)


def _position(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
