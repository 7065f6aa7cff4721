"""What a running device shows of itself: a look for its owner, STATS for the server, the summary of a run."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Sequence

from streamsplit.edge.client import EdgeClient
from streamsplit.edge.counters import Counters, EdgeStatus, RunSummary
from streamsplit.edge.inlet import AudioInlet
from streamsplit.edge.model import DeviceModel
from streamsplit.edge.monitor import ResourceMonitor
from streamsplit.edge.outages import MICROPHONE, Outages
from streamsplit.edge.policies import DevicePolicy
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.readings import Readings
from streamsplit.splitting.link import LinkEstimate
from streamsplit.wire.messages import Stats


class StatusView:
    """Reads a device's parts and changes none; `client` is None on a device without a server."""

    def __init__(
        self,
        device_id: str,
        model: DeviceModel,
        queue: OfflineQueue,
        inlet: AudioInlet,
        monitor: ResourceMonitor,
        policies: DevicePolicy,
        counters: Counters,
        *,
        client: Callable[[], EdgeClient | None],
        link: Callable[[], LinkEstimate],
        ended: Callable[[], bool],
        elapsed_s: Callable[[], float],
        outages: Sequence[Outages] = (),
        stride_ms: float = 500.0,
    ) -> None:
        self._device_id = device_id
        self._model = model
        self._queue = queue
        self._inlet = inlet
        self._monitor = monitor
        self._policies = policies
        self._counters = counters
        self._client, self._link = client, link
        self._ended, self._elapsed_s = ended, elapsed_s
        self._outages, self._stride_ms = outages, stride_ms

    def status(self) -> EdgeStatus:
        """One look at the device; safe from any thread."""
        counters, state, link = self._counters, self._monitor.state, self._link()
        client = self._client()
        connection = "off" if client is None else "open" if client.is_open else "connecting"
        return EdgeStatus(
            device_id=self._device_id, connection="ended" if self._ended() else connection,
            elapsed_s=self._elapsed_s(), windows_seen=counters.windows_seen,
            windows_sent=counters.windows_sent, windows_skipped=counters.windows_skipped,
            windows_dropped=counters.windows_dropped, windows_rejected=counters.windows_rejected,
            results=counters.results, queue_windows=self._queue.pending, queue_bytes=self._queue.pending_bytes,
            cut=counters.cut, resolution=int(state.resolution), cpu=state.readings.cpu,
            bandwidth_bps=link.bandwidth_bps, rtt_ms=link.rtt_ms, edge_ms=counters.edge_ms,
            latency_ms=counters.latency_ms, uncertainty=counters.uncertainty, loss=counters.loss,
            effective_rank=counters.effective_rank, learner_steps=counters.learner_steps,
            uplink_bytes=client.bytes.up if client else 0, downlink_bytes=client.bytes.down if client else 0,
            energy_mj=counters.energy_mj, revision=self._model.revision, dropped_audio_ms=self._inlet.dropped_ms,
            problem=counters.last_problem, policy=self._policies.name, decisions=counters.decisions,
            cut_changes=counters.cut_changes, fallbacks=self._policies.fallbacks, regret=counters.regret,
            gradients_asked=counters.gradients_asked, gradients_applied=counters.gradients_applied,
            collapsed=counters.collapsed, held_blocks=self._model.held_blocks,
            weight_bytes=self._model.received_bytes, windows_missed=counters.windows_missed + self._missing,
            **ChainMap(*(outages.figures for outages in self._outages)),
        )  # fmt: skip

    @property
    def _missing(self) -> int:
        """Windows that the outage under way has cost so far; those of past ones are counted."""
        gone_s = sum(outages.under_way_s for outages in self._outages if outages.device == MICROPHONE)
        return int(1000.0 * gone_s / self._stride_ms)

    def stats(self) -> Stats:
        """The device's STATS message, as of now."""
        return stats_message(self.status(), self._monitor.state.readings)

    def summary(self) -> RunSummary:
        """What the run has come to."""
        client = self._client()
        up, down = client.bytes.packet_bytes if client is not None else (0, 0)
        return RunSummary(
            self.status(), dict(self._counters.cuts), self._queue.next_sequence - 1, self._queue.epoch,
            self._queue.pending, up, down,
        )  # fmt: skip


def stats_message(status: EdgeStatus, readings: Readings) -> Stats:
    """STATS of one look; shares lie within 0 and 1, and link and latency are 0 while they are not known."""
    return Stats(
        cpu=_share(readings.cpu), memory=_share(readings.memory), battery=_share(readings.battery),
        thermal=_share(readings.thermal), bandwidth_bps=_known(status.bandwidth_bps), rtt_ms=_known(status.rtt_ms),
        queue_windows=status.queue_windows, queue_bytes=status.queue_bytes, windows_seen=status.windows_seen,
        windows_sent=status.windows_sent, windows_skipped=status.windows_skipped,
        windows_dropped=status.windows_dropped, uplink_bytes=status.uplink_bytes,
        downlink_bytes=status.downlink_bytes, latency_ms=_known(status.latency_ms), cut=status.cut,
        resolution=status.resolution, uncertainty=status.uncertainty, loss=status.loss,
        effective_rank=status.effective_rank, learner_steps=status.learner_steps, energy_mj=status.energy_mj,
        revision=status.revision, policy=status.policy, cut_changes=status.cut_changes,
        fallbacks=status.fallbacks, regret=status.regret, collapsed=status.collapsed,
    )  # fmt: skip


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def _known(value: float) -> float:
    return value if math.isfinite(value) and value >= 0 else 0.0
