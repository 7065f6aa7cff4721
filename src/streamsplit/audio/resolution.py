"""When to compute features at reduced resolution: pressure on the device, and a threshold with hysteresis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError
from streamsplit.wire.media import Resolution


def pressure(cpu: float, memory: float, battery: float = 1.0, thermal: float = 0.0) -> float:
    """R = 0.5 cpu + 0.3 memory + 0.15 (1 - battery) + 0.05 thermal, in 0..1; inputs are clipped to 0..1 (v1 App. C)."""
    cpu, memory, battery, thermal = (min(1.0, max(0.0, value)) for value in (cpu, memory, battery, thermal))
    return 0.5 * cpu + 0.3 * memory + 0.15 * (1.0 - battery) + 0.05 * thermal


@dataclass(frozen=True, kw_only=True)
class ResolutionSettings(Settings):
    """Reduced above threshold + margin_up, full again below threshold - margin_down (v1 App. B)."""

    threshold: float = setting(0.70, low=0.05, high=0.95)
    margin_up: float = setting(0.03, low=0.0, high=0.3)
    margin_down: float = setting(0.05, low=0.0, high=0.3)
    adaptive: bool = setting(False)
    smoothing: float = setting(0.9, low=0.0, high=0.999)  # weight of the past in the load that adapts the threshold
    lowest_threshold: float = setting(0.5, low=0.05, high=0.95)
    highest_threshold: float = setting(0.9, low=0.05, high=0.95)

    def check(self) -> None:
        """Refuses bounds that do not hold the threshold."""
        if not self.lowest_threshold <= self.threshold <= self.highest_threshold:
            allowed = f"{self.lowest_threshold}..{self.highest_threshold}"
            raise ConfigError(f"'threshold': got {self.threshold}, allowed {allowed} (lowest to highest_threshold)")


class ResolutionState(NamedTuple):
    """Between two steps: the resolution in force, the threshold, and the smoothed pressure that adapts it."""

    resolution: Resolution
    threshold: float
    smoothed: float


class ResolutionPolicy:
    """Chooses the resolution from the pressure, with at most one switch per crossing of the band."""

    def __init__(self, settings: ResolutionSettings | None = None) -> None:
        self.settings = settings or ResolutionSettings()

    def initial(self) -> ResolutionState:
        """Full resolution, the configured threshold."""
        return ResolutionState(Resolution.FULL, self.settings.threshold, 0.0)

    def step(
        self, pressure: float, state: ResolutionState, quality_fine: bool = True
    ) -> tuple[Resolution, ResolutionState]:
        """The resolution for the next windows. A NaN pressure (a sensor failed) keeps what is in force.

        With `adaptive`, the threshold rises by 2 % while the smoothed pressure is below the band and `quality_fine`,
        and falls by 1 % while it is above, within its bounds.
        """
        if pressure != pressure:
            return state.resolution, state
        settings = self.settings
        resolution, threshold, smoothed = state
        smoothed = settings.smoothing * smoothed + (1.0 - settings.smoothing) * pressure
        if settings.adaptive:
            if smoothed > threshold + settings.margin_up:
                threshold *= 0.99
            elif smoothed < threshold - settings.margin_down and quality_fine:
                threshold *= 1.02
            threshold = min(settings.highest_threshold, max(settings.lowest_threshold, threshold))
        if pressure > threshold + settings.margin_up:
            resolution = Resolution.REDUCED
        elif pressure < threshold - settings.margin_down:
            resolution = Resolution.FULL
        return resolution, ResolutionState(resolution, threshold, smoothed)
