"""HeldBlocks: an encoder on a device that holds its first blocks, as many as a byte budget allows, and waits for none.

Every cut k runs blocks 1..k, so a block is needed at least as often as the one after it: what fits is always the first
ones. Blocks beyond the budget pass through one at a time while a window runs; the held ones make room for the largest.
One that comes too late for its window is kept for the next, in that room, as long as no other needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from streamsplit.encoders.crossing import Crossing
from streamsplit.errors import LayerUnavailable, StreamSplitError
from streamsplit.weights.streaming.buffers import aligned_copy
from streamsplit.weights.streaming.chunk_file import pack_tensors
from streamsplit.weights.streaming.encoder import EmptyEncoder, block_name
from streamsplit.weights.streaming.layers import Arrival, Slot, Source, chunk_tensors
from streamsplit.weights.streaming.manifest import Manifest
from streamsplit.weights.streaming.quantise import Tensors

ON_THE_WAY = 2  # blocks that are to stay and are asked for at a time


class Plan(NamedTuple):
    """What a cut asks of the budget."""

    keep: int  # blocks 1..keep stay in memory
    through: int  # blocks keep+1..through pass, one at a time; equal to `keep` where all fit


def plan_blocks(sizes: list[int], budget_bytes: int | None, block: int) -> Plan:
    """How blocks 1..`block` of these sizes [L] run within a budget (None: no limit).

    The plan stops short where a block does not fit even alone.
    """
    total = [0, *accumulate(sizes)]
    if budget_bytes is None or total[block] <= budget_bytes:
        return Plan(block, block)
    for through in range(block, 0, -1):
        for keep in range(through, -1, -1):
            if total[keep] + max(sizes[keep:through], default=0) <= budget_bytes:
                return Plan(keep, through)
    return Plan(0, 0)


class OldBlock(NamedTuple):
    """A block of the revision before."""

    digest: str
    tensors: Tensors


class HeldBlocks:
    """`encoder` runs as far as `reach` says; everything but waiting for a passing block returns at once.

    At most the budget and one block that is on its way are in memory. Not for more than one thread at a time.
    """

    def __init__(self, manifest: Manifest, source: Source, *, budget_bytes: int | None) -> None:
        """Fetches what belongs to no block (early exits, bottlenecks), which stays and is not counted.

        Raises ManifestError for a manifest of something else, LayerUnavailable where that cannot be had.
        """
        empty = EmptyEncoder(manifest)
        self.manifest = manifest
        self.settings = empty.settings
        self.encoder = empty.encoder
        self.arrived = 0  # blocks that came and were good
        self.trouble: Exception | None = None  # why the last block that was asked for did not come
        self._source = source
        self._budget_bytes = budget_bytes
        self._slots = [empty.slots.get(block_name(block)) for block in range(1, self.encoder.num_blocks + 1)]
        self._sizes = [0 if slot is None else slot.size_bytes for slot in self._slots]
        self._full: set[int] = set()  # blocks in memory, 1..L
        self._old: dict[int, OldBlock] = {}  # of the revision before, until the new ones are here; never in `_full`
        self._coming: dict[int, Arrival] = {}
        self._resident = empty.resident
        for holder in empty.resident:
            try:
                data = source.fetch(holder.chunk).result()
            except (StreamSplitError, OSError) as error:
                raise LayerUnavailable(holder.chunk.name, str(error)) from error
            holder.fill(chunk_tensors(holder.chunk, data))

    @property
    def held(self) -> int:
        """Blocks 1..n that are in memory."""
        return next((b - 1 for b, slot in enumerate(self._slots, 1) if slot and b not in self._full), len(self._slots))

    @property
    def room(self) -> int:
        """Blocks 1..n that the budget holds at once."""
        blocks = range(len(self._sizes), -1, -1)
        return next(b for b in blocks if plan_blocks(self._sizes, self._budget_bytes, b) == Plan(b, b))

    @property
    def deepest(self) -> int:
        """The deepest block that a window can be run to within the budget."""
        return plan_blocks(self._sizes, self._budget_bytes, len(self._sizes)).through

    @property
    def held_bytes(self) -> int:
        """What the blocks in memory take, those of the revision before included."""
        return sum(self._sizes[block - 1] for block in (*self._full, *self._old))

    def reach(self, block: int) -> int:
        """The deepest block up to `block` that can be run to now; what is missing for it is asked for.

        Beyond the budget, `run_to` has to wait for every passing block.
        """
        keep, through = plan_blocks(self._sizes, self._budget_bytes, block)
        self._collect(keep, through)
        if through > keep:
            self._drop_beyond(keep)
        for missing in (b for b in range(1, keep + 1) if self._slots[b - 1] and b not in self._full):
            if sum(b <= keep for b in self._coming) >= (1 if self._old else ON_THE_WAY):
                break
            self._make_room(keep, missing)
            self._ask(missing)
        if self.held >= keep and through > keep:
            asked = self._ask_to_pass(keep + 1)
            return through if asked and self.trouble is None else min(self.held, block)
        return min(self.held, block)

    def run_to(self, x: torch.Tensor, block: int, wait: Callable[[Arrival], bool]) -> Crossing:
        """Runs windows x [b, f, t] through blocks 1..`block`, to which `reach` has led.

        `wait` is given a block on its way and says whether it is there. Raises LayerUnavailable where one is not.
        """
        return self.run_on(self.encoder.forward_to(x, 0), 0, block, wait)

    def run_on(self, crossing: Crossing, after: int, block: int, wait: Callable[[Arrival], bool]) -> Crossing:
        """The same from what crossed after block `after`."""
        for number in range(after + 1, block + 1):
            slot = self._slots[number - 1]
            if slot is None or number in self._full:
                crossing = self.encoder.advance(crossing, number)
                continue
            self._await(number, slot, wait)
            try:
                if number < block and number + 1 not in self._full and self._fits(slot.size_bytes):
                    self._ask(number + 1)
                crossing = self.encoder.advance(crossing, number)
            finally:
                slot.empty(torch.float32)
        return crossing

    def early(self, crossing: Crossing, block: int) -> torch.Tensor | None:
        """The early exit's embeddings [b, d] after a block; None where the weights for it are not here."""
        if block == 0 and 1 not in self._full:  # the input's readout belongs to the first block
            return None
        return self.encoder.exit_embedding(crossing, block)

    def forget_trouble(self) -> None:
        """What failed may be asked for again."""
        self.trouble = None

    def take_over(self, old: HeldBlocks) -> None:
        """Takes blocks that are the same in another revision; the other one is empty afterwards.

        A block that a delta of this manifest applies to stays until its successor has come: it takes that one's place
        in the budget.
        """
        steps = {(delta.base, delta.target) for delta in self.manifest.deltas}
        for block, (slot, other) in enumerate(zip(self._slots, old._slots, strict=True), 1):
            if slot is None or other is None or block not in old._full:
                continue
            if slot.chunk.digest == other.chunk.digest:
                slot.fill(other.tensors())
                self._full.add(block)
            elif (other.chunk.digest, slot.chunk.digest) in steps:
                self._old[block] = OldBlock(other.chunk.digest, other.tensors())
        old.release()

    def resident_bytes(self, digest: str) -> np.ndarray | None:
        """The stored bytes [size] uint8 of a chunk that belongs to no block, if it is this one; for any thread."""
        return next((_stored(digest, h.tensors()) for h in self._resident if h.chunk.digest == digest), None)

    def old_bytes(self, digest: str) -> np.ndarray | None:
        """The same of a block of the revision before, which waits for its successor."""
        return next((_stored(digest, old.tensors) for old in self._old.values() if old.digest == digest), None)

    def release(self) -> None:
        """Gives all blocks' memory back."""
        for block in list(self._full):
            self._drop(block)
        self._old.clear()
        self._coming.clear()

    def _collect(self, keep: int, through: int) -> None:
        """Puts in what has come and is to stay; lets go of what nobody wants any more."""
        for block, coming in [(block, coming) for block, coming in self._coming.items() if coming.done()]:
            error = coming.exception()
            if error is None and keep < block <= through:  # it waits for its turn
                continue
            del self._coming[block]
            slot = self._slots[block - 1]
            if error is not None:
                self.trouble = error if isinstance(error, Exception) else None
            elif block <= keep and slot is not None:
                self._put(block, slot, coming)

    def _put(self, block: int, slot: Slot, coming: Arrival) -> None:
        self._old.pop(block, None)
        try:
            slot.fill(chunk_tensors(slot.chunk, coming.result()))
        except LayerUnavailable as error:
            self.trouble = error
        else:
            self.arrived += 1
            self._full.add(block)

    def _await(self, block: int, slot: Slot, wait: Callable[[Arrival], bool]) -> None:
        asked = self._ask_to_pass(block)
        coming = self._coming.get(block)
        if coming is None and asked:
            raise LayerUnavailable(slot.chunk.name, str(self.trouble))
        if coming is None or not wait(coming):
            raise LayerUnavailable(slot.chunk.name, "it is still on its way")
        del self._coming[block]
        error = coming.exception()
        if error is not None:
            self.trouble = error if isinstance(error, Exception) else None
            raise LayerUnavailable(slot.chunk.name, str(error))
        try:
            slot.fill(chunk_tensors(slot.chunk, coming.result()))
        except LayerUnavailable as broken:
            self.trouble = broken
            raise
        self.arrived += 1

    def _ask(self, block: int) -> None:
        slot = self._slots[block - 1]
        if slot is not None and self.trouble is None and block not in self._coming and block not in self._full:
            self._coming[block] = self._source.fetch(slot.chunk)

    def _ask_to_pass(self, block: int) -> bool:
        """Asks for a block while none passes; False where others that are on their way leave no room for it.

        Of those that are here before their turn, the deepest are let go of first.
        """
        while block not in self._coming and not self._fits(0):
            early = [other for other, coming in self._coming.items() if coming.done()]
            if not early:
                return False
            del self._coming[max(early)]
        self._ask(block)
        return True

    def _fits(self, running_bytes: int) -> bool:
        """Whether one more block may be on its way while one of this size runs: it comes on top of the budget."""
        coming_bytes = sum(self._sizes[block - 1] for block in self._coming)
        return self._budget_bytes is None or self.held_bytes + running_bytes + coming_bytes <= self._budget_bytes

    def _make_room(self, keep: int, block: int) -> None:
        """Lets go of the deepest blocks beyond `keep` that are in the way of one that is about to come."""
        new = {b for b in (*self._coming, block) if b <= keep} - self._old.keys()  # an old one holds its place
        coming = sum(self._sizes[b - 1] for b in new)
        for deepest in sorted((b for b in (*self._full, *self._old) if b > keep), reverse=True):
            if self._budget_bytes is None or self.held_bytes + coming <= self._budget_bytes:
                return
            self._drop(deepest)

    def _drop_beyond(self, keep: int) -> None:
        for block in [b for b in (*self._full, *self._old) if b > keep]:
            self._drop(block)

    def _drop(self, block: int) -> None:
        slot = self._slots[block - 1]
        self._old.pop(block, None)
        self._full.discard(block)
        if slot is not None:
            slot.empty(torch.float32)


def _stored(digest: str, tensors: Tensors) -> np.ndarray | None:
    """The stored bytes of a chunk from its tensors; None where they were not stored as they are, as with int8."""
    data = pack_tensors(tensors)
    return aligned_copy(data) if hashlib.sha256(data).hexdigest() == digest else None
