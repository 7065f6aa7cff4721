"""Under what conditions a simulated device works: its windows, processor, battery, connection, server, uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.config import Settings, section, setting
from streamsplit.splitting.objective import ObjectiveSettings
from streamsplit.wire.limits import CLIENT_SETTINGS


@dataclass(frozen=True, kw_only=True)
class SimulationSettings(Settings):
    """How the device, its surroundings and the server behave; defaults as in the live runtime where it has the same."""

    stride_ms: float = setting(500.0, low=10.0)
    length_ms: float = setting(1000.0, low=10.0)
    objective: ObjectiveSettings = section(ObjectiveSettings)
    buffer_ms: float = setting(5_000.0, low=0.0)  # sound that waits for the processor; a window beyond it is lost
    smoothing: float = setting(0.3, low=0.0, high=1.0)  # of the load monitor, ten samples a second
    memory: float = setting(0.4, low=0.0, high=1.0)
    thermal_time_s: float = setting(60.0, low=1.0)
    energy_window_s: float = setting(60.0, low=1.0)  # over which `power_mw` is a mean; as in constraints.py
    throttle_at: float = setting(0.85, low=0.0)  # thermal pressure at which the processor slows down ...
    throttle_speed: float = setting(0.6, low=0.05, high=1.0)  # ... to this share; 0.05 below it is fast again
    battery_wh: float = setting(0.0, low=0.0)  # 0 = on mains
    battery_level: float = setting(1.0, low=0.0, high=1.0)
    blocks: int = setting(-1, low=-1)  # encoder blocks held at the start; -1 = all
    silence_timeout_ms: float = setting(30_000.0, low=1.0)
    server_load: float = setting(1.0, low=0.0)  # the server's time over the table's: contention less batching
    server_wait_ms: float = setting(1.5, low=0.0)  # mean wait for a micro-batch
    ack_delay_ms: float = setting(25.0, low=0.0)
    result_ack_ms: float = setting(float(CLIENT_SETTINGS.ack_delay_ms), low=0.0)  # 0 = never
    ping_interval_ms: float = setting(float(CLIENT_SETTINGS.ping_interval_ms), low=1.0)
    probe_lead_ms: float = setting(200.0, low=0.0)  # a probe goes out so long before a window ends; 0 = none does
    uncertainty_known: bool = setting(True)  # False: policies are not told, as before a model has seen enough
    uncertainty_mean: float = setting(0.5, low=0.0, high=1.0)  # as a share of log C
    uncertainty_sd: float = setting(0.2, low=0.0)
    uncertainty_memory: float = setting(0.7, low=0.0, high=0.999)  # autocorrelation from one window to the next
