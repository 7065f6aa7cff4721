"""Deltas of chunks: they lead to the published bytes exactly, or nowhere."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamsplit.errors import ConfigError, ManifestError
from streamsplit.weights.streaming.chunk_file import open_tensors
from streamsplit.weights.streaming.manifest import Manifest, file_name, read_manifest
from streamsplit.weights.streaming.publish import publish
from streamsplit.weights.streaming.revision_delta import applied

from streamed_models import chunked, saved  # isort: skip


def bytes_of(folder: Path, digest: str) -> np.ndarray:
    return np.frombuffer((folder / file_name(digest)).read_bytes(), np.uint8).copy()


def two_revisions(folder: Path, share: float = 1.0, size: float = 1e-4, **options: Any) -> tuple[Any, Manifest]:
    """Folders `served` and `new`, layer 1 of which differs in a `share` of its numbers; new model, old manifest."""
    model = saved(folder / "model", "BertModel")
    old = chunked(folder / "model", folder / "served", **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.encoder.layer[1].parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < share
            parameter.add_(size * chosen * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "model")
    chunked(folder / "model", folder / "new", **options)
    return model, old


def test_a_sparse_change_travels_as_a_small_exact_delta(tmp_path: Path):
    _, old = two_revisions(tmp_path, share=0.01)
    wanted = read_manifest(tmp_path / "new")
    result = publish(tmp_path / "served", tmp_path / "new")
    manifest = read_manifest(tmp_path / "served")
    assert result["changed"] == ["encoder.layer.1"] and result["delta_bytes"] < 0.1 * result["chunk_bytes"]
    assert manifest.chunks == wanted.chunks and result["revision"] == manifest.revision
    (delta,) = manifest.deltas
    base, data = bytes_of(tmp_path / "served", delta.base), bytes_of(tmp_path / "served", delta.digest)
    new = applied(manifest.chunk("encoder.layer.1"), delta, base, data)
    assert new.tobytes() == (tmp_path / "new" / file_name(delta.target)).read_bytes()
    assert delta.base == old.chunk("encoder.layer.1").digest


def test_a_dense_change_travels_as_int8_and_leads_to_what_is_published(tmp_path: Path):
    model, _ = two_revisions(tmp_path)
    result = publish(tmp_path / "served", tmp_path / "new", kind="int8")
    manifest = read_manifest(tmp_path / "served")
    (delta,) = manifest.deltas
    assert delta.kind == "int8" and result["delta_bytes"] < 0.45 * result["chunk_bytes"]
    chunk = manifest.chunk("encoder.layer.1")
    new = applied(chunk, delta, bytes_of(tmp_path / "served", delta.base), bytes_of(tmp_path / "served", delta.digest))
    assert hashlib.sha256(new).hexdigest() == chunk.digest
    for name, tensor in open_tensors(new).items():
        assert (tensor - model.state_dict()[name]).abs().max() < 4.5e-4 / 254 * 1.2 + 1e-7, name


def test_a_change_of_everything_has_no_exact_delta(tmp_path: Path):
    two_revisions(tmp_path, size=1.0)
    result = publish(tmp_path / "served", tmp_path / "new")
    assert result["delta_bytes"] == result["chunk_bytes"] and read_manifest(tmp_path / "served").deltas == ()


@pytest.mark.parametrize("kind", ["exact", "int8"])
@pytest.mark.parametrize("damage", ["base", "delta", "short", "other"])
def test_a_delta_on_something_else_leads_nowhere(tmp_path: Path, kind: str, damage: str):
    two_revisions(tmp_path, share=0.05)
    publish(tmp_path / "served", tmp_path / "new", kind=kind)
    manifest = read_manifest(tmp_path / "served")
    (delta,), chunk = manifest.deltas, manifest.chunk("encoder.layer.1")
    base, data = bytes_of(tmp_path / "served", delta.base), bytes_of(tmp_path / "served", delta.digest)
    if damage == "base":
        base[-1] ^= 1
    elif damage == "delta":
        data[len(data) // 2] ^= 1
    elif damage == "short":
        data = data[:-20]
    else:
        base = bytes_of(tmp_path / "served", manifest.chunk("encoder.layer.2").digest)
    with pytest.raises(ManifestError):
        applied(chunk, delta, base, data)


def test_another_model_or_kind_is_refused_and_nothing_changes(tmp_path: Path):
    _, old = two_revisions(tmp_path)
    saved(tmp_path / "gpt", "GPT2LMHeadModel")
    chunked(tmp_path / "gpt", tmp_path / "other")
    chunked(tmp_path / "model", tmp_path / "half", dtype="fp16")
    for folder in ("other", "half"):
        with pytest.raises(ManifestError, match="that is served"):
            publish(tmp_path / "served", tmp_path / folder)
    with pytest.raises(ConfigError, match="allowed exact, int8"):
        publish(tmp_path / "served", tmp_path / "new", kind="int4")  # type: ignore[arg-type]
    assert read_manifest(tmp_path / "served") == old
