"""What windows cost and weigh in a simulation: everything from the cut table, or (pipeline.py) the real encoder."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple, Protocol

from streamsplit.config import Settings, setting
from streamsplit.edge.pipeline import Outcome, Surroundings, observe
from streamsplit.errors import CutError
from streamsplit.simulation.compute import Answered, Arrived
from streamsplit.splitting.cut import AUDIO_ENCODINGS, Cut, overlap_rank
from streamsplit.splitting.decision import Policy
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.table import CutRow, CutTable
from streamsplit.splitting.transmission import GateSettings, Transmission, UncertaintyGate
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.media import MEDIA_HEADER_BYTES, Encoding
from streamsplit.wire.messages import Gmm, Result
from streamsplit.wire.types import FrameType

EMBEDDING_DIM = 128
_GMM_BYTES = 2 * (64 + 2 * 64 * EMBEDDING_DIM)  # fp16 weights, means and variances of 64 components


class DeviceWork(Protocol):
    """One device's windows, one after the other."""

    encoder: str  # "" for a device without one
    revision: str  # hex SHA-256 or ""

    def process(self, index: int, around: Surroundings, free_share: float, *, starts: bool) -> Outcome:
        """Decides, computes and packs window `index` with `free_share` of a core; `starts`: audio before it is lost."""
        ...

    def accepted(self, index: int, outcome: Outcome) -> None:
        """The window is in the queue."""

    def refused(self) -> None:
        """The queue was full."""

    def heard(self, index: int, outcome: Outcome) -> None:
        """The window is done with."""

    def result(self, result: Result) -> None:
        """The server's answer, once a window."""

    def adopt(self, message: Gmm) -> None:
        """The server's mixture."""


@dataclass(frozen=True, kw_only=True)
class UncertaintySettings(Settings):
    """A device's uncertainty as an AR(1) process in nats, cut off at 0: neighbouring windows are alike."""

    mean: float = setting(
        0.45, low=0.0
    )  # measured on a device that listens: benchmarks/results/uncertainty_process.json
    deviation: float = setting(0.22, low=0.0)
    correlation: float = setting(0.78, low=0.0, high=0.999)  # from a window to the next


class _Chain:
    """What `edge.payload.PieceChain` remembers, without a window to look at: whether the next one goes up whole."""

    def __init__(self) -> None:
        self._index, self._rank = -2, 0

    def continues(self, index: int, cut: Cut) -> bool:
        return self._index == index - 1 and self._rank >= overlap_rank(cut)

    def accepted(self, index: int, cut: Cut) -> None:
        self._index, self._rank = index, overlap_rank(cut)

    def break_off(self) -> None:
        self._index = -2


class _Priced(NamedTuple):
    row: CutRow
    payload: bytes  # zeros: of a window that continues the one before
    whole: bytes  # of one that goes up alone
    frame_type: FrameType


class TableWork:
    """A device whose windows weigh and cost what the table says; payloads are zeros, uncertainty is drawn.

    The order of calls is `WindowPipeline`'s: the policy sees the uncertainty of the window before, the gate this one's.
    """

    def __init__(
        self,
        table: CutTable,
        policy: Policy,
        gate: GateSettings,
        device: DeviceProfile,
        uncertainty: UncertaintySettings,
        rng: random.Random,
        *,
        whole_factor: float = 2.0,
        has_encoder: bool = True,
    ) -> None:
        """`whole_factor`: how much more crosses at block 0 when nothing of a window went up before (length/stride)."""
        self.encoder = table.encoder if has_encoder else ""
        self.revision = "0" * 64 if has_encoder else ""
        self.table = table if has_encoder else table.only([cut for cut in table.cuts if cut.block == 0])
        self.policy = policy
        self.gate = UncertaintyGate(gate)
        self._device, self._settings, self._random = device, uncertainty, rng
        self._rows = {row.cut: _priced(row, table.num_blocks, whole_factor) for row in self.table.rows}
        self._reduced = self._least() if not has_encoder else Cut(table.num_blocks, Encoding.EMBEDDING_FP16)
        self._chain = _Chain()
        self._last_cut: Cut | None = None
        self._uncertainty = math.nan
        self._drawn = rng.gauss(uncertainty.mean, uncertainty.deviation)
        self._step = uncertainty.deviation * math.sqrt(1.0 - uncertainty.correlation**2)

    def process(self, index: int, around: Surroundings, free_share: float, *, starts: bool) -> Outcome:
        """Decides; the payload is zeros of the table's size."""
        if starts:
            self._chain.break_off()
        observation = observe(around, self._uncertainty, self._last_cut)
        decision = self.policy.decide(observation, self.table)
        cut = self._last_cut = decision.cut
        uncertainty = self._uncertainty = self._draw()
        action, reason, threshold = Transmission.KEEP, decision.reason, math.nan
        if cut.sends:
            gate = self.gate.decide(observation._replace(uncertainty=uncertainty))
            action, threshold = gate.action, gate.threshold
            if action is not Transmission.SEND:
                reason = gate.reason
            if action is Transmission.EMBEDDING_ONLY and cut.block < self.table.num_blocks:
                cut = self._reduced
        priced = self._rows.get(cut)
        if priced is None:
            raise CutError(f"a poor link asks for cut {cut}, but the table of '{self.table.encoder}' has no row for it")
        edge_ms = priced.row.edge_ms / free_share
        payload, sent = None, 0
        if action is not Transmission.KEEP:
            continues = cut.block > 0 or self._chain.continues(index, cut)
            payload = priced.payload if continues else priced.whole
            sent = HEADER_BYTES + len(payload)
        energy_mj = self._device.energy_mj(edge_ms, sent)
        return Outcome(
            index, cut, reason, action, priced.frame_type, payload, None, uncertainty, threshold, decision.confidence,
            edge_ms, energy_mj, observation,
        )  # fmt: skip

    def accepted(self, index: int, outcome: Outcome) -> None:
        """Remembered for what the next window may leave out."""
        self._chain.accepted(index, outcome.cut)

    def refused(self) -> None:
        """The next window goes up whole."""
        self._chain.break_off()

    def heard(self, index: int, outcome: Outcome) -> None:
        """Nothing learns here."""

    def result(self, result: Result) -> None:
        """Nothing learns here."""

    def adopt(self, message: Gmm) -> None:
        """Nothing learns here."""

    def _draw(self) -> float:
        mean = self._settings.mean
        self._drawn = mean + self._settings.correlation * (self._drawn - mean) + self._step * self._random.gauss(0, 1)
        return max(self._drawn, 0.0)

    def _least(self) -> Cut:
        rows = [row for row in self.table.rows if row.cut.sends]
        return min(rows, key=lambda row: row.payload_bytes).cut


class TableServer:
    """Completes windows by the table: groups as the live worker makes them, answers of the right size."""

    def __init__(self, want_embedding: bool = True) -> None:
        self._embedding = bytes(2 * EMBEDDING_DIM) if want_embedding else b""
        self._version = 0

    def complete(self, batch: Sequence[Arrived]) -> list[list[Answered]]:
        """Groups of equal block, deepest first, as the compute worker orders them."""
        ordered = sorted(batch, key=_depth)
        return [[self._answer(window) for window in group] for _, group in groupby(ordered, key=_depth)]

    def _answer(self, window: Arrived) -> Answered:
        answer = Result(
            sequence=window.sequence, window=window.sequence, capture_ms=window.capture_ms,
            uncertainty=1.0, cluster=0, embedding=self._embedding,
        )  # fmt: skip
        return Answered(window, answer, self._gmm() if window.want_gmm else None)

    def _gmm(self) -> Gmm:
        self._version += 1
        return Gmm(version=self._version, revision="0" * 64, components=64, dim=EMBEDDING_DIM, data=bytes(_GMM_BYTES))


def _depth(window: Arrived) -> int:
    return -window.cut.block


@lru_cache(maxsize=4096)  # devices with one table share its payloads
def _priced(row: CutRow, num_blocks: int, whole_factor: float) -> _Priced:
    size = max(round(row.payload_bytes), MEDIA_HEADER_BYTES)
    whole = size
    if row.cut.block == 0:
        whole = MEDIA_HEADER_BYTES + round((size - MEDIA_HEADER_BYTES) * whole_factor)
    kind = FrameType.FEATURES
    if row.cut.block == num_blocks:
        kind = FrameType.EMBEDDING
    elif row.cut.encoding in AUDIO_ENCODINGS:
        kind = FrameType.AUDIO
    return _Priced(row, bytes(size), bytes(whole), kind)
