"""StreamedModel: a transformers model whose layers are there while they run, and stay only where the budget allows.

Hooks put a layer's weights in before it runs and take them out after it, so every computation is the plain model's
own: in float32 the outputs are equal bit for bit. A parameter without weights is an empty tensor, which no operation
takes for a matrix; nothing is ever made up in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from streamsplit.errors import ConfigError, LayerUnavailable, ManifestError, StreamSplitError
from streamsplit.weights.streaming.cache import ByteCache
from streamsplit.weights.streaming.chunk_file import open_tensors, unpacked
from streamsplit.weights.streaming.graph import is_plain_embedding, stored_tensors
from streamsplit.weights.streaming.manifest import Chunk, Manifest
from streamsplit.weights.streaming.quantise import SENT, Tensors, dequantise, unpack_rows
from streamsplit.weights.streaming.skeleton import build_config, build_skeleton, transformers_module

COMPUTE = {name: SENT[name] for name in ("fp32", "fp16", "bf16")}


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

    def fetch(self, chunk: Chunk) -> Arrival:
        """The stored bytes of a chunk."""

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


class StreamedModel:
    """`model` is the transformers model; it runs like any other while weights come from `source`."""

    def __init__(
        self, manifest: Manifest, source: Source, *, cache_bytes: int | None, prefetch: int = 1, dtype: str = "fp32",
        clock_s: Callable[[], float],
    ) -> None:  # fmt: skip
        """`cache_bytes` bounds layers in memory, the running one included; one more may be on its way. None: all stay.

        Raises ConfigError for a budget smaller than the largest layer or an unknown dtype, ManifestError for a model
        that this installation cannot build, LayerUnavailable where what must stay resident cannot be had.
        """
        if dtype not in COMPUTE:
            raise ConfigError(f"'dtype': got '{dtype}', allowed {', '.join(COMPUTE)}")
        if not 0 <= prefetch <= 8:
            raise ConfigError(f"'prefetch': got {prefetch}, allowed 0..8")
        self.manifest = manifest
        self.meter = Meter(opened_s=clock_s())
        self._source = source
        self._clock_s = clock_s
        self._dtype = COMPUTE[dtype]
        self._slots = {chunk.name: _Slot(chunk, self._memory(chunk)) for chunk in manifest.of_role("layer", "head")}
        self.cache: ByteCache[bool] = ByteCache(self._budget(cache_bytes, prefetch))
        self._coming: dict[str, Arrival] = {}
        self._after = dict(zip(self._slots, list(self._slots)[1:], strict=False))
        self._last = ""
        self.model = self._build()
        self._tables = {chunk.tensors[0]: _Table(chunk, self) for chunk in manifest.of_role("rows")}
        self._attach()

    @property
    def largest_layer_bytes(self) -> int:
        """Memory of the largest layer or head as computed with."""
        return max(slot.size_bytes for slot in self._slots.values())

    # -- layers --------------------------------------------------------------------------------------------------

    def _enter(self, slot: _Slot, *_: Any) -> None:
        """Before a layer: its weights are there when this returns."""
        if self._last:
            self._after[self._last] = slot.chunk.name
        self._last = slot.chunk.name
        if self.cache.get(slot.chunk.name, slot.size_bytes) is None:
            coming = self._coming.pop(slot.chunk.name, None)
            if coming is None or (coming.done() and coming.exception() is not None):  # what failed then may work now
                coming = self._source.fetch(slot.chunk)
            self._look_ahead(slot.chunk.name)
            slot.fill(self._tensors(slot.chunk, coming))
        else:
            self._look_ahead(slot.chunk.name)
        slot.running += 1

    def _leave(self, slot: _Slot, *_: Any) -> None:
        """After a layer: it stays if the cache wants it."""
        if not slot.running:  # it never began: `_enter` failed
            return
        slot.running -= 1
        name = slot.chunk.name
        if name not in self.cache:
            for left in self.cache.put(name, True, slot.size_bytes):
                self._slots[left].empty(self._dtype)
            if name not in self.cache and not slot.running:
                slot.empty(self._dtype)

    def _look_ahead(self, name: str) -> None:
        """Asks for the next layers that are not here, in the order of the last time."""
        for _ in range(len(self._slots)):
            if len(self._coming) >= self.prefetch:
                return
            following = self._after.get(name)
            if following is None:
                return
            name = following
            if name not in self.cache and name not in self._coming and not self._slots[name].running:
                self._coming[name] = self._source.fetch(self._slots[name].chunk)
                self.meter.prefetched += 1

    def _tensors(self, chunk: Chunk, coming: Arrival) -> Tensors:
        try:
            sent = open_tensors(unpacked(chunk, self._wait(coming)))
            tensors = dequantise(sent, self._dtype)
        except (StreamSplitError, OSError) as error:
            raise LayerUnavailable(chunk.name, str(error)) from error
        if set(tensors) != set(chunk.tensors):
            raise LayerUnavailable(chunk.name, "its chunk does not hold the tensors that the manifest names")
        return tensors

    def _wait(self, coming: Arrival) -> np.ndarray:
        if coming.done():
            return coming.result()
        started_s = self._clock_s()
        self.meter.stalls += 1
        try:
            return coming.result()
        finally:
            self.meter.stall_s += self._clock_s() - started_s

    def rows(self, chunk: Chunk, blocks: list[int]) -> Iterator[torch.Tensor]:
        """Blocks of an embedding as matrices [rows, d], neighbours together; raises LayerUnavailable."""
        rows = chunk.rows
        if rows is None:
            raise LayerUnavailable(chunk.name, "it is not stored by rows")
        try:
            for arrival in self._source.fetch_rows(chunk, blocks):
                data = torch.from_numpy(self._wait(arrival)).view(-1, rows.row_bytes)
                yield unpack_rows(data, self.manifest.dtype, self._dtype)
        except (StreamSplitError, OSError) as error:
            raise LayerUnavailable(chunk.name, str(error)) from error

    # -- building ------------------------------------------------------------------------------------------------

    def _budget(self, cache_bytes: int | None, prefetch: int) -> int:
        """Of what may stay: all, or the budget less what is on its way beyond the one that comes on top."""
        total, largest = sum(slot.size_bytes for slot in self._slots.values()), self.largest_layer_bytes
        if cache_bytes is None or cache_bytes >= total:
            self.prefetch = prefetch
            return total
        if cache_bytes < largest:
            raise ConfigError(
                f"'cache_bytes': got {cache_bytes}, expected at least {largest}: the largest layer of "
                f"{self.manifest.model} must fit"
            )
        self.prefetch = min(prefetch, cache_bytes // largest)
        return cache_bytes - self.prefetch * largest

    def _memory(self, chunk: Chunk) -> int:
        return chunk.memory_bytes * self._dtype.itemsize // 4

    def _build(self) -> nn.Module:
        manifest = self.manifest
        model = build_skeleton(manifest.architecture, build_config(manifest.model_type, manifest.config))
        if manifest.generation and hasattr(model, "generation_config"):
            model.generation_config = transformers_module().GenerationConfig.from_dict(dict(manifest.generation))
        stored = stored_tensors(model)
        named = {tensor for chunk in manifest.chunks for tensor in chunk.tensors} | set(manifest.tied)
        if named != set(stored):
            strange = sorted(named ^ set(stored))
            raise ManifestError(
                f"got '{strange[0]}' in the manifest or in {manifest.architecture} only, expected the same tensors in "
                f"both; chunk the model with transformers {transformers_module().__version__}"
            )
        self._shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        for name in stored:
            _place(model, name, _nothing(self._dtype))
        return model

    def _attach(self) -> None:
        model, shared = self.model, _aliases(self.manifest)
        for chunk in self.manifest.of_role("resident"):
            holder = _Slot(chunk, 0)
            holder.bind(model, self._shapes, shared)
            holder.fill(self._tensors(chunk, self._source.fetch(chunk)))
        for slot in self._slots.values():
            slot.bind(model, self._shapes, shared)
            module = model.get_submodule(slot.chunk.name)
            module.register_forward_pre_hook(partial(_call, self._enter, slot))
            module.register_forward_hook(partial(_call, self._leave, slot), always_call=True)
        for name, table in self._tables.items():
            for alias in shared.get(name, [name]):
                owner = model.get_submodule(alias.rpartition(".")[0])
                if is_plain_embedding(owner):
                    owner.forward = table.look_up
                else:
                    owner.register_forward_pre_hook(partial(table.give_whole, alias.rpartition(".")[2]))
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        if self.model.training:
            self.model.eval()

    def _end(self, *_: Any) -> None:
        self.meter.forwards += 1
        if self.meter.first_output_s is None:
            self.meter.first_output_s = self._clock_s() - self.meter.opened_s


class _Slot:
    """Where one chunk's tensors go in the model."""

    def __init__(self, chunk: Chunk, size_bytes: int) -> None:
        self.chunk = chunk
        self.size_bytes = size_bytes
        self.running = 0
        self._places: list[tuple[nn.Module, str, str, tuple[int, ...]]] = []

    def bind(self, model: nn.Module, shapes: dict[str, tuple[int, ...]], shared: dict[str, list[str]]) -> None:
        """Finds the modules, once."""
        for tensor in self.chunk.tensors:
            for name in shared.get(tensor, [tensor]):
                owner, _, attribute = name.rpartition(".")
                self._places.append((model.get_submodule(owner), attribute, tensor, shapes[name]))

    def fill(self, tensors: Tensors) -> None:
        """Puts tensors in; raises LayerUnavailable where a shape is not the model's."""
        for _, _, tensor, shape in self._places:
            if tuple(tensors[tensor].shape) != shape:
                got = tuple(tensors[tensor].shape)
                raise LayerUnavailable(self.chunk.name, f"got shape {got} for '{tensor}', expected {shape}")
        for module, attribute, tensor, _ in self._places:
            _put(module, attribute, tensors[tensor])

    def empty(self, dtype: torch.dtype) -> None:
        """Takes them out."""
        for module, attribute, _, _ in self._places:
            _put(module, attribute, _nothing(dtype))


class _Table:
    """An embedding of which the rows asked for so far are here; the others have never touched memory."""

    def __init__(self, chunk: Chunk, owner: StreamedModel) -> None:
        if chunk.rows is None:
            raise ManifestError(f"chunk '{chunk.name}' has no rows")
        self._chunk = chunk
        self._rows = chunk.rows
        self._owner = owner
        self._table: torch.Tensor | None = None
        self._here = torch.zeros(chunk.rows.blocks, dtype=torch.bool)
        self._whole = False

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [..., d] of ids [...], fetched where they are not here."""
        if not self._whole:
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._rows.rows:
                raise IndexError(
                    f"'{self._chunk.name}': got ids {int(ids.min())}..{int(ids.max())} of {self._rows.rows}"
                )
            blocks = torch.div(ids.flatten(), self._rows.block_rows, rounding_mode="floor").unique()
            self._bring(blocks[~self._here[blocks]].tolist())
        return nn.functional.embedding(ids, self._matrix())

    def give_whole(self, attribute: str, module: nn.Module, _: Any) -> None:
        """Before a head that shares the matrix: all of it."""
        if not self._whole:
            self._bring((~self._here).nonzero().flatten().tolist())
            self._whole = True
        if module._parameters[attribute] is None or not module._parameters[attribute].numel():  # type: ignore[union-attr]
            _put(module, attribute, self._matrix())

    def _matrix(self) -> torch.Tensor:
        if self._table is None:
            self._table = torch.empty(self._rows.rows, self._rows.dim, dtype=self._owner._dtype)
        return self._table

    def _bring(self, blocks: list[int]) -> None:
        """Fetches blocks, in order, into their places."""
        at, matrix, count = 0, self._matrix(), self._rows.block_rows
        for part in self._owner.rows(self._chunk, blocks):
            taken = 0
            while taken < len(part):
                first = blocks[at] * count
                rows = min(count, self._rows.rows - first)
                matrix[first : first + rows] = part[taken : taken + rows]
                self._here[blocks[at]] = True
                taken, at = taken + rows, at + 1


def _aliases(manifest: Manifest) -> dict[str, list[str]]:
    """Stored name -> all names."""
    found: dict[str, list[str]] = {}
    for alias, stored in manifest.tied.items():
        found.setdefault(stored, [stored]).append(alias)
    return found


def _place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    _put(model.get_submodule(owner), attribute, tensor)


def _put(module: nn.Module, attribute: str, tensor: torch.Tensor) -> None:
    if attribute in module._buffers:
        module._buffers[attribute] = tensor
    else:
        module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def _nothing(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(0, dtype=dtype)


def _call(function: Callable[..., None], slot: _Slot, *_: Any) -> None:
    """A hook that changes neither inputs nor outputs."""
    function(slot)
