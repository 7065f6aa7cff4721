"""StreamedModel: a transformers model whose layers are there while they run, and stay only where the budget allows.

Hooks put a layer's weights in before it runs and take them out after it, so every computation is the plain model's
own: in float32 the outputs are equal bit for bit. A parameter without weights is an empty tensor, which no operation
takes for a matrix; nothing is ever made up in its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from streamsplit.errors import ConfigError, LayerUnavailable, ManifestError, StreamSplitError
from streamsplit.weights.streaming.graph import is_plain_embedding, stored_tensors
from streamsplit.weights.streaming.layers import Arrival, LayerStreamer, Slot, Source, nothing, place, put, shape_of
from streamsplit.weights.streaming.limits import check_buffers, check_layers, check_sizes
from streamsplit.weights.streaming.manifest import Chunk, Manifest
from streamsplit.weights.streaming.quantise import SENT, unpack_rows
from streamsplit.weights.streaming.skeleton import (
    build_config,
    build_shapes,
    build_skeleton,
    transformers_module,
)

ROWS_BYTES = 1 << 20  # of rows that are asked for together
ROWS_AHEAD = 4  # such parts are on their way
COMPUTE = {name: SENT[name] for name in ("fp32", "fp16", "bf16")}


class StreamedModel:
    """`model` is the transformers model; it runs like any other while weights come from `source`."""

    def __init__(
        self, manifest: Manifest, source: Source, *, cache_bytes: int | None, prefetch: int = 1, dtype: str = "fp32",
        clock_s: Callable[[], float], before: StreamedModel | None = None,
    ) -> None:  # fmt: skip
        """See LayerStreamer for the budget, which does not count embeddings: of them, what was looked up stays.

        What is the same in a revision `before` is not fetched: it is shared, and `take_over` gets it for good.
        Raises ConfigError for a budget smaller than the largest layer or an unknown dtype, ManifestError for a model
        that this installation cannot build, LayerUnavailable where what must stay resident cannot be had.
        """
        if dtype not in COMPUTE:
            raise ConfigError(f"'dtype': got '{dtype}', allowed {', '.join(COMPUTE)}")
        self.manifest = manifest
        self.dtype = COMPUTE[dtype]
        chunks = manifest.of_role("layer", "head")
        slots = {chunk.name: Slot(chunk, chunk.memory_bytes * self.dtype.itemsize // 4) for chunk in chunks}
        self.layers = LayerStreamer(
            slots, source, cache_bytes=cache_bytes, prefetch=prefetch, dtype=self.dtype, clock_s=clock_s
        )
        self._tables: dict[str, _Table] = {}
        self._resident: dict[str, Slot] = {}  # by digest
        here = {} if before is None or before.dtype is not self.dtype else before._resident
        self._shapes = self._checked()
        coming = [(chunk, source.fetch(chunk)) for chunk in manifest.of_role("resident") if chunk.digest not in here]
        if before is None:
            self.layers.begin()  # the first layer travels while the model is built
        self.model = self._build()
        self._attach(here, {chunk.digest: arrival for chunk, arrival in coming})
        if before is not None and self._like(before):
            offered = {(delta.base, delta.target) for delta in manifest.deltas}
            self.layers.take_over(before.layers, offered)

    def take_over(self, before: StreamedModel) -> None:
        """Takes the embeddings' rows that are the same in the revision before, which is empty afterwards."""
        if self._like(before):
            for name, table in self._tables.items():
                other = before._tables.get(name)
                if other is not None:
                    table.take_over(other)
        before.release()

    def release(self) -> None:
        """Gives the memory of all weights back: the model cannot run any more."""
        self.layers.release()
        for holder in self._resident.values():
            holder.empty(self.dtype)
        for table in self._tables.values():
            table.release()

    def rows(self, chunk: Chunk, blocks: list[int]) -> Iterator[torch.Tensor]:
        """Blocks of an embedding as matrices [rows, d], neighbours together; raises LayerUnavailable.

        A few megabytes are on their way at a time: a head's whole matrix is not held a second time while it comes.
        """
        if chunk.rows is None:
            raise LayerUnavailable(chunk.name, "it is not stored by rows")
        count = max(1, ROWS_BYTES // (chunk.rows.block_rows * chunk.rows.row_bytes))
        parts = iter([blocks[at : at + count] for at in range(0, len(blocks), count)])
        coming: deque[Arrival] = deque()
        try:
            while True:
                while len(coming) < ROWS_AHEAD and (part := next(parts, None)) is not None:
                    coming.extend(self.layers.source.fetch_rows(chunk, part))
                if not coming:
                    return
                data = torch.from_numpy(self.layers.wait(coming.popleft())).view(-1, chunk.rows.row_bytes)
                yield unpack_rows(data, self.manifest.dtype, self.dtype)
        except (StreamSplitError, OSError) as error:
            raise LayerUnavailable(chunk.name, str(error)) from error

    def _build(self) -> nn.Module:
        manifest = self.manifest
        model = build_skeleton(manifest.architecture, build_config(manifest.model_type, manifest.config))
        if manifest.generation and hasattr(model, "generation_config"):
            model.generation_config = transformers_module().GenerationConfig.from_dict(dict(manifest.generation))
        for name in self._shapes:
            place(model, name, nothing(self.dtype))
        return model

    def _checked(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the model's tensors, by name; the manifest is held to them before anything takes memory."""
        manifest = self.manifest
        check_layers(manifest)
        named = {tensor for chunk in manifest.chunks for tensor in chunk.tensors} | set(manifest.tied)
        config = build_config(manifest.model_type, manifest.config)
        shapes = build_shapes(manifest.architecture, config, most_tensors=len(named))
        stored = stored_tensors(shapes)
        if named != set(stored):
            strange = sorted(named ^ set(stored))
            raise ManifestError(
                f"got '{strange[0]}' in the manifest or in {manifest.architecture} only, expected the same tensors in "
                f"both; chunk the model with transformers {transformers_module().__version__}"
            )
        check_sizes(manifest, {name: shape_of(tensor) for name, tensor in stored.items()})
        check_buffers({name: shape_of(tensor) for name, tensor in shapes.named_buffers() if name not in stored})
        return {name: tuple(tensor.shape) for name, tensor in stored.items()}

    def _like(self, other: StreamedModel) -> bool:
        """Whether equal chunks mean equal tensors."""
        return self.dtype is other.dtype and self.manifest.dtype == other.manifest.dtype

    def _attach(self, here: Mapping[str, Slot], coming: Mapping[str, Arrival]) -> None:
        model, shared, layers = self.model, _aliases(self.manifest), self.layers
        for chunk in self.manifest.of_role("resident"):
            holder = Slot(chunk, 0)
            holder.bind(model, self._shapes, shared)
            arrival = coming.get(chunk.digest)
            holder.fill(here[chunk.digest].tensors() if arrival is None else layers.tensors(chunk, arrival))
            self._resident[chunk.digest] = holder
        for slot in layers.slots.values():
            slot.bind(model, self._shapes, shared)
            module = model.get_submodule(slot.chunk.name)
            module.register_forward_pre_hook(partial(_call, layers.enter, slot))
            module.register_forward_hook(partial(_call, layers.leave, slot), always_call=True)
        for chunk in self.manifest.of_role("rows"):
            table, (name,) = _Table(chunk, self), chunk.tensors
            self._tables[chunk.name] = table
            for alias in shared.get(name, [name]):
                path, _, attribute = alias.rpartition(".")
                owner = model.get_submodule(path)
                if is_plain_embedding(owner):
                    owner.forward = table.look_up
                else:
                    owner.register_forward_pre_hook(partial(table.give_whole, attribute))
        self._modules = list(model.modules())
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        if any(module.training for module in self._modules):
            self.model.eval()
        self.layers.begin()

    def _end(self, *_: Any) -> None:
        self.layers.passed()


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
        self._shared: list[tuple[nn.Module, str]] = []  # heads that hold the matrix, too

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
            put(module, attribute, self._matrix())
            self._shared.append((module, attribute))

    def take_over(self, old: _Table) -> None:
        """Takes another revision's matrix, and of its blocks those that have the same hash."""
        mine, other = self._rows, old._rows
        if (mine.rows, mine.dim, mine.block_rows) == (other.rows, other.dim, other.block_rows):
            same = torch.tensor([mine.digest(block) == other.digest(block) for block in range(mine.blocks)])
            self._table, self._here = old._table, old._here & same
            self._whole = old._whole and bool(same.all())

    def release(self) -> None:
        """Forgets all rows."""
        self._table, self._whole = None, False
        self._here = torch.zeros_like(self._here)
        while self._shared:
            put(*self._shared.pop(), nothing(self._owner.dtype))

    def _matrix(self) -> torch.Tensor:
        if self._table is None:
            self._table = torch.empty(self._rows.rows, self._rows.dim, dtype=self._owner.dtype)
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


def _call(function: Callable[..., None], slot: Slot, *_: Any) -> None:
    """A hook that changes neither inputs nor outputs."""
    function(slot)
