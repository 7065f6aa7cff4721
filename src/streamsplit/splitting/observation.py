"""What a policy sees when it chooses a cut."""

from __future__ import annotations

import math
from typing import NamedTuple

from streamsplit.splitting.cut import Cut


class Observation(NamedTuple):
    """One device at one moment; shares are in [0, 1], an unknown number is nan."""

    uncertainty: float = math.nan  # nats
    cpu: float = 0.0  # load of all cores
    memory: float = 0.0
    battery: float = 1.0  # 1 = full or on mains
    thermal: float = 0.0
    bandwidth_bps: float = math.nan  # uplink
    bandwidth_age_ms: float = math.inf  # since the newest sample in the estimate
    rtt_ms: float = math.nan  # of an unloaded link
    rtt_age_ms: float = math.inf
    backlog_bytes: int = 0  # accepted, not yet acknowledged
    last_cut: Cut | None = None
    link_up: bool = True
    blocks: int = -1  # encoder blocks whose weights are on the device; -1 = all of them
    waiting_ms: float = 0.0  # since the oldest frame without an answer was handed to the link; 0 = nothing is under way
    last_rtt_ms: float = math.nan  # the newest round trip, before any smoothing
    power_mw: float = 0.0  # marginal power of the recent windows, computing and sending; see constraints.py
    room: int = -1  # blocks 1..n that fit at once: those beyond are fetched for every window; -1 = all of them
