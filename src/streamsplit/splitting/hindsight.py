"""What every cut would have cost for a window, once it is known how one of them went."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.splitting.cut import Cut, overlap_rank
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.expected import CutArrays
from streamsplit.splitting.objective import ObjectiveSettings
from streamsplit.splitting.table import CutTable
from streamsplit.wire.frame import HEADER_BYTES

Floats = NDArray[np.float64]
LEAST_SAMPLE_BYTES = 1200  # a smaller frame's transmission drowns in jitter and says nothing about the rate
ASSUMED_BPS = 1e6
ASSUMED_RTT_MS = 80.0


class Realised(NamedTuple):
    """How one window went, and what is known of the link by then."""

    cut: Cut
    latency_ms: float  # end of the window to its result
    network_ms: float  # of that, from leaving the device's processor; nan for a window that stayed
    edge_ms: float  # device time spent on it
    frame_bytes: float  # that crossed; 0 for one that stayed
    bandwidth_bps: float  # nan where unknown
    rtt_ms: float  # of an unloaded link, nan where unknown
    server_ms: float = 0.0
    queue_ms: float = 0.0  # before the server's compute
    doubt: float = 0.5  # the window's own uncertainty as a share of its largest value
    last_cut: Cut | None = None  # of the window before: a change may send a whole window
    backlog_bytes: float = 0.0  # that waited when the window left


class Hindsight:
    """Costs by the objective (10 - reward in v2's units, 0 at best) of every row of one table under what happened.

    The row that was taken costs what it really cost. The others get the same stretch of the processor's time, the same
    delay before the processor and behind the link's queue, the same server; they differ in blocks, bytes and quality.
    The rate is at least what the frame that crossed shows: it was carried in what is left of its delay.
    """

    def __init__(
        self,
        objective: ObjectiveSettings,
        table: CutTable,
        device: DeviceProfile,
        *,
        interval_ms: float = 500.0,
        whole_factor: float = 2.0,
    ) -> None:
        self.objective, self.table, self.device, self.interval_ms = objective, table, device, interval_ms
        arrays = CutArrays.of(table)
        self._arrays = arrays._replace(  # a table made by hand may hold whole numbers
            edge_ms=arrays.edge_ms.astype(float),
            server_ms=arrays.server_ms.astype(float),
            payload_bytes=arrays.payload_bytes.astype(float),
        )
        self._rows = {row.cut: index for index, row in enumerate(table.rows)}
        self._level = np.array([overlap_rank(row.cut) for row in table.rows])
        self._whole = self._arrays.payload_bytes * (whole_factor - 1.0)
        self._sends = self._arrays.sends.astype(float)

    def costs(self, what: Realised) -> tuple[int, Floats] | None:
        """(row that was taken, cost of every row [n]); None for a cut that the table lacks or an unknown latency."""
        taken = self._rows.get(what.cut)
        if taken is None or math.isnan(what.latency_ms) or (what.cut.sends and math.isnan(what.network_ms)):
            return None
        edge_ms, frame_bytes, latency_ms = self._ways(what, taken)
        return taken, self._weigh(edge_ms, frame_bytes, latency_ms, what.doubt)

    def _ways(self, what: Realised, taken: int) -> tuple[Floats, Floats, Floats]:
        """Device time, bytes and latency of every row [n]."""
        a = self._arrays
        stretch = min(max(what.edge_ms / max(a.edge_ms[taken], 1e-3), 0.05), 100.0)
        edge_ms = a.edge_ms * stretch
        edge_ms[taken] = what.edge_ms
        frame_bytes = a.payload_bytes + HEADER_BYTES
        frame_bytes += np.where(self._level > overlap_rank(what.last_cut), self._whole, 0.0)
        frame_bytes *= self._sends
        frame_bytes[taken] = what.frame_bytes
        bps, rtt_ms, wait_ms, before_ms = self._link(what)
        server_ms = a.server_ms * (min(max(what.server_ms / a.server_ms[taken], 0.1), 10.0) if self._known(what) else 1)
        latency_ms = self._sends * (wait_ms + rtt_ms + frame_bytes * 8000.0 / bps + server_ms + what.queue_ms)
        latency_ms += before_ms + edge_ms
        latency_ms[taken] = what.latency_ms
        return edge_ms, frame_bytes, latency_ms

    def _known(self, what: Realised) -> bool:
        return what.cut.sends and what.server_ms > 0.0 and self._arrays.server_ms[self._rows[what.cut]] > 1e-3

    def _link(self, what: Realised) -> tuple[float, float, float, float]:
        """Rate, round trip, wait in the link's queue, and delay before the processor began."""
        rtt_ms = what.rtt_ms if math.isfinite(what.rtt_ms) else ASSUMED_RTT_MS
        known = math.isfinite(what.bandwidth_bps) and what.bandwidth_bps > 0
        bps = what.bandwidth_bps if known else ASSUMED_BPS
        if not what.cut.sends:
            before_ms = max(what.latency_ms - what.edge_ms, 0.0)
            return bps, rtt_ms, what.backlog_bytes * 8000.0 / bps, before_ms
        carried_ms = max(what.network_ms - what.server_ms - what.queue_ms, 0.0)
        rtt_ms = min(rtt_ms, carried_ms)
        carried_ms -= rtt_ms
        if carried_ms > 0.0 and (what.frame_bytes >= LEAST_SAMPLE_BYTES or not known):
            bps = max(bps if known else 0.0, what.frame_bytes * 8000.0 / carried_ms)
        wait_ms = max(carried_ms - what.frame_bytes * 8000.0 / bps, 0.0)
        return bps, rtt_ms, wait_ms, max(what.latency_ms - what.edge_ms - what.network_ms, 0.0)

    def _weigh(self, edge_ms: Floats, frame_bytes: Floats, latency_ms: Floats, doubt: float) -> Floats:
        """`objective.quality - objective.reward(...)` of every row [n]."""
        s, a, device = self.objective, self._arrays, self.device
        energy_mj = device.compute_mj(1.0) * edge_ms + device.radio.transmit_mj(1.0) * frame_bytes
        cost = s.quality * a.quality_loss + s.latency / s.latency_ms * np.minimum(latency_ms, s.deadline_ms)
        cost += s.energy / s.energy_mj * energy_mj + s.traffic / s.traffic_bytes * frame_bytes
        cost += s.privacy * a.privacy_risk * self._sends
        if s.version == "v1":
            cost += s.resources * np.minimum(edge_ms / self.interval_ms, 1.0)
        unseen = s.unseen * (s.unseen_certain + (1.0 - s.unseen_certain) * doubt)
        weighed: Floats = cost + unseen * (1.0 - self._sends)
        return weighed
