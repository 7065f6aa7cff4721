"""The demo's fleet: three emulated devices, their links, their sound, and the settings files that start them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from streamsplit.audio.files import AUDIO_SUFFIXES
from streamsplit.errors import AudioError
from streamsplit.evaluation.datasets import Clip
from streamsplit.network.trace import BandwidthTrace, constant_trace, generate_trace, read_trace, trace_runs
from streamsplit.weights.pretrained import StartSettings, architecture

LEARN_LINK_BPS = 100e6  # fast-forward has no real time to shape: the learning phase has a good link


RUN_STEP = 37  # from one device's run to the next one's in a file of measured drives


@dataclass(frozen=True, kw_only=True)
class FleetDevice:
    """One emulated device: which kind, on which link, under which other load."""

    id: str
    type: str  # row of splitting/device.py
    radio: str
    network: str  # for people
    level: float  # quantile of the link among measured mobile links
    rate_scale: float
    rtt_scale: float
    outage_share: tuple[float, float] | None = None  # (start, length) as shares of the live phase
    bursts: Mapping[str, float] | None = None
    memory: float = 0.4  # share in use

    def link(self, seconds: float, seed: int, trace_file: str = "") -> BandwidthTrace:
        """The uplink that this device gets in the live phase: generated, or a run of a file of measured drives."""
        if trace_file:
            runs = trace_runs(trace_file)
            trace = read_trace(trace_file, runs[RUN_STEP * seed % len(runs)] if runs else None).scaled(self.rate_scale)
        else:
            trace = generate_trace(
                seconds + 30, seed, level=self.level, rate_scale=self.rate_scale, rtt_scale=self.rtt_scale
            )
        if self.outage_share is None or sum(self.outage_share) * seconds >= trace.duration_s:
            return trace
        start, length = self.outage_share
        return trace.with_outage(start * seconds, length * seconds)


FLEET = (
    FleetDevice(
        id="pi4-wifi",
        type="pi4",
        radio="wifi",
        network="good Wi-Fi",
        level=0.9,
        rate_scale=1.0,
        rtt_scale=0.15,
        bursts={"share": 0.8, "period_s": 30.0, "length_s": 8.0, "offset_s": 15.0},
    ),
    FleetDevice(
        id="zero-4g", type="pi-zero-2w", radio="lte", network="4G, moving", level=0.5, rate_scale=0.05, rtt_scale=1.0
    ),
    FleetDevice(
        id="pi4-busy",
        type="pi4",
        radio="lte",
        network="edge of coverage, one outage",
        level=0.4,
        rate_scale=0.02,
        rtt_scale=1.5,
        outage_share=(0.45, 0.12),
        bursts={"share": 0.95, "period_s": 20.0, "length_s": 8.0, "offset_s": 6.0},
        memory=0.8,
    ),
)


def learn_link() -> BandwidthTrace:
    """The link of the fast-forward phase."""
    return constant_trace(LEARN_LINK_BPS, rtt_ms=2.0)


def share_clips(clips: Sequence[Clip], folders: Sequence[Path]) -> list[int]:
    """Deals clips out to device folders (links, `<label>/<file>`), label by label; returns how many each one got."""
    if len(clips) < len(folders):
        raise AudioError(f"got {len(clips)} clips to learn from, expected at least {len(folders)}, one a device")
    counts = [0] * len(folders)
    for index, clip in enumerate(sorted(clips, key=lambda clip: (clip.label, clip.path.name))):
        if clip.path.suffix.lower() not in AUDIO_SUFFIXES:
            continue
        which = index % len(folders)
        target = folders[which] / clip.label / f"{index:05d}-{clip.path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(clip.path.resolve())
        counts[which] += 1
    return counts


def device_settings(
    device: FleetDevice,
    *,
    folder: Path,
    url: str,
    token: str,
    source: str,
    seed: int,
    encoder: str,
    journal: Path,
    loop: bool,
    pretrained: str = "",
) -> dict[str, Any]:
    """The sections of the device's YAML file for one phase."""
    emulation: dict[str, Any] = {"enabled": True, "memory": device.memory}
    if device.bursts:
        emulation["bursts"] = dict(device.bursts)
    return {
        "device": {
            "id": device.id,
            "type": device.type,
            "radio": device.radio,
            "state_dir": str(folder),
            "journal": str(journal),
        },
        "audio": {"source": source, "seed": seed, "loop": loop},
        "encoder": _encoder_section(encoder, pretrained),
        "server": {"url": url, "token": token, "first_backoff_s": 0.2, "longest_backoff_s": 2.0},
        "emulation": emulation,
        "monitor": {"report_s": 2.0},
    }


def server_settings(
    *, folder: Path, port: int, token: str, encoder: str, seed: int, pretrained: str = ""
) -> dict[str, Any]:
    """The sections of the server's YAML file: learns quickly, since the demo is short."""
    return {
        "server": {"port": port, "data_dir": str(folder)},
        "auth": {"shared_token": token},
        "encoder": _encoder_section(encoder, pretrained),
        "training": {
            "batch_size": 64,
            "warm_start_windows": 256,
            "step_interval_s": 0.2,
            "publish_steps": 20,
            "publish_interval_s": 45.0,
            "checkpoint_interval_s": 10.0,
            "seed": seed,
        },
    }


def start_settings(encoder: str, pretrained: str = "") -> StartSettings:
    """The encoder of one name from its seed, or the published one, whose own name counts then."""
    return StartSettings().starting_from(pretrained) if pretrained else StartSettings(name=encoder)


def _encoder_section(encoder: str, pretrained: str) -> dict[str, Any]:
    if not pretrained:
        return {"name": encoder}
    values = architecture(start_settings(encoder, pretrained)) | {"pretrained": pretrained}
    return values | {"bottlenecks": list(values["bottlenecks"])}


def write_yaml(path: Path, sections: Mapping[str, Any]) -> Path:
    """Saves settings as the file that a command is started with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(sections), sort_keys=False), encoding="utf-8")
    return path
