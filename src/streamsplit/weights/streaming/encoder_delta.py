"""From one revision of an encoder to the next in few bytes: deltas of the blocks that changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import msgspec
import numpy as np
import torch

from streamsplit.errors import ManifestError, MissingExtraError, RevisionError
from streamsplit.weights.delta import part_of_delta
from streamsplit.weights.revision import Weights
from streamsplit.weights.streaming.buffers import aligned_copy
from streamsplit.weights.streaming.chunk_file import open_tensors
from streamsplit.weights.streaming.manifest import Chunk, Delta, Manifest
from streamsplit.weights.streaming.revision_delta import WORTH, applied, exact_delta

LOG = logging.getLogger(__name__)


def with_deltas(
    before: Manifest, after: Manifest, chunks: Mapping[str, bytes], whole: bytes = b""
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest `after` with deltas from the chunks of `before`, and those deltas' bytes by digest.

    `chunks` holds both revisions' chunks by digest; `whole` is the int8 delta (`weights.delta`) that leads from one
    revision's weights to the other's, where there is one. Every delta was applied once, and led to the new chunk.
    """
    old = {chunk.name: chunk for chunk in before.chunks}
    deltas: list[Delta] = []
    stored: dict[str, bytes] = {}
    for chunk in after.chunks:
        base = old.get(chunk.name)
        if base is None or base.digest == chunk.digest:
            continue
        found = _int8(base, chunk, chunks, whole) or _exact(base, chunk, chunks)
        if found is not None and found[0].stored_bytes < WORTH * chunk.stored_bytes:
            deltas.append(found[0])
            stored[found[0].digest] = found[1]
    return msgspec.structs.replace(after, deltas=tuple(deltas)), stored


def _int8(base: Chunk, chunk: Chunk, chunks: Mapping[str, bytes], whole: bytes) -> tuple[Delta, bytes] | None:
    """The revision's own delta, as far as it is about this chunk: its steps lead to these very bits."""
    if not whole:
        return None
    old, new = _weights(chunks[base.digest]), _weights(chunks[chunk.digest])
    if old is None or new is None:
        return None
    try:
        data = part_of_delta(whole, old, new)
        delta = _delta(base, chunk, data, "int8")
        applied(chunk, delta, aligned_copy(chunks[base.digest]), np.frombuffer(data, np.uint8))
    except (ManifestError, RevisionError) as error:  # the revision itself is good without a delta
        LOG.warning("chunk '%s': no int8 delta (%s)", chunk.name, error)
        return None
    return delta, data


def _exact(base: Chunk, chunk: Chunk, chunks: Mapping[str, bytes]) -> tuple[Delta, bytes] | None:
    try:
        data = exact_delta(chunks[base.digest], chunks[chunk.digest])
    except MissingExtraError:  # without zstandard chunks go whole
        return None
    return None if data is None else (_delta(base, chunk, data, "exact"), data)


def _delta(base: Chunk, chunk: Chunk, data: bytes, kind: str) -> Delta:
    digest = hashlib.sha256(data).hexdigest()
    return Delta(base=base.digest, target=chunk.digest, digest=digest, stored_bytes=len(data), kind=kind)  # type: ignore[arg-type]


def _weights(data: bytes) -> Weights | None:
    """A chunk's arrays; None where not all are float32."""
    tensors = open_tensors(aligned_copy(data))
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        return None
    return {name: tensor.numpy() for name, tensor in tensors.items()}
