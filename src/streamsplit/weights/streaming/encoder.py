"""StreamedEncoder: a SplitEncoder on a device that has room for some of its blocks; the others come when a cut needs
them.

The blocks of one encoder are chunks like the layers of a transformer: same manifest, same server, same budget.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import ConfigError, ManifestError
from streamsplit.weights.revision import encoder_weights, revision_of
from streamsplit.weights.streaming.chunk_file import pack_tensors
from streamsplit.weights.streaming.layers import LayerStreamer, Slot, Source, nothing, place
from streamsplit.weights.streaming.manifest import (
    FORMAT,
    NAME,
    Chunk,
    Manifest,
    encode_manifest,
    file_name,
    sign,
)
from streamsplit.weights.streaming.quantise import Tensors, check_dtype, quantise

MODEL_TYPE = "streamsplit-encoder"
ARCHITECTURE = "SplitEncoder"


def chunk_encoder(
    encoder: SplitEncoder, settings: EncoderSettings, folder: str | Path, *, dtype: str = "fp32",
    signing_key: bytes = b"",
) -> Manifest:  # fmt: skip
    """Writes an encoder as one chunk a block, and one of what belongs to none (exit heads, bottlenecks).

    `settings` are what `make_encoder` builds it from. `dtype` as of ModelChunker.
    """
    check_dtype(dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in encoder.state_dict().items()}
    groups = {f"block.{block}": tuple(encoder.block_weights(block)) for block in range(1, encoder.num_blocks + 1)}
    held = {name for names in groups.values() for name in names}
    rest = tuple(name for name in state if name not in held)
    chunks = [_write(folder, "resident", "resident", rest, state, dtype)] if rest else []
    chunks += [_write(folder, name, "layer", names, state, dtype) for name, names in groups.items() if names]
    manifest = Manifest(
        format=FORMAT, model=encoder.name, model_type=MODEL_TYPE, architecture=ARCHITECTURE,
        dtype=dtype,  # type: ignore[arg-type]
        config={"encoder": settings.as_dict(), "revision": revision_of(encoder_weights(encoder))},
        stacks=("block",), chunks=tuple(chunks),
    )  # fmt: skip
    if signing_key:
        manifest = sign(manifest, signing_key)
    (folder / NAME).write_bytes(encode_manifest(manifest))
    return manifest


class StreamedEncoder:
    """`encoder` is a SplitEncoder like any other, whose blocks are in memory while they run or where they fit."""

    def __init__(
        self, manifest: Manifest, source: Source, *, cache_bytes: int | None, prefetch: int = 1,
        clock_s: Callable[[], float],
    ) -> None:  # fmt: skip
        """Raises ManifestError for a manifest of something else, ConfigError for a budget below the largest block."""
        if manifest.model_type != MODEL_TYPE:
            raise ManifestError(f"got a model of type '{manifest.model_type}', expected '{MODEL_TYPE}'")
        try:
            settings = EncoderSettings.from_mapping(manifest.config["encoder"])
        except (ConfigError, KeyError, TypeError) as error:
            raise ManifestError(f"the encoder's settings do not read ({error})") from None
        self.manifest = manifest
        self.encoder = make_encoder(settings)
        stored = self.encoder.state_dict()
        named = {tensor for chunk in manifest.chunks for tensor in chunk.tensors}
        if named != set(stored):
            raise ManifestError(f"got other tensors than a '{settings.name}' has ({sorted(named ^ set(stored))[0]})")
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        strides = {name: tensor.stride() for name, tensor in stored.items()}

        def laid_out(name: str, tensor: torch.Tensor) -> torch.Tensor:
            """With the plain encoder's strides: convolutions choose their kernels, and so their rounding, by them."""
            return torch.empty_strided(tensor.shape, strides[name]).copy_(tensor)

        for name in stored:
            place(self.encoder, name, nothing(torch.float32))
        slots = {chunk.name: Slot(chunk, chunk.memory_bytes, laid_out) for chunk in manifest.of_role("layer")}
        self.layers = LayerStreamer(
            slots, source, cache_bytes=cache_bytes, prefetch=prefetch, dtype=torch.float32, clock_s=clock_s
        )
        for slot in slots.values():
            slot.bind(self.encoder, shapes, {})
        for chunk in manifest.of_role("resident"):
            holder = Slot(chunk, 0, laid_out)
            holder.bind(self.encoder, shapes, {})
            holder.fill(self.layers.tensors(chunk, source.fetch(chunk)))
        self._advance = self.encoder.advance
        self.encoder.advance = self._streamed  # type: ignore[method-assign]

    @property
    def held_blocks(self) -> int:
        """Blocks 1..n that are in memory: `Observation.blocks`, by which a policy counts what a deeper cut fetches."""
        names = [f"block.{block}" for block in range(1, self.encoder.num_blocks + 1)]
        missing = (
            index for index, name in enumerate(names) if name in self.layers.slots and name not in self.layers.cache
        )
        return next(missing, len(names))

    def _streamed(self, crossing: Crossing, block: int) -> Crossing:
        slot = self.layers.slots.get(f"block.{block}")
        if slot is None:  # a block without weights
            return self._advance(crossing, block)
        try:
            self.layers.enter(slot)
            return self._advance(crossing, block)
        finally:
            self.layers.leave(slot)


def _write(folder: Path, name: str, role: Any, names: tuple[str, ...], state: Tensors, dtype: str) -> Chunk:
    data = pack_tensors(quantise({tensor: state[tensor] for tensor in names}, dtype))
    digest = hashlib.sha256(data).hexdigest()
    (folder / file_name(digest)).write_bytes(data)
    return Chunk(
        name=name, role=role, digest=digest, stored_bytes=len(data), raw_bytes=len(data),
        memory_bytes=sum(state[tensor].numel() * 4 for tensor in names), tensors=names,
    )  # fmt: skip
