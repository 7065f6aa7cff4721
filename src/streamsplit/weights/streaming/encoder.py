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
from streamsplit.weights.streaming.folder_lock import sole_writer
from streamsplit.weights.streaming.layers import LayerStreamer, Slot, Source, nothing, place, shape_of
from streamsplit.weights.streaming.limits import check_sizes
from streamsplit.weights.streaming.manifest import (
    FORMAT,
    NAME,
    Chunk,
    Manifest,
    file_name,
    read_manifest,
    sign,
)
from streamsplit.weights.streaming.publish import put_manifest, write_whole
from streamsplit.weights.streaming.quantise import Tensors, check_dtype, quantise
from streamsplit.weights.streaming.signer import check_signer

MODEL_TYPE = "streamsplit-encoder"
ARCHITECTURE = "SplitEncoder"


def chunk_encoder(
    encoder: SplitEncoder, settings: EncoderSettings, folder: str | Path, *, dtype: str = "fp32",
    signing_key: bytes = b"", replace_signer: bool = False,
) -> Manifest:  # fmt: skip
    """Writes an encoder as one chunk a block, and one of what belongs to none (exit heads, bottlenecks).

    `settings` are what `make_encoder` builds it from; the others as of ModelChunker, and what is raised, too.
    """
    manifest, stored = encoder_chunks(encoder, settings, dtype=dtype, signing_key=signing_key)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder, "weights chunk"):
        if (folder / NAME).exists():
            check_signer(folder, read_manifest(folder), signing_key, replace_signer)
        for digest, data in stored.items():
            write_whole(folder, file_name(digest), data)
        put_manifest(folder, manifest)
    return manifest


def encoder_chunks(
    encoder: SplitEncoder, settings: EncoderSettings, *, dtype: str = "fp32", signing_key: bytes = b"",
    space: int | None = None,
) -> tuple[Manifest, dict[str, bytes]]:  # fmt: skip
    """The manifest of an encoder, and its chunks by digest: equal blocks of two revisions are the same chunk.

    `space` is the number of its embedding space, where somebody counts them.
    """
    check_dtype(dtype)
    state = {name: tensor.detach().contiguous() for name, tensor in encoder.state_dict().items()}
    groups = {block_name(block): tuple(encoder.block_weights(block)) for block in range(1, encoder.num_blocks + 1)}
    held = {name for names in groups.values() for name in names}
    rest = tuple(name for name in state if name not in held)
    packed = [_pack("resident", "resident", rest, state, dtype)] if rest else []
    packed += [_pack(name, "layer", names, state, dtype) for name, names in groups.items() if names]
    config: dict[str, Any] = {"encoder": settings.as_dict(), "revision": revision_of(encoder_weights(encoder))}
    manifest = Manifest(
        format=FORMAT, model=encoder.name, model_type=MODEL_TYPE, architecture=ARCHITECTURE,
        dtype=dtype,  # type: ignore[arg-type]
        config=config if space is None else config | {"space": space},
        stacks=("block",), chunks=tuple(chunk for chunk, _ in packed),
    )  # fmt: skip
    if signing_key:
        manifest = sign(manifest, signing_key)
    return manifest, {chunk.digest: data for chunk, data in packed}


def block_name(block: int) -> str:
    """The name of a block's chunk, 1..L."""
    return f"block.{block}"


class EmptyEncoder:
    """An encoder as a manifest describes it, without weights: no operation takes an empty tensor for a matrix."""

    def __init__(self, manifest: Manifest) -> None:
        """Raises ManifestError for a manifest of something else, or of other tensors than such an encoder has."""
        if manifest.model_type != MODEL_TYPE:
            raise ManifestError(f"got a model of type '{manifest.model_type}', expected '{MODEL_TYPE}'")
        try:
            self.settings = EncoderSettings.from_mapping(manifest.config["encoder"])
        except (ConfigError, KeyError, TypeError) as error:
            raise ManifestError(f"the encoder's settings do not read ({error})") from None
        self.manifest = manifest
        self.encoder = make_encoder(self.settings)
        stored = self.encoder.state_dict()
        named = {tensor for chunk in manifest.chunks for tensor in chunk.tensors}
        if named != set(stored):
            raise ManifestError(
                f"got other tensors than a '{self.settings.name}' has ({sorted(named ^ set(stored))[0]})"
            )
        check_sizes(manifest, {name: shape_of(tensor) for name, tensor in stored.items()})
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        strides = {name: tensor.stride() for name, tensor in stored.items()}

        def laid_out(name: str, tensor: torch.Tensor) -> torch.Tensor:
            """With the plain encoder's strides: convolutions choose their kernels, and so their rounding, by them."""
            return torch.empty_strided(tensor.shape, strides[name]).copy_(tensor)

        for name in stored:
            place(self.encoder, name, nothing(torch.float32))
        self.slots = {chunk.name: Slot(chunk, chunk.memory_bytes, laid_out) for chunk in manifest.of_role("layer")}
        self.resident = [Slot(chunk, 0, laid_out) for chunk in manifest.of_role("resident")]
        for slot in (*self.slots.values(), *self.resident):
            slot.bind(self.encoder, shapes, {})


class StreamedEncoder:
    """`encoder` is a SplitEncoder like any other, whose blocks are in memory while they run or where they fit."""

    def __init__(
        self, manifest: Manifest, source: Source, *, cache_bytes: int | None, prefetch: int = 1,
        clock_s: Callable[[], float],
    ) -> None:  # fmt: skip
        """Raises ManifestError for a manifest of something else, ConfigError for a budget below the largest block."""
        empty = EmptyEncoder(manifest)
        self.manifest = manifest
        self.encoder = empty.encoder
        self.layers = LayerStreamer(
            empty.slots, source, cache_bytes=cache_bytes, prefetch=prefetch, dtype=torch.float32, clock_s=clock_s
        )
        for holder in empty.resident:
            holder.fill(self.layers.tensors(holder.chunk, source.fetch(holder.chunk)))
        self._advance = self.encoder.advance
        self.encoder.advance = self._streamed  # type: ignore[method-assign]

    @property
    def held_blocks(self) -> int:
        """Blocks 1..n that are in memory: `Observation.blocks`, by which a policy counts what a deeper cut fetches."""
        names = [block_name(block) for block in range(1, self.encoder.num_blocks + 1)]
        missing = (
            index for index, name in enumerate(names) if name in self.layers.slots and name not in self.layers.cache
        )
        return next(missing, len(names))

    def _streamed(self, crossing: Crossing, block: int) -> Crossing:
        slot = self.layers.slots.get(block_name(block))
        if slot is None:  # a block without weights
            return self._advance(crossing, block)
        try:
            self.layers.enter(slot)
            return self._advance(crossing, block)
        finally:
            self.layers.leave(slot)


def _pack(name: str, role: Any, names: tuple[str, ...], state: Tensors, dtype: str) -> tuple[Chunk, bytes]:
    data = pack_tensors(quantise({tensor: state[tensor] for tensor in names}, dtype))
    chunk = Chunk(
        name=name, role=role, digest=hashlib.sha256(data).hexdigest(), stored_bytes=len(data), raw_bytes=len(data),
        memory_bytes=sum(state[tensor].numel() * 4 for tensor in names), tensors=names,
    )  # fmt: skip
    return chunk, data
