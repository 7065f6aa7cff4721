"""What travels between the gateway (event loop) and the compute worker: windows to complete, and completed ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from streamsplit.encoders.crossing import Crossing
from streamsplit.server.assembler import Assembler
from streamsplit.server.codecs import CodecShelf
from streamsplit.server.records import WindowRecord
from streamsplit.server.settings import SignalSettings
from streamsplit.wire.messages import Gmm
from streamsplit.wire.types import FrameType


@dataclass
class DeviceStream:
    """One (device, epoch): what the gateway and the worker know of it beyond a connection."""

    device: str
    epoch: int
    assembler: Assembler  # used in the compute worker only
    received: int = 0  # highest sequence handed to the worker; loop only
    through: int = 0  # every sequence up to here is durable; loop only
    beyond: set[int] = field(default_factory=set)  # durable ones after a hole; loop only
    since_gmm: int = 0  # windows since the last mixture went down; loop only

    @classmethod
    def start(
        cls,
        device: str,
        epoch: int,
        through: int,
        beyond: frozenset[int],
        overlap: bytes | None,
        settings: SignalSettings,
        codecs: CodecShelf | None = None,
    ) -> DeviceStream:
        """A stream that goes on after `through`."""
        assembler = Assembler(settings, codecs)
        if overlap is not None:
            assembler.load(overlap)
        return cls(device, epoch, assembler, received=through, through=through, beyond=set(beyond))

    def commit(self, sequence: int) -> None:
        """Counts a durable window."""
        if sequence > self.through:
            self.beyond.add(sequence)
        self._advance()

    def begin_at(self, oldest: int) -> None:
        """Gives up what lies before `oldest`: the device no longer holds it."""
        self.through = max(self.through, oldest - 1)
        self.received = max(self.received, self.through)
        self.beyond = {sequence for sequence in self.beyond if sequence > self.through}
        self._advance()

    def holds(self, sequence: int) -> bool:
        """True for a durable window."""
        return sequence <= self.through or sequence in self.beyond

    def _advance(self) -> None:
        while self.through + 1 in self.beyond:
            self.through += 1
            self.beyond.remove(self.through)

    @property
    def pending(self) -> bool:
        """True while windows are on their way to the disk."""
        return self.received > self.through


class Job(NamedTuple):
    """One window to complete."""

    stream: DeviceStream
    frame_type: FrameType
    sequence: int
    capture_ms: int  # timestamp field of the frame
    arrived_s: float  # monotonic clock
    received_ms: int  # Unix time
    payload: bytes  # media header and bytes
    frame_bytes: int  # header included
    want_embedding: bool
    want_gmm: bool
    want_prototypes: bool = False  # along with the mixture


class Done(NamedTuple):
    """One durable window, ready to be acknowledged and answered."""

    job: Job
    record: WindowRecord
    gmm: Gmm | None


class Sample(NamedTuple):
    """What the refiner may learn from one window; features are fp16 to halve what crosses to its process."""

    device: str
    window: int
    at_ms: int
    revision: str
    block: int
    resolution: int
    features: np.ndarray | None  # [f, t] fp16
    h: np.ndarray | None  # [c, f, t] fp16
    partial: np.ndarray | None  # [d] float32
    embedding: np.ndarray  # [d] float32, as the server completed it
    starts: bool = False  # first window after a gap or of a new clip
    wants_gradient: bool = False  # the device waits for the loss's gradient at its cut

    @classmethod
    def of_crossing(
        cls,
        device: str,
        window: int,
        at_ms: int,
        revision: str,
        block: int,
        resolution: int,
        crossing: Crossing,
        embedding: np.ndarray,
        starts: bool = False,
    ) -> Sample:
        """Block 0: the features; deeper: the activations."""
        h = crossing.h[0].numpy().astype(np.float16)
        if block == 0:
            return cls(device, window, at_ms, revision, 0, resolution, h[0], None, None, embedding, starts)
        partial = crossing.partial[0].numpy().copy()
        return cls(device, window, at_ms, revision, block, resolution, None, h, partial, embedding, starts)
