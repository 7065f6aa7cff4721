"""A fleet in virtual time: devices, their links and one server, driven by the objects that run live.

    result = FleetSimulation(FleetSettings(), [FleetDevice("pi-1", table, policy, uplink)], seed=0).run(3600.0)
    result["pi-1"].latency_ms, result["pi-1"].cut_names()

What is not in it: weights that go down or up, new policies from the server, the server's limits on a device's windows a
second and on the memory of what waits. A lost transport is known at both ends at once, as through the shaped proxy.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from streamsplit.config import Settings, section, setting
from streamsplit.edge.queue import QueueSettings
from streamsplit.edge.readings import Readings
from streamsplit.edge.settings import ServerLinkSettings
from streamsplit.errors import ConfigError
from streamsplit.network.link import LinkDirection
from streamsplit.network.trace import DOWNLINK_FACTOR, BandwidthTrace
from streamsplit.server.settings import ComputeSettings, LimitSettings
from streamsplit.simulation.clock import EventClock
from streamsplit.simulation.compute import Answered, Completes, ComputeThread, Price, batch_price
from streamsplit.simulation.connection import DeviceEnd
from streamsplit.simulation.counted import WIRES
from streamsplit.simulation.estimate import WatchedLink
from streamsplit.simulation.front import ServerEnd
from streamsplit.simulation.pipe import Pipe
from streamsplit.simulation.process import KEPT, LOST, SENT, DeviceProcess, columns
from streamsplit.simulation.queue import MemoryQueue
from streamsplit.simulation.workload import DeviceWork, TableServer, TableWork, UncertaintySettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Policy
from streamsplit.splitting.device import DeviceProfile, device_profile
from streamsplit.splitting.link import LinkSettings
from streamsplit.splitting.table import CutTable
from streamsplit.splitting.transmission import GateSettings
from streamsplit.wire.frame import Frame
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Result

ReadingsAt = Callable[[float], Readings]


@dataclass(frozen=True, kw_only=True)
class FleetSettings(Settings):
    """What all devices of a fleet and its server have in common; defaults are those of the live ends."""

    stride_s: float = setting(0.5, low=0.01)  # a window starts this often
    window_s: float = setting(1.0, low=0.01)
    first_window_s: float = setting(1.1, low=0.0)  # after the start: a window and its analysis, in blocks of 100 ms
    buffer_s: float = setting(5.0, low=0.1)  # audio that may wait for a slow device
    look_ms: float = setting(100.0, low=0.0)  # between two looks at the link estimate; 0 = fresh at every decision
    report_s: float = setting(5.0, low=0.0)  # between two STATS; 0 = none
    backlog_bytes: int = setting(64 << 10, low=1)  # of either direction's modem
    want_embedding: bool = setting(True)  # results carry it
    gmm_every_windows: int = setting(100, low=0)  # the mixture goes down so often; 0 = never
    server_factor: float = setting(1.0, low=1e-3)  # the server is so much slower than the machine that was profiled
    admit_ms: float = setting(3.0, low=0.0)  # from a HELLO to the server's answer: its database is asked
    commit_ms: float = setting(1.0, low=0.0)  # of the server's database, after the computation
    wire: str = setting("counted", choices=("counted", "frames"))  # frames: every frame is encoded and decoded
    keep_results: bool = setting(False)  # every RESULT in the device's result
    queue: QueueSettings = section(QueueSettings)
    link: LinkSettings = section(LinkSettings)
    gate: GateSettings = section(GateSettings)
    server: ServerLinkSettings = section(ServerLinkSettings)
    limits: LimitSettings = section(LimitSettings)
    compute: ComputeSettings = section(ComputeSettings)
    uncertainty: UncertaintySettings = section(UncertaintySettings)

    def check(self) -> None:
        """Windows without holes between them."""
        if self.stride_s > self.window_s:
            raise ConfigError(f"'stride_s': got {self.stride_s}, allowed <= window_s ({self.window_s})")


@dataclass
class FleetDevice:
    """One device of a fleet. `load(t_s)` is the share of a core that other work takes and stretches the table's
    `edge_ms`; without it that is the `cpu` of `readings(t_s)`, which is what the policy sees."""

    name: str
    table: CutTable
    policy: Policy
    uplink: BandwidthTrace
    downlink: BandwidthTrace | None = None  # None: the uplink's, times DOWNLINK_FACTOR
    jitter_ms: float = 0.0
    trace_start_s: float = 0.0  # where in the trace virtual second 0 lies
    start_s: float = 0.0  # switched on at
    stop_s: float = math.inf  # hears nothing after this; what is queued still goes up
    readings: ReadingsAt = field(default=lambda t_s: Readings(0.0, 0.3))
    load: Callable[[float], float] | None = None
    edge_factor: float = 1.0  # takes so many times as long as the table says
    profile: DeviceProfile | None = None  # energy model; None: the table's device, or the host's
    gate: GateSettings | None = None  # None: the fleet's
    has_encoder: bool = True
    work: DeviceWork | None = None  # None: by the table


class DeviceResult(NamedTuple):
    """One device's windows in order of processing, and what crossed its socket."""

    name: str
    captured_s: np.ndarray  # [n] virtual seconds at which the window's last sample existed
    block: np.ndarray  # [n] int8, where it ended up; -1 for a window lost before it was processed
    encoding: np.ndarray  # [n] int8, wire.media.Encoding
    action: np.ndarray  # [n] int8: KEPT, SENT, DROPPED or LOST of simulation.process
    payload_bytes: np.ndarray  # [n] media header included; 0 where nothing was to cross
    edge_ms: np.ndarray  # [n] device time
    energy_mj: np.ndarray  # [n] marginal, computing and sending
    latency_ms: np.ndarray  # [n] capture to result at the device; nan without one
    bandwidth_bps: np.ndarray  # [n] the estimate at the decision
    uncertainty: np.ndarray  # [n] nats
    backlog_bytes: np.ndarray  # [n] accepted and not acknowledged, at the decision
    uplink_bytes: int  # handed to the socket: HTTP, WebSocket headers and control messages included
    downlink_bytes: int
    connections: int
    left_in_queue: int
    rejected: int
    results: dict[int, Result]  # by window, where the settings keep them

    @property
    def sent(self) -> np.ndarray:
        """[n] bool: accepted for sending."""
        return np.asarray(self.action == SENT)

    @property
    def counts(self) -> dict[str, int]:
        """Windows by what became of them; 'seen' is all of them."""
        names = ("kept", "sent", "dropped", "lost")
        counts = np.bincount(self.action, minlength=4)
        return {"seen": len(self.action), **{name: int(counts[i]) for i, name in enumerate(names)}}

    def cut_names(self) -> list[str]:
        """'6:int8' for a window that crosses, '6:none' for one that was computed that far and stays, '' for a loss."""
        names = []
        for block, encoding, action in zip(self.block, self.encoding, self.action, strict=True):
            stays = action == KEPT
            name = str(Cut(int(block), Encoding.NONE if stays else Encoding(int(encoding))))
            names.append("" if action == LOST else name)
        return names


class FleetResult(NamedTuple):
    """What came of a run."""

    devices: dict[str, DeviceResult]
    duration_s: float
    events: int
    server_busy_share: float  # of the compute thread
    server_batches: int
    server_windows: int

    def __getitem__(self, name: str) -> DeviceResult:  # type: ignore[override]
        return self.devices[name]

    def cut_counts(self) -> Counter[str]:
        """Windows of all devices by cut."""
        return Counter(name for device in self.devices.values() for name in device.cut_names())


class FleetSimulation:
    """A run of some devices against one server. The same devices, settings and seed give the same result, bit for bit,
    and no device's random numbers depend on which others there are."""

    def __init__(
        self,
        settings: FleetSettings,
        devices: Sequence[FleetDevice],
        seed: int = 0,
        *,
        completes: Completes | None = None,
    ) -> None:
        """`completes` is what computes on the server; by the table unless given."""
        names = [device.name for device in devices]
        if len(set(names)) != len(names) or not names:
            raise ConfigError(f"got {len(names)} devices with {len(set(names))} names, expected one name each")
        self.settings, self.seed = settings, seed
        self.clock = EventClock()
        self._compute = ComputeThread(
            self.clock,
            settings.compute,
            completes or TableServer(settings.want_embedding),
            _committed,
            factor=settings.server_factor,
            commit_ms=settings.commit_ms,
        )
        self._prices: dict[tuple[int, Cut], Price] = {}
        self._built = [self._build(device) for device in devices]

    def run(self, duration_s: float) -> FleetResult:
        """Runs from virtual second 0 to `duration_s`; what is under way then has no result."""
        for process, _, _ in self._built:
            process.start()
        self.clock.run(duration_s)
        compute = self._compute
        return FleetResult(
            {process.name: _result(process, up, down) for process, up, down in self._built},
            duration_s, self.clock.events, compute.busy_s / duration_s, compute.batches, compute.windows,
        )  # fmt: skip

    def _build(self, device: FleetDevice) -> tuple[DeviceProcess, Pipe, Pipe]:
        settings, clock, seed = self.settings, self.clock, self.seed
        table, profile = device.table, device.profile or device_profile(device.table.device)
        work = device.work or TableWork(
            table, device.policy, device.gate or settings.gate, profile, settings.uncertainty,
            random.Random(_derive(seed, device.name, "uncertainty")),
            whole_factor=settings.window_s / settings.stride_s, has_encoder=device.has_encoder,
        )  # fmt: skip
        start_s, jitter_ms = device.trace_start_s, device.jitter_ms
        down_trace = device.downlink or device.uplink.scaled(DOWNLINK_FACTOR)
        up_link = LinkDirection(device.uplink, jitter_ms, _derive(seed, device.name, "up"), start_s)
        down_link = LinkDirection(down_trace, jitter_ms, _derive(seed, device.name, "down"), start_s)
        up = Pipe(clock, up_link, settings.backlog_bytes, masked=True)
        down = Pipe(clock, down_link, settings.backlog_bytes, masked=False)
        queue = MemoryQueue(settings.queue, _derive(seed, device.name, "epoch") >> 1 | 1)
        link = WatchedLink(settings.link, settings.look_ms, 1000.0 * device.start_s)
        process = DeviceProcess(
            device.name, clock, work, queue, link, readings=device.readings, load=device.load,
            edge_factor=device.edge_factor, start_s=device.start_s,
            stop_s=device.stop_s, first_window_s=settings.first_window_s, stride_s=settings.stride_s,
            buffer_s=settings.buffer_s,
            report_s=settings.report_s, device_class=profile.name, want_embedding=settings.want_embedding,
            keep_results=settings.keep_results, probe_lead_s=settings.link.probe_lead_ms / 1000.0,
        )  # fmt: skip
        prices = self._prices

        def cut_of(frame: Frame) -> tuple[Cut, Price]:
            cut = process.cuts[frame.sequence - 1]
            key = (id(table), cut)
            if key not in prices:
                prices[key] = batch_price(table, cut)
            return cut, prices[key]

        tokens = random.Random(_derive(seed, device.name, "token"))
        server = ServerEnd(
            clock, self._compute, down, settings.limits,
            gmm_every_windows=settings.gmm_every_windows if work.encoder else 0,
            admit_ms=settings.admit_ms, wire=WIRES[settings.wire],
            cut_of=cut_of, tokens=lambda: tokens.randbytes(16),
        )  # fmt: skip
        process.end = DeviceEnd(
            clock, process, queue, link, up, down, server, settings.server,
            random.Random(_derive(seed, device.name, "backoff")), WIRES[settings.wire],
        )  # fmt: skip
        return process, up, down


def _committed(group: list[Answered], compute_ms: float, taken_s: float) -> None:
    """A group is durable: every device is answered, then each is told once how far its stream is."""
    touched: dict[int, ServerEnd] = {}
    for answered in group:
        end: ServerEnd = answered.window.owner
        end.answer(answered, compute_ms, taken_s)
        touched[id(end)] = end
    for end in touched.values():
        end.acknowledge()


def _result(process: DeviceProcess, up: Pipe, down: Pipe) -> DeviceResult:
    assert process.end is not None
    return DeviceResult(
        name=process.name, **columns(process.log), uplink_bytes=up.bytes, downlink_bytes=down.bytes,
        connections=process.end.connections, left_in_queue=process.queue.pending, rejected=process.rejected,
        results=dict(process.results),
    )  # fmt: skip


def _derive(seed: int, name: str, purpose: str) -> int:
    """A 64-bit seed of its own for every purpose, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}/{purpose}".encode(), digest_size=8).digest(), "big")
