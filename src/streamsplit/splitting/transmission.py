"""Selective transmission: which windows are worth sending at all (v1 section 6, with v2's uncertainty)."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from streamsplit.config import Settings, setting
from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.splitting.observation import Observation


class Transmission(Enum):
    """What becomes of a window."""

    SEND = "send"  # as the policy's cut says (v1: embedding and gradient)
    EMBEDDING_ONLY = "embedding-only"  # the link is poor
    KEEP = "keep"  # nothing crosses


class GateDecision(NamedTuple):
    """What becomes of a window, the threshold it was held against (nats; nan in the warm-up), and why."""

    action: Transmission
    threshold: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class GateSettings(Settings):
    """Thresholds of the gate; rates in bits per second."""

    enabled: bool = setting(True)
    version: str = setting("v2", choices=("v1", "v2"))  # v1: base fixed after the warm-up; v2: follows the stream
    percentile: float = setting(70.0, low=0.0, high=100.0)
    warm_up_windows: int = setting(50, low=1)
    memory_windows: int = setting(256, low=8)  # v2: the percentile is taken over this many newest windows
    low_bps: float = setting(0.5e6, low=0.0)  # N_min: below it an embedding only
    high_bps: float = setting(8e6, low=1.0)  # N_max
    critical_bps: float = setting(0.1e6, low=0.0)  # N_crit: below it nothing
    low_battery: float = setting(0.2, low=0.0, high=1.0)  # B_min
    high_battery: float = setting(1.0, low=0.0, high=1.0)  # B_max
    longest_silence_windows: int = setting(20, low=0)  # one window crosses after this many kept; 0 = no limit

    def check(self) -> None:
        """The ranges must not be empty and the rates in order."""
        if not self.critical_bps <= self.low_bps < self.high_bps:
            raise ConfigError(
                f"got critical_bps {self.critical_bps:g}, low_bps {self.low_bps:g}, high_bps {self.high_bps:g}; "
                "expected critical_bps <= low_bps < high_bps"
            )
        if self.low_battery >= self.high_battery:
            raise ConfigError(f"'low_battery': got {self.low_battery}, expected less than {self.high_battery}")


class UncertaintyGate:
    """Sends what the memory is unsure about: U > U_th, and the link can carry it.

    U_th = U_base (1 + 0.5 (N_max - N)/(N_max - N_min) + 0.5 (B_max - B)/(B_max - B_min)), each fraction in [0, 1],
    U_base = 70th percentile of a warm-up (v1). v2's uncertainty is an entropy that drifts as the mixture learns, so
    there U_base is the percentile of the newest windows and link and battery do not raise it (at U_base near log C
    twice the base can never be reached); the two rate limits remain. During the warm-up everything crosses. Departure
    from the paper: after `longest_silence_windows` kept windows one crosses anyway, on a poor link as an embedding, so
    that neither the server nor the link estimate starves.
    """

    def __init__(self, settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()
        memory = self.settings.memory_windows if self.settings.version == "v2" else self.settings.warm_up_windows
        self._recent: deque[float] = deque(maxlen=memory)
        self._ordered: list[float] = []  # the same, sorted: the percentile of every window costs a look
        self._seen = 0
        self._kept = 0
        self._base = math.nan
        self._fixed = math.nan

    def restart(self) -> None:
        """Warms up anew: the embedding space has changed, and uncertainties before and after do not compare."""
        self._recent.clear()
        self._ordered.clear()
        self._seen, self._base = 0, math.nan

    def fix_threshold(self, threshold: float) -> None:
        """A threshold set from outside (the server's POLICY message); nan gives it back to the gate."""
        self._fixed = threshold

    def state(self) -> dict[str, Any]:
        """What a restart needs so as not to warm up anew; plain values."""
        return {"version": self.settings.version, "seen": self._seen, "base": self._base, "recent": list(self._recent)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`; raises CheckpointError, before any change, if it does not fit these settings."""
        try:
            seen, base = int(state["seen"]), float(state["base"])
            recent = [float(value) for value in state["recent"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the gate's saved state is damaged ({error!r}); it warms up anew") from None
        if state.get("version") != self.settings.version:
            raise CheckpointError(
                f"got the state of a {state.get('version')} gate, expected {self.settings.version}; it warms up anew"
            )
        self._seen, self._base = seen, base
        self._recent.clear()
        self._recent.extend(recent)
        self._ordered = sorted(self._recent)

    def threshold(self, observation: Observation) -> float:
        """U_th at this moment, nats; nan during the warm-up."""
        if not math.isnan(self._fixed):
            return self._fixed
        if self._seen < self.settings.warm_up_windows:
            return math.nan
        if self.settings.version == "v2":
            return self._percentile()
        s = self.settings
        bps = observation.bandwidth_bps if math.isfinite(observation.bandwidth_bps) else s.high_bps
        link = min(max((s.high_bps - bps) / (s.high_bps - s.low_bps), 0.0), 1.0)
        battery = min(max((s.high_battery - observation.battery) / (s.high_battery - s.low_battery), 0.0), 1.0)
        return self._base * (1.0 + 0.5 * link + 0.5 * battery)

    def decide(self, observation: Observation) -> GateDecision:
        """What becomes of the window whose uncertainty the observation holds; call once per window."""
        s = self.settings
        if not s.enabled:
            return GateDecision(Transmission.SEND, math.nan, "selective transmission is off")
        threshold = self.threshold(observation)
        self._remember(observation.uncertainty)
        carried = self._carried(observation)
        if s.longest_silence_windows and self._kept >= s.longest_silence_windows:
            forced = Transmission.EMBEDDING_ONLY if carried is Transmission.KEEP else carried
            return self._answer(forced, threshold, f"{self._kept} windows kept")
        if carried is Transmission.KEEP:
            return self._answer(carried, threshold, f"link at {observation.bandwidth_bps / 1e6:.2f} Mbit/s")
        if math.isnan(threshold):
            return self._answer(carried, threshold, "warm-up")
        if math.isnan(observation.uncertainty):
            return self._answer(carried, threshold, "uncertainty unknown")
        if observation.uncertainty > threshold:
            return self._answer(carried, threshold, f"uncertainty {observation.uncertainty:.2f} > {threshold:.2f}")
        reason = f"uncertainty {observation.uncertainty:.2f} <= {threshold:.2f}"
        return self._answer(Transmission.KEEP, threshold, reason)

    def _carried(self, observation: Observation) -> Transmission:
        """What the link can take; an unknown rate, or a link that is down (the queue waits), stops nothing."""
        bps = observation.bandwidth_bps
        if not observation.link_up or not math.isfinite(bps) or bps > self.settings.low_bps:
            return Transmission.SEND
        return Transmission.EMBEDDING_ONLY if bps > self.settings.critical_bps else Transmission.KEEP

    def _answer(self, action: Transmission, threshold: float, reason: str) -> GateDecision:
        self._kept = self._kept + 1 if action is Transmission.KEEP else 0
        return GateDecision(action, threshold, reason)

    def _remember(self, uncertainty: float) -> None:
        if math.isnan(uncertainty):
            return
        warming = self._seen < self.settings.warm_up_windows
        self._seen += 1
        if self.settings.version == "v2" or warming:
            if len(self._recent) == self._recent.maxlen:
                del self._ordered[bisect_left(self._ordered, self._recent[0])]
            self._recent.append(uncertainty)
            insort(self._ordered, uncertainty)
        if self.settings.version == "v1" and self._seen == self.settings.warm_up_windows:
            self._base = self._percentile()

    def _percentile(self) -> float:
        """Of what is remembered, interpolated between neighbours as numpy does it, operation for operation."""
        ordered = self._ordered
        place = (len(ordered) - 1) * (self.settings.percentile / 100.0)
        below = math.floor(place)
        low, high, share = ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below
        return low + (high - low) * share if share < 0.5 else high - (high - low) * (1.0 - share)
