"""What a device has done so far, and what it shows of itself."""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

_WEIGHT = 0.2  # of a new value in the moving averages


@dataclass
class Counters:
    """Counts of one run; changed by several threads, so `with counters.lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    windows_seen: int = 0
    windows_sent: int = 0  # accepted into the queue
    windows_skipped: int = 0  # kept on the device by the policy or the gate
    windows_dropped: int = 0  # refused by a full queue or a full disk
    windows_failed: int = 0  # could not be processed or packed
    windows_rejected: int = 0  # the server recorded them as rejected
    windows_missed: int = 0  # there was no sound for: it was dropped, or the microphone was gone
    results: int = 0
    cuts: Counter[str] = field(default_factory=Counter)
    energy_mj: float = 0.0
    edge_ms: float = math.nan  # moving average
    latency_ms: float = math.nan  # moving average, capture to result
    uncertainty: float = math.nan
    loss: float = math.nan
    effective_rank: float = math.nan
    learner_steps: int = 0
    collapsed: bool = False  # the alarm is on
    gradients_asked: int = 0  # windows sent with the wish for the server's gradient
    gradients_applied: int = 0  # gradients that came and went into the accumulation
    gradients_late: int = 0  # that came for no window waiting: too late, twice, or never asked for
    gradients_stale: int = 0  # of an embedding space that was replaced meanwhile
    gradients_refused: int = 0  # damaged, of a wrong shape, not finite
    cut: str = ""
    decisions: int = 0
    cut_changes: int = 0
    judged: int = 0  # decisions whose outcome is known
    regret: float = math.nan  # their mean cost above the best row's in hindsight, in units of the reward
    last_problem: str = ""  # the newest failure that did not stop the device

    def average(self, name: str, value: float) -> None:
        """Moves an average; the caller holds the lock."""
        old = getattr(self, name)
        setattr(self, name, value if math.isnan(old) else old + _WEIGHT * (value - old))


class EdgeStatus(NamedTuple):
    """One look at a running device, for a live table."""

    device_id: str
    connection: str  # 'open', 'connecting', 'off' (no server), 'ended'
    elapsed_s: float
    windows_seen: int
    windows_sent: int
    windows_skipped: int
    windows_dropped: int
    windows_rejected: int
    results: int
    queue_windows: int
    queue_bytes: int
    cut: str
    resolution: int
    cpu: float
    bandwidth_bps: float
    rtt_ms: float
    edge_ms: float
    latency_ms: float
    uncertainty: float
    loss: float
    effective_rank: float
    learner_steps: int
    uplink_bytes: int
    downlink_bytes: int
    energy_mj: float
    revision: str
    dropped_audio_ms: float
    problem: str
    policy: str = ""  # what chooses the cuts, such as 'greedy' or 'ppo v3, pushed'
    decisions: int = 0
    cut_changes: int = 0
    fallbacks: int = 0  # decisions made in the policy's place
    regret: float = math.nan  # mean, in units of the reward
    gradients_asked: int = 0
    gradients_applied: int = 0
    collapsed: bool = False  # the alarm is on: the embeddings fall onto few directions
    held_blocks: int = -1  # of the encoder, in memory; -1: all there are
    weight_bytes: int = 0  # received on the weight stream's sockets
    windows_missed: int = 0  # there was no sound for: it was dropped, or the microphone is or was gone
    microphone_outages: int = 0
    microphone_gone_s: float = 0.0
    loudspeaker_outages: int = 0
    loudspeaker_gone_s: float = 0.0


class RunSummary(NamedTuple):
    """What a run comes to; `cuts` counts the windows by the cut they were sent at (or kept at)."""

    status: EdgeStatus
    cuts: dict[str, int]
    accepted_through: int  # every sequence up to here was accepted in this epoch
    epoch: int
    left_in_queue: int
    uplink_packet_bytes: int  # with an estimate of TCP/IP headers
    downlink_packet_bytes: int
