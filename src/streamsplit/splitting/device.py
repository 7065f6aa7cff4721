"""Emulated devices: how much slower than the host they compute, and what a window costs them in energy.

The figures are published ones and fits to them; each row says where it comes from. `streamsplit profile` on the real
device replaces the factor. Energy is a model, P = P_idle + k_cpu u + P_conn [link up] and E_tx = e_MB MB, never a
measurement: a conclusion that flips within `RADIO_SWEEP_JOULE_PER_MB` is not a conclusion.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.config import Settings, nearest, section, setting
from streamsplit.errors import ConfigError

RADIO_SWEEP_JOULE_PER_MB = (0.3, 1.0, 3.5)


@dataclass(frozen=True, kw_only=True)
class Radio(Settings):
    """What a link costs in energy: per byte, while associated, and after each burst."""

    name: str = setting("wifi")
    joule_per_mb: float = setting(0.5, low=0.0)
    connected_w: float = setting(0.1, low=0.0)
    tail_s: float = setting(0.0, low=0.0)  # seconds at `connected_w` after the last byte of a burst
    burst_j: float = setting(0.0, low=0.0)  # fixed cost of a burst, where published instead of a tail
    basis: str = setting("")

    def transmit_mj(self, payload_bytes: float) -> float:
        """Marginal energy of sending `payload_bytes`, in mJ."""
        return self.joule_per_mb * payload_bytes / 1000.0


RADIOS: dict[str, Radio] = {
    radio.name: radio
    for radio in (
        Radio(name="wifi", joule_per_mb=0.5, connected_w=0.1, basis="Wi-Fi, Linux board (0.3-2.3 J/MB)"),
        Radio(name="wifi-esp32", joule_per_mb=0.3, connected_w=0.29, basis="Wi-Fi, ESP32-S3, RX stays on"),
        Radio(name="lte", joule_per_mb=0.61, connected_w=1.0, tail_s=11.0, basis="LTE, modern"),
        Radio(name="lte-2012", joule_per_mb=3.5, connected_w=1.29, burst_j=12.0, basis="LTE, 2012"),
    )
}


@dataclass(frozen=True, kw_only=True)
class DeviceProfile(Settings):
    """One row of the device table: device_ms = host single-thread process time x `factor`."""

    name: str = setting("host")
    factor: float = setting(1.0, low=1e-3, high=1e4)
    cores: int = setting(1, low=1, high=1024)
    idle_w: float = setting(0.0, low=0.0)
    cpu_w: float = setting(0.0, low=0.0)  # added at full load of all cores
    radio: Radio = section(Radio)
    basis: str = setting("")

    def compute_mj(self, device_ms: float) -> float:
        """Marginal energy of one core being busy for `device_ms` of the device's time, in mJ."""
        return self.cpu_w / self.cores * device_ms

    def energy_mj(self, device_ms: float, payload_bytes: float) -> float:
        """Marginal energy of one window, computing and sending, in mJ; idle power is nobody's choice and left out."""
        return self.compute_mj(device_ms) + self.radio.transmit_mj(payload_bytes)

    def power_w(self, cpu: float, link_up: bool = True) -> float:
        """Total power without transmission at load `cpu` (share of all cores, in [0, 1])."""
        return self.idle_w + self.cpu_w * cpu + (self.radio.connected_w if link_up else 0.0)

    def total_mj(self, elapsed_ms: float, cpu: float, sent_bytes: float, link_up: bool = True) -> float:
        """Total energy of a stretch of time, idle and radio included, in mJ."""
        return self.power_w(cpu, link_up) * elapsed_ms + self.radio.transmit_mj(sent_bytes)


_PI4 = "factor 11.7 (9.8-15) against one EPYC Zen 4 core"
DEVICES: dict[str, DeviceProfile] = {
    device.name: device
    for device in (
        # No row is published for the machine at hand: it borrows the M2's power, and its own time is the unit.
        DeviceProfile(name="host", factor=1.0, cores=8, idle_w=7.0, cpu_w=20.0, basis="this machine; power as m2"),
        DeviceProfile(name="pi4", factor=11.7, cores=4, idle_w=2.29, cpu_w=4.53, basis=f"{_PI4}; power: PowerJoular"),
        DeviceProfile(
            name="pi4-paper", factor=11.7, cores=4, idle_w=1.74, cpu_w=2.55, basis=f"{_PI4}; power: the paper's points"
        ),
        DeviceProfile(
            name="pi-zero-2w",
            factor=32.0,
            cores=4,
            idle_w=0.60,
            cpu_w=1.8,
            basis="factor +-25 %; idle 0.60 W, full about 2.5 W",
        ),
        DeviceProfile(
            name="jetson-nano", factor=11.6, cores=4, idle_w=2.5, cpu_w=3.5, basis="CPU only; weakest power row"
        ),
        DeviceProfile(name="m2", factor=1.3, cores=8, idle_w=7.0, cpu_w=20.0, basis="Apple M2 core; wall power"),
        # 13.4 MMAC of the default encoder at 130 MMAC/s (int8, vector instructions) against 3.1 ms on the host.
        DeviceProfile(
            name="esp32-s3",
            factor=33.0,
            cores=2,
            idle_w=0.13,
            cpu_w=0.12,
            radio=RADIOS["wifi-esp32"],
            basis="derived from 130 MMAC/s int8; datasheet power",
        ),
    )
}
ALIASES = {
    "raspberry_pi_4b": "pi4",
    "raspberry-pi-4b": "pi4",
    "raspberry_pi_4": "pi4",
    "raspberry_pi_zero_2w": "pi-zero-2w",
    "jetson_nano": "jetson-nano",
    "apple_m2": "m2",
    "esp32_s3": "esp32-s3",
}


def device_profile(name: str, *, factor: float | None = None, radio: str | None = None) -> DeviceProfile:
    """The device called `name` (or one of its longer names), with another factor or radio where given;
    raises ConfigError naming the nearest known one."""
    known = ALIASES.get(name, name)
    if known not in DEVICES:
        raise ConfigError(f"got device '{name}'; {nearest(name, [*DEVICES, *ALIASES])}")
    device = DEVICES[known]
    if radio is not None:
        if radio not in RADIOS:
            raise ConfigError(f"got radio '{radio}'; {nearest(radio, RADIOS)}")
        device = device.replace(radio=RADIOS[radio])
    return device if factor is None else device.replace(factor=factor)
