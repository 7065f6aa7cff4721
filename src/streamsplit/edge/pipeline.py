"""From a window to what is sent for it: observe, choose a cut, compute, gate, pack; no clock, socket or thread."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from streamsplit.audio.windows import Window
from streamsplit.codec.tinystream.segments import SegmentEncoder
from streamsplit.edge.emulation import Spent
from streamsplit.edge.model import DeviceModel, Forward
from streamsplit.edge.payload import Packed, PieceChain, pack_activation, pack_input, pack_result
from streamsplit.edge.readings import Readings
from streamsplit.errors import CutError, LayerUnavailable
from streamsplit.splitting.confidence import ExitRule
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision, Policy
from streamsplit.splitting.decision_log import Decided, DecisionLog
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.link import LinkEstimate
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.shallower import Shallower
from streamsplit.splitting.table import CutTable
from streamsplit.splitting.transmission import GateDecision, Transmission, UncertaintyGate
from streamsplit.weights.revision import revision_prefix
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.media import Encoding, MediaFlag, MediaHeader, Resolution, pack_media
from streamsplit.wire.types import FrameType

T = TypeVar("T")
_LARGEST_F16 = 65504.0
_REMEMBERED = 1024  # windows whose embedding the device knows already


class Worker(Protocol):
    """Runs work and says what it cost: `Emulator` or `RealDevice`."""

    device: DeviceProfile

    def run(self, work: Callable[[], T]) -> tuple[T, Spent]: ...
    def drain(self, energy_mj: float) -> None: ...


class Surroundings(NamedTuple):
    """What the device knows beside the window."""

    readings: Readings
    link: LinkEstimate
    link_up: bool
    backlog_bytes: int


class Outcome(NamedTuple):
    """What became of a window; `payload` is None for one that stays on the device."""

    window: int
    cut: Cut
    reason: str
    action: Transmission
    frame_type: FrameType
    payload: bytes | None  # media header and payload of the frame
    z: np.ndarray | None  # [d], the device's own embedding where it has computed one
    uncertainty: float
    threshold: float
    confidence: float
    edge_ms: float  # device time, features included
    energy_mj: float  # marginal, computing and sending
    observation: Observation
    decision: Decided | None = None  # as the decision log holds it, where there is one

    @property
    def sends(self) -> bool:
        """Whether something is to cross."""
        return self.payload is not None


class WindowPipeline:
    """One device's windows, one after the other.

    The policy chooses from the table with the uncertainty of the window before (this one's is not known before it is
    computed); the gate then decides with this window's own. Rows that the device's encoder has no bottleneck for are
    left out of the table; those whose bottleneck or early exit is not fitted yet come in with the revision that fits
    them. A cut at an early exit holds for windows that the exit is sure of; others are computed to the end and cross
    as their embedding. `accepted` must be called for a window that got into the
    queue: what block 0 leaves out of the next one depends on it.
    """

    def __init__(
        self,
        model: DeviceModel,
        table: CutTable,
        policy: Policy,
        gate: UncertaintyGate,
        worker: Worker,
        chain: PieceChain,
        exit_rule: ExitRule | None = None,
        log: DecisionLog | None = None,
        constraints: ConstraintSettings | None = None,
        asks: Callable[[], bool] = lambda: False,
        codec: SegmentEncoder | None = None,
    ) -> None:
        """`asks` says whether a gradient may be asked for along with uncertain windows that cross as activations;
        `codec` is the neural codec's (None: the packaged one)."""
        self.asks, self.codec = asks, codec
        self.model, self.policy, self.gate, self.worker, self.chain = model, policy, gate, worker, chain
        self.exit_rule = exit_rule or ExitRule()
        self.log = log
        self.power_mw = 0.0  # mean marginal power of the recent windows, which an energy budget is held against
        self._constraints = constraints or ConstraintSettings()
        self.table = table.supported(model.bottlenecks if model.name else None)
        self._ready: tuple[str, CutTable] | None = None  # of which revision, the rows that it can do
        self.skipped = 0  # windows kept since the last one that was accepted for sending
        self._starts = False  # a stretch of sound began with this window, or with one kept since the last one sent
        self._window_offset = 0
        self._last_cut: Cut | None = None
        self._uncertainty = math.nan
        self._embedded: deque[int] = deque(maxlen=_REMEMBERED)
        self._shallower = Shallower(self._constraints)

    def start_at(self, window: int) -> None:
        """Window indices on the wire count on from here, so that a restarted device does not repeat any."""
        self._window_offset = window

    def embedded_here(self, window: int) -> bool:
        """Whether the device computed the embedding of a recent window itself."""
        return window in self._embedded

    def process(self, window: Window, around: Surroundings, feature_ms: float = 0.0) -> Outcome:
        """Decides, computes and packs; `feature_ms` is the device time that the features took."""
        self._starts |= window.new_frames > self.chain.stride_frames
        observation = observe(around, self._uncertainty, self._last_cut, self.power_mw)
        observation = observation._replace(blocks=self.model.held_blocks, room=self.model.room_blocks)
        decision = self._decide(observation)
        decided = self.log.decided(observation, decision, self._ready_table()) if self.log is not None else None
        (forward, cut, gate, packed), spent = self.worker.run(lambda: self._compute(window, decision.cut, observation))
        self._last_cut = decision.cut
        if math.isfinite(forward.uncertainty):
            self._uncertainty = forward.uncertainty
        edge_ms = feature_ms + spent.device_ms
        index = window.index + self._window_offset
        if forward.z is not None:
            self._embedded.append(index)
        payload = None
        frame_bytes = 0
        if packed is None:
            self.skipped += 1
        else:
            if self._wants_gradient(cut, packed, gate, forward.uncertainty):
                packed = packed._replace(frame_type=FrameType.GRADIENT)
            header = self._header(window, index, cut, packed, forward.uncertainty, edge_ms)
            payload = pack_media(header, packed.payload)
            frame_bytes = HEADER_BYTES + len(payload)
        energy_mj = self.worker.device.energy_mj(edge_ms, frame_bytes)
        self.power_mw = self._constraints.next_power_mw(self.power_mw, energy_mj)
        return Outcome(
            window=index, cut=cut,
            reason=(
                gate.reason if gate.action is not Transmission.SEND
                else decision.reason if cut == decision.cut else f"{decision.reason}; {_instead(decision.cut, cut)}"
            ),
            action=gate.action if packed is not None else Transmission.KEEP,
            frame_type=packed.frame_type if packed is not None else FrameType.FEATURES,
            payload=payload, z=forward.z, uncertainty=forward.uncertainty, threshold=gate.threshold,
            confidence=decision.confidence, edge_ms=edge_ms,
            energy_mj=energy_mj, observation=observation._replace(uncertainty=forward.uncertainty), decision=decided,
        )  # fmt: skip

    def accepted(self, window: Window, outcome: Outcome) -> None:
        """The window is in the queue."""
        self.skipped = 0
        self._starts = False
        self.chain.accepted(window, outcome.cut)

    def refused(self) -> None:
        """The queue or the disk refused the window."""
        self.skipped += 1
        self.chain.break_off()

    def _decide(self, observation: Observation) -> Decision:
        ready = self._ready_table()
        try:
            return self.policy.decide(observation, ready)
        except CutError:
            if ready.cuts == self.table.cuts:
                raise
            return self.policy.decide(observation, self.table)  # it names a cut that waits for its fit: see `_compute`

    def _ready_table(self) -> CutTable:
        """The rows that the model's present revision can do."""
        revision = self.model.revision
        if self._ready is None or self._ready[0] != revision:
            cuts = [cut for cut in self.table.cuts if self.model.ready_for(cut)]
            whole = len(cuts) in (0, len(self.table.cuts))
            self._ready = (revision, self.table if whole else self.table.only(cuts))
            self.exit_rule.restart()
        return self._ready[1]

    def _compute(
        self, window: Window, cut: Cut, observation: Observation
    ) -> tuple[Forward, Cut, GateDecision, Packed | None]:
        """What the device really does for the window; returns what was computed, the cut it ended at, and the bytes."""
        forward, cut, kept = self._run(window, cut, observation)
        if kept:
            return forward, cut, GateDecision(Transmission.KEEP, math.nan, kept), None
        sure = forward.early is not None and window.resolution is Resolution.FULL  # exits are fitted at full resolution
        sure = sure and self.exit_rule.confident(cut.block, forward.uncertainty)
        if not cut.sends:
            return forward, cut, GateDecision(Transmission.KEEP, math.nan, "the policy keeps it"), None
        gate = self.gate.decide(observation._replace(uncertainty=forward.uncertainty))
        if gate.action is Transmission.KEEP:
            return forward, cut, gate, None
        if gate.action is Transmission.EMBEDDING_ONLY:
            forward, cut = self._reduce(window, forward, cut, observation)
        elif cut.encoding is Encoding.BOTTLENECK_INT8 and not self.model.ready_for(cut):
            cut = cut._replace(encoding=Encoding.INT8)
        elif cut.encoding is Encoding.EXIT_FP16 and not (sure and self.model.ready_for(cut)):
            forward, cut = self._reduce(window, forward, cut, observation)
        return forward, cut, gate, self._pack(window, forward, cut)

    def _run(self, window: Window, wish: Cut, observation: Observation) -> tuple[Forward, Cut, str]:
        """The window computed to the cut, or as deep as the weights on the device go; and why it is kept, if it is."""
        cut, forward = self._within(self.model.reach(wish.block), wish, observation), None
        if cut is not None:
            try:
                forward = self.model.forward_to(window.features, cut.block)
            except LayerUnavailable:  # a block that passes through did not come in time
                cut = self._within(self.model.held_blocks, wish, observation)
        if cut is None:
            return (
                self.model.forward_to(window.features, 0),
                wish,
                f"no cut before {wish} is allowed without its blocks",
            )
        if forward is None:
            forward = self.model.forward_to(window.features, cut.block)
        return forward, cut, ""

    def _within(self, blocks: int, wish: Cut, observation: Observation) -> Cut | None:
        """The wish, or in its place the deepest cut within `blocks`, of several there the cheapest; None: none may be.

        The constraints hold for it as for the policy.
        """
        if wish.block <= blocks:
            return wish
        return self._shallower.deepest(self._ready_table(), blocks, observation)

    def _wants_gradient(self, cut: Cut, packed: Packed, gate: GateDecision, uncertainty: float) -> bool:
        """v2: what the gate lets through; v1: U > U_th and N > N_min. Only between two blocks there is a gradient."""
        if packed.frame_type is not FrameType.FEATURES or cut.block == 0 or gate.action is not Transmission.SEND:
            return False
        uncertain = self.gate.settings.version == "v2" or uncertainty > gate.threshold
        return uncertain and self.asks()

    def _reduce(self, window: Window, forward: Forward, cut: Cut, observation: Observation) -> tuple[Forward, Cut]:
        """The least that can stand for the window: its embedding, or without an encoder the smallest cut there is."""
        here = self.model.held_blocks
        if forward.crossing is None and here < 0:
            rows = [row for row in self.table.rows if row.cut.sends]
            return forward, min(rows, key=lambda row: row.payload_bytes).cut
        if forward.z is None and 0 <= here < self.table.num_blocks:
            least = self._shallower.smallest(self._ready_table(), {0, cut.block}, observation)
            return forward, cut if least is None else least
        if forward.z is None and forward.crossing is not None:
            forward = self.model.finish(forward.crossing, cut.block, window.features)
        return forward, Cut(self.table.num_blocks, Encoding.EMBEDDING_FP16)

    def _pack(self, window: Window, forward: Forward, cut: Cut) -> Packed:
        if cut.block == 0:
            return pack_input(window, cut.encoding, self.chain.new_frames(window, cut.encoding), self.codec)
        if forward.z is not None:
            return pack_result(forward.z, cut.encoding)
        if forward.crossing is None or forward.early is None:
            raise CutError(f"got cut {cut} on a device without an encoder, expected one at block 0")
        if cut.encoding is Encoding.EXIT_FP16:
            return pack_result(forward.early, cut.encoding)
        through = self.model.bottleneck(cut.block) if cut.encoding is Encoding.BOTTLENECK_INT8 else None
        return pack_activation(forward.crossing, cut.encoding, through)

    def _header(
        self, window: Window, index: int, cut: Cut, packed: Packed, uncertainty: float, edge_ms: float
    ) -> MediaHeader:
        return MediaHeader(
            window=index, revision=revision_prefix(self.model.revision) if cut.block else 0, block=cut.block,
            encoding=cut.encoding, resolution=window.resolution,
            flags=MediaFlag.STARTS if self._starts else MediaFlag.NONE, uncertainty=uncertainty,
            new_frames=packed.new_frames, edge_ms=min(edge_ms, _LARGEST_F16), skipped=min(self.skipped, 0xFFFF),
        )  # fmt: skip


def _instead(chosen: Cut, cut: Cut) -> str:
    """Why a window that is sent crosses at another cut than the chosen one."""
    if cut.block < chosen.block:
        return f"the blocks for {chosen} are not all here, sent as {cut}"
    if chosen.encoding is Encoding.BOTTLENECK_INT8:
        return f"the bottleneck is not fitted yet, sent as {cut}"
    return f"the exit after block {chosen.block} is not sure, sent as {cut}"


def observe(around: Surroundings, uncertainty: float, last_cut: Cut | None, power_mw: float = 0.0) -> Observation:
    """What the policy sees."""
    readings, link = around.readings, around.link
    return Observation(
        uncertainty=uncertainty, cpu=readings.cpu, memory=readings.memory, battery=readings.battery,
        thermal=readings.thermal, bandwidth_bps=link.bandwidth_bps, bandwidth_age_ms=link.bandwidth_age_ms,
        rtt_ms=link.rtt_ms, rtt_age_ms=link.rtt_age_ms, backlog_bytes=around.backlog_bytes, last_cut=last_cut,
        link_up=around.link_up, waiting_ms=link.waiting_ms, last_rtt_ms=link.last_rtt_ms, power_mw=power_mw,
    )  # fmt: skip
