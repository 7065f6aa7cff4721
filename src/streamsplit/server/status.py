"""What a server tells of itself: the JSON of /api/status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streamsplit.server.fleet import finite, percentiles

if TYPE_CHECKING:
    from streamsplit.server.service import StreamServer

MAX_HISTORIES = 32  # devices whose sparkline the status carries


def status_of(server: StreamServer, events: list[dict[str, Any]], totals: dict[str, int]) -> dict[str, Any]:
    """Devices, totals, latencies, revision and refiner as they are; `events` and `totals` are the store's."""
    devices = sorted(server.gateway.devices.values(), key=lambda d: (not d.connected, d.id))
    progress = server.progress
    not_ready = server.not_ready()
    return {
        "unix_s": time.time(),
        "uptime_s": time.time() - server.started_unix_s,
        "ready": not not_ready,
        "not_ready": not_ready,
        "revision": server.revision,
        "space": server.space,
        "policy_version": server.policies.version,
        "revisions": int(server.metrics.revisions._value.get()),
        "latency_ms": percentiles(server.gateway.latencies_ms),
        "loop_lag_ms": round(server.loop_lag_ms, 3),
        "compute_waiting": server.compute.waiting,
        "totals": {
            "devices": len(devices),
            "devices_connected": server.gateway.connected,
            "windows": sum(device.windows - device.rejected for device in devices),
            "rejected": sum(device.rejected for device in devices),
            "skipped": sum(device.skipped for device in devices),
            "uplink_bytes": sum(device.uplink_bytes for device in devices),
            "downlink_bytes": sum(device.downlink_bytes for device in devices),
            "stored_windows": totals["windows"],
            "stored_rejected": totals["rejected"],
        },
        "refiner": {
            "state": server.refiner_state,
            "steps": progress.step if progress else 0,
            "loss": finite(progress.loss) if progress else None,
            "task": finite(progress.task) if progress else None,
            "wasserstein": finite(progress.wasserstein) if progress else None,
            "laplacian": finite(progress.laplacian) if progress else None,
            "effective_rank": finite(progress.effective_rank) if progress else None,
            "alignment": {device: finite(distance) for device, distance in server.alignment.items()},
            "step_ms": progress.step_ms if progress else None,
            "collected": progress.collected if progress else 0,
            "samples_dropped": server.refiner.dropped,
            "last_checkpoint_unix_s": server.last_checkpoint_unix_s,
        },
        "dialogue": server.dialogues.status(),
        "devices": [device.as_json(history=at < MAX_HISTORIES) for at, device in enumerate(devices)],
        "events": events,
    }
