"""Layers that are in memory while they run, and stay only where the budget allows; see `model` and `encoder`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from streamsplit.errors import ConfigError, LayerUnavailable, StreamSplitError
from streamsplit.weights.streaming.buffers import Base
from streamsplit.weights.streaming.cache import ByteCache
from streamsplit.weights.streaming.chunk_file import open_tensors, unpacked
from streamsplit.weights.streaming.limits import Shape
from streamsplit.weights.streaming.manifest import Chunk
from streamsplit.weights.streaming.quantise import Tensors, dequantise

MAX_PREFETCH = 8


class Arrival(Protocol):
    """Bytes on their way."""

    def result(self) -> np.ndarray:
        """The checked bytes [size] uint8, once they are here; raises what kept them away."""

    def done(self) -> bool:
        """Whether `result` would not wait."""

    def exception(self) -> BaseException | None:
        """What `result` would raise."""


class Source(Protocol):
    """Where chunks come from."""

    def fetch(self, chunk: Chunk, base: Base | None = None) -> Arrival:
        """The stored bytes of a chunk, of which `base` is an older revision in memory: a delta may be applied to it."""

    def fetch_rows(self, chunk: Chunk, blocks: list[int]) -> Sequence[Arrival]:
        """Blocks of rows, in the order given, neighbours possibly in one arrival."""


@dataclass
class Meter:
    """What a streamed model counts."""

    stalls: int = 0  # layers that were waited for
    stall_s: float = 0.0
    prefetched: int = 0  # layers asked for before they were needed
    forwards: int = 0
    first_output_s: float | None = None  # opening to the end of the first forward
    opened_s: float = field(default=0.0)


class Slot:
    """Where one chunk's tensors go in the model."""

    def __init__(
        self, chunk: Chunk, size_bytes: int, laid_out: Callable[[str, torch.Tensor], torch.Tensor] | None = None
    ):
        """`laid_out` gives a tensor, by name, the memory layout that the model computes in."""
        self.chunk = chunk
        self._laid_out = laid_out
        self.size_bytes = size_bytes
        self.running = 0
        self.stored: np.ndarray | None = None  # the chunk's stored bytes, where the tensors lie in them
        self._places: list[tuple[nn.Module, str, str, tuple[int, ...]]] = []

    def bind(self, model: nn.Module, shapes: dict[str, tuple[int, ...]], shared: dict[str, list[str]]) -> None:
        """Finds the modules, once; `shared` holds all names of a tensor that has several."""
        for tensor in self.chunk.tensors:
            for name in shared.get(tensor, [tensor]):
                owner, _, attribute = name.rpartition(".")
                self._places.append((model.get_submodule(owner), attribute, tensor, shapes[name]))

    def fill(self, tensors: Tensors, stored: np.ndarray | None = None) -> None:
        """Puts a chunk's tensors in; raises LayerUnavailable where a shape is not the model's."""
        for _, _, tensor, shape in self._places:
            if tuple(tensors[tensor].shape) != shape:
                got = tuple(tensors[tensor].shape)
                raise LayerUnavailable(self.chunk.name, f"got shape {got} for '{tensor}', expected {shape}")
        for module, attribute, tensor, _ in self._places:
            held = tensors[tensor]
            put(module, attribute, held if self._laid_out is None else self._laid_out(tensor, held))
        lies_in = stored is not None and self._laid_out is None and any(_lies_in(t, stored) for t in tensors.values())
        self.stored = stored if lies_in else None

    def tensors(self) -> Tensors:
        """What is in, by name."""
        found: Tensors = {}
        for module, attribute, tensor, _ in self._places:
            held = module._parameters.get(attribute, module._buffers.get(attribute))
            if held is not None:
                found[tensor] = held.detach()
        return found

    def empty(self, dtype: torch.dtype) -> None:
        """Takes them out."""
        self.stored = None
        for module, attribute, _, _ in self._places:
            put(module, attribute, nothing(dtype))


class LayerStreamer:
    """Brings layers in before they run and lets go of them after; `slots` are in the order of a pass."""

    def __init__(
        self, slots: dict[str, Slot], source: Source, *, cache_bytes: int | None, prefetch: int, dtype: torch.dtype,
        clock_s: Callable[[], float],
    ) -> None:  # fmt: skip
        """`cache_bytes` bounds layers in memory, the running one included; one more may be on its way. None: all stay.

        Raises ConfigError for a budget smaller than the largest layer, or a prefetch depth out of range.
        """
        if not 0 <= prefetch <= MAX_PREFETCH:
            raise ConfigError(f"'prefetch': got {prefetch}, allowed 0..{MAX_PREFETCH}")
        self.slots = slots
        self.meter = Meter(opened_s=clock_s())
        self.source = source
        self.dtype = dtype
        self._clock_s = clock_s
        self.cache: ByteCache[bool] = ByteCache(self._budget(cache_bytes, prefetch))
        self._coming: dict[str, Arrival] = {}
        self._bases: dict[str, Base] = {}  # of layers that changed; they have their place in the cache, expired
        self._after = dict(zip(slots, list(slots)[1:], strict=False))
        self._last = ""

    @property
    def largest_bytes(self) -> int:
        """Memory of the largest layer as computed with."""
        return max(slot.size_bytes for slot in self.slots.values())

    def begin(self) -> None:
        """Before a pass: its first layer travels while something else is done."""
        self._ask(self._after.get(self._last, next(iter(self.slots))))

    def enter(self, slot: Slot) -> None:
        """Before a layer: its weights are there when this returns; raises LayerUnavailable."""
        name = slot.chunk.name
        if self._last:
            self._after[self._last] = name
        self._last = name
        if self.cache.get(name, slot.size_bytes) is None:
            coming = self._coming.pop(name, None)
            if coming is None or (coming.done() and coming.exception() is not None):  # what failed then may work now
                coming = self._fetch(slot)
            self._look_ahead(name)
            data = self._bytes(slot.chunk, coming)
            slot.fill(chunk_tensors(slot.chunk, data, self.dtype), data)
        else:
            self._look_ahead(name)
        slot.running += 1

    def leave(self, slot: Slot) -> None:
        """After a layer: it stays if the cache wants it."""
        if not slot.running:  # it never began: `enter` failed
            return
        slot.running -= 1
        name = slot.chunk.name
        if name not in self.cache:
            for left in self.cache.put(name, True, slot.size_bytes, self._coming):
                self.slots[left].empty(self.dtype)
                self._bases.pop(left, None)
            if name not in self.cache and not slot.running:
                slot.empty(self.dtype)

    def tensors(self, chunk: Chunk, coming: Arrival) -> Tensors:
        """A chunk's tensors, as computed with, once they are here; raises LayerUnavailable."""
        return chunk_tensors(chunk, self._bytes(chunk, coming), self.dtype)

    def wait(self, coming: Arrival) -> np.ndarray:
        """The bytes; waiting for them is counted as a stall."""
        if coming.done():
            return coming.result()
        started_s = self._clock_s()
        self.meter.stalls += 1
        try:
            return coming.result()
        finally:
            self.meter.stall_s += self._clock_s() - started_s

    def take_over(self, old: LayerStreamer, deltas: Collection[tuple[str, str]]) -> None:
        """Shares what is in memory there: layers of the same chunk, and of those that changed what a delta applies to.

        `deltas` are the digests (base, target) of those on offer. The other streamer is only read, and has to be
        released before this one runs. Raises LayerUnavailable where a layer does not fit; this one is empty then.
        """
        try:
            for name, slot in self.slots.items():
                other = old.slots.get(name)
                if other is None or name not in old.cache or other.size_bytes != slot.size_bytes:
                    continue
                same = other.chunk.digest == slot.chunk.digest
                offered = (other.chunk.digest, slot.chunk.digest) in deltas and other.stored is not None
                if not (same or offered):
                    continue
                self.cache.put(name, True, slot.size_bytes)
                if same and name in self.cache:
                    slot.fill(other.tensors(), other.stored)
                elif name in self.cache and other.stored is not None:
                    self._bases[name] = Base(other.chunk.digest, other.stored)
                    self.cache.expire(name)
        except LayerUnavailable:
            self.release()
            raise

    def release(self) -> None:
        """Gives all layers' memory back at once; they would have to be fetched again."""
        self._bases.clear()
        for name, slot in self.slots.items():
            self.cache.drop(name)
            slot.empty(self.dtype)
        self._coming.clear()

    def passed(self) -> None:
        """After a whole forward pass."""
        self.meter.forwards += 1
        if self.meter.first_output_s is None:
            self.meter.first_output_s = self._clock_s() - self.meter.opened_s

    def _look_ahead(self, name: str) -> None:
        """Asks for the next layers that are not here, in the order of the last time."""
        for _ in range(len(self.slots)):
            following = self._after.get(name)
            if following is None:
                return
            name = following
            self._ask(name)

    def _ask(self, name: str) -> None:
        if len(self._coming) >= self.prefetch or name in self._coming:
            return
        if name not in self.cache and not self.slots[name].running:
            self._coming[name] = self._fetch(self.slots[name])
            self.meter.prefetched += 1

    def _fetch(self, slot: Slot) -> Arrival:
        base = self._bases.pop(slot.chunk.name, None)
        return self.source.fetch(slot.chunk) if base is None else self.source.fetch(slot.chunk, base)

    def _bytes(self, chunk: Chunk, coming: Arrival) -> np.ndarray:
        try:
            return self.wait(coming)
        except (StreamSplitError, OSError) as error:
            raise LayerUnavailable(chunk.name, str(error)) from error

    def _budget(self, cache_bytes: int | None, prefetch: int) -> int:
        """Of what may stay: all, or the budget less what is on its way beyond the one that comes on top."""
        total, largest = sum(slot.size_bytes for slot in self.slots.values()), self.largest_bytes
        self.prefetch = prefetch
        if cache_bytes is None or cache_bytes >= total:
            return total
        if cache_bytes < largest:
            raise ConfigError(
                f"'cache_bytes': got {cache_bytes}, expected at least {largest}: the largest layer must fit"
            )
        self.prefetch = min(prefetch, cache_bytes // largest)
        return cache_bytes - self.prefetch * largest


def chunk_tensors(chunk: Chunk, data: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensors:
    """A chunk's tensors, as computed with, from its stored bytes [size] uint8; raises LayerUnavailable."""
    try:
        tensors = dequantise(open_tensors(unpacked(chunk, data)), dtype)
    except StreamSplitError as error:
        raise LayerUnavailable(chunk.name, str(error)) from error
    if set(tensors) != set(chunk.tensors):
        raise LayerUnavailable(chunk.name, "its chunk does not hold the tensors that the manifest names")
    return tensors


def _lies_in(tensor: torch.Tensor, data: np.ndarray) -> bool:
    return 0 <= tensor.data_ptr() - data.ctypes.data < len(data)


def put(module: nn.Module, attribute: str, tensor: torch.Tensor) -> None:
    """Sets a parameter or buffer."""
    if attribute in module._buffers:
        module._buffers[attribute] = tensor
    else:
        module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Sets a parameter or buffer by its full name."""
    owner, _, attribute = name.rpartition(".")
    put(model.get_submodule(owner), attribute, tensor)


def shape_of(tensor: torch.Tensor) -> Shape:
    """What a manifest's sizes are held against."""
    return Shape(tuple(tensor.shape), tensor.dtype.itemsize, tensor.is_floating_point())


def nothing(dtype: torch.dtype) -> torch.Tensor:
    """What stands where no weights are: no operation takes it for a matrix."""
    return torch.empty(0, dtype=dtype)
