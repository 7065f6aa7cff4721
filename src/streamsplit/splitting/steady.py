"""What changing the cut costs once, and a policy that changes only where that pays."""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.config import Settings, setting
from streamsplit.splitting.cut import Cut, overlap_rank
from streamsplit.splitting.decision import Decision, Experience, LearningPolicy, Policy
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutRow, CutTable


@dataclass(frozen=True, kw_only=True)
class SteadySettings(Settings):
    """When a change that costs something is made."""

    enabled: bool = setting(True)
    whole_factor: float = setting(2.0, low=1.0)  # bytes of a whole window over those of one that continues: its overlap
    patience_windows: int = setting(10, low=1)  # a wish that lasts this long is followed whatever it costs


def extra_bytes(row: CutRow, last: Cut | None, whole_factor: float) -> float:
    """What the first window at `row` sends beside its usual payload: its overlap, where `last` left none there."""
    breaks = overlap_rank(row.cut) > overlap_rank(last)
    return row.payload_bytes * (whole_factor - 1.0) if breaks else 0.0


def fetch_bytes(row: CutRow, table: CutTable, blocks: int) -> float:
    """Weights that a device holding `blocks` of them (-1: all) has to fetch before it can compute to `row`."""
    if not 0 <= blocks < row.cut.block:
        return 0.0
    held = max((other.fetch_bytes for other in table.rows if other.cut.block <= blocks), default=0.0)
    return max(row.fetch_bytes - held, 0.0)


class SteadyPolicy:
    """Another policy's choice, but a change that costs something has to earn its price first.

    The price is what crosses once because of the change: the overlap of a window that goes up whole at block 0, and the
    weights of deeper blocks; counted as traffic and as delay. The device stays at its cut until what it would have
    gained by changing, window by window, comes to the price (the rule of renting skis: never more than twice the cost
    of knowing beforehand). A gain that exceeds the price at once is taken at once, so that steps of the link are
    followed in the next window; a wish taken back starts anew, so that conditions that flap do not make the cut flap.
    Policies that ask for something else than the expected cost does still have their way after `patience_windows`.

    Holds what was gained between calls. A trained policy does not need it: it was rewarded with the changes' true cost.
    """

    def __init__(
        self, policy: Policy, settings: SteadySettings | None = None, costs: GreedySettings | None = None
    ) -> None:
        self.policy = policy
        self.settings = settings or SteadySettings()
        self._estimator = GreedyPolicy(costs)
        self._gained = 0.0
        self._waited = 0

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The wrapped policy's cut, or the last one while the change has not earned its price."""
        wish = self.policy.decide(observation, table)
        last = observation.last_cut
        held = None if last is None else next((i for i, row in enumerate(table.rows) if row.cut == last), None)
        if held is None or last is None or wish.cut == last or not observation.link_up:
            return self._follow(wish)
        price = self.price(observation, table, table.row(wish.cut))
        if price <= 0.0:
            return self._follow(wish)
        total = self._estimator.expectation(observation, table).total
        gain = float(total[held] - total[table.cuts.index(wish.cut)])
        self._gained += max(gain, 0.0)
        self._waited += 1
        if self._gained >= price or self._waited >= self.settings.patience_windows:
            return self._follow(wish)
        return Decision(
            last, wish.confidence,
            f"stays at {last}: going to {wish.cut} costs {price:.2f} once, of which {self._gained:.2f} are earned",
        )  # fmt: skip

    def learn(self, experience: Experience) -> None:
        """Passes a window's outcome on to a policy that learns."""
        if isinstance(self.policy, LearningPolicy):
            self.policy.learn(experience)

    def price(self, observation: Observation, table: CutTable, row: CutRow) -> float:
        """What going to `row` costs once, in the units of the expected cost; 0 for most changes."""
        extra = extra_bytes(row, observation.last_cut, self.settings.whole_factor)
        extra += fetch_bytes(row, table, observation.blocks)
        if not extra:
            return 0.0
        s = self._estimator.settings
        # Nobody measures the downlink, which is the faster one nearly everywhere: weights count at the uplink's rate.
        delay_ms = extra * 8000.0 / self._estimator.bandwidth_bps(observation)
        return s.traffic * extra / s.traffic_bytes + s.latency * min(delay_ms, s.deadline_ms) / s.latency_ms

    def _follow(self, wish: Decision) -> Decision:
        self._gained, self._waited = 0.0, 0
        return wish
