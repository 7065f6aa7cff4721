"""A manifest's numbers against the model that it describes, before anything is allocated or fetched for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from streamsplit.errors import ManifestError
from streamsplit.weights.streaming.manifest import Chunk, Manifest

MAX_HEADER_BYTES = 1 << 20  # of a chunk's safetensors header, its length included
MAX_BUFFER_BYTES = 256 << 20  # of a model's tensors that are computed from its configuration
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_STEP_BYTES = 4  # int8: one step size for every output channel or row
_LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)


class Shape(NamedTuple):
    """A tensor of the model."""

    shape: tuple[int, ...]
    itemsize: int = 4
    floating: bool = True


def check_layers(manifest: Manifest) -> None:
    """Refuses a configuration of more layers than there are chunks for: building it would take for ever."""
    most = len(manifest.of_role("layer"))
    for name in _LAYER_COUNTS:
        count: Any = manifest.config.get(name)
        if isinstance(count, int) and count > most:
            raise ManifestError(
                f"got '{name}' {count} in the configuration, expected at most {most} as there are chunks"
            )


def check_sizes(manifest: Manifest, shapes: Mapping[str, Shape]) -> None:
    """Raises ManifestError for the first chunk whose sizes are not those of its tensors in the model."""
    for chunk in manifest.chunks:
        held = [shapes[name] for name in chunk.tensors]
        memory_bytes = sum(math.prod(tensor.shape) * 4 for tensor in held)
        if chunk.memory_bytes != memory_bytes:
            raise _wrong(chunk, "memory_bytes", chunk.memory_bytes, str(memory_bytes))
        most = MAX_HEADER_BYTES + sum(_sent_bytes(tensor, manifest.dtype) for tensor in held)
        if not chunk.stored_bytes <= chunk.raw_bytes <= most:
            raise _wrong(chunk, "raw_bytes", chunk.raw_bytes, f"{chunk.stored_bytes}..{most}")
        if chunk.rows is not None:
            _check_rows(chunk, held[0], manifest.dtype)


def check_buffers(shapes: Mapping[str, Shape]) -> None:
    """Raises ManifestError where buffers, which no chunk holds and no size of the manifest bounds, are large."""
    size_bytes = {name: math.prod(held.shape) * held.itemsize for name, held in shapes.items()}
    total = sum(size_bytes.values())
    if total > MAX_BUFFER_BYTES:
        largest = max(size_bytes, key=lambda name: size_bytes[name])
        raise ManifestError(
            f"got a configuration whose buffers take {total} bytes ('{largest}' most), expected at most "
            f"{MAX_BUFFER_BYTES}"
        )


def _check_rows(chunk: Chunk, matrix: Shape, dtype: str) -> None:
    rows = chunk.rows
    if rows is None:
        return
    row_bytes = rows.dim * _BYTES[dtype] + (_STEP_BYTES if dtype == "int8" else 0)
    got, expected = (rows.rows, rows.dim, rows.row_bytes), (*matrix.shape, row_bytes)
    if got != expected:
        raise _wrong(chunk, "rows", got, str(expected))


def _sent_bytes(tensor: Shape, dtype: str) -> int:
    count = math.prod(tensor.shape)
    if not tensor.floating:
        return count * tensor.itemsize
    if dtype == "int8":
        return count + tensor.shape[0] * _STEP_BYTES if len(tensor.shape) >= 2 else 4 * count
    return count * _BYTES[dtype]


def _wrong(chunk: Chunk, what: str, got: Any, expected: str) -> ManifestError:
    return ManifestError(f"chunk '{chunk.name}': got {what} {got}, expected {expected} for its tensors in this model")
