"""A new revision over real sockets: a device that keeps chunks gets deltas, and never a mixture of two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from weight_stream_harness import weight_server

from streamsplit.facade.streaming import StreamingBertModel
from streamsplit.facade.streaming_config import StreamingConfig
from streamsplit.weights.streaming.manifest import encode_manifest, file_name, read_manifest
from streamsplit.weights.streaming.publish import publish

from streamed_models import VOCABULARY, chunked, saved  # isort: skip

IDS = {"input_ids": torch.arange(2, 14)[None] % VOCABULARY}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    saved(tmp_path / "model", "BertModel")
    chunked(tmp_path / "model", tmp_path / "served")
    with weight_server(tmp_path / "served") as server:
        yield tmp_path, server.url


def next_revision(folder: Path, pooler: float = 0.0) -> Any:
    """The model with a hundredth of one layer and the pooler changed, chunked into `new`."""
    import transformers

    model = transformers.BertModel.from_pretrained(folder / "model").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.encoder.layer[2].parameters():
            parameter.add_(0.1 * (torch.rand(parameter.shape, generator=generator) < 0.01))
        model.pooler.dense.bias.add_(pooler)
    model.save_pretrained(folder / "model")
    chunked(folder / "model", folder / "new")
    return model


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**IDS)[0]


def test_a_running_model_takes_up_a_new_revision_by_its_delta(served):
    folder, url = served
    config = StreamingConfig(disk_cache_dir=str(folder / "cache"))
    with StreamingBertModel.open(url, config=config) as model:
        first = outputs(model)
        assert model.refresh() is False
        plain = next_revision(folder)
        result = publish(folder / "served", folder / "new")
        assert torch.equal(outputs(model), first)  # until it is told
        assert model.refresh() is True
        assert torch.equal(outputs(model), outputs(plain)) and not torch.equal(outputs(model), first)
        metrics = model.monitor.get_metrics()
        assert metrics["deltas_applied"] == 1
        layer = read_manifest(folder / "served").chunk("encoder.layer.2").stored_bytes
        assert result["delta_bytes"] < 0.15 * layer and metrics["bytes_received"] < 0.8 * layer
    with StreamingBertModel.open(url) as fresh:
        assert torch.equal(outputs(fresh), outputs(plain))


@pytest.mark.parametrize("kind", ["exact", "int8"])
def test_what_is_in_memory_and_did_not_change_stays_there_and_the_rest_comes_as_deltas(served, kind: Any):
    folder, url = served
    with StreamingBertModel.open(url) as model:
        first = outputs(model)
        next_revision(folder)
        result = publish(folder / "served", folder / "new", kind=kind)
        assert model.refresh() and not torch.equal(outputs(model), first)
        metrics = model.monitor.get_metrics()
        assert (metrics["deltas_applied"], metrics["cache_hits"], metrics["cache_misses"]) == (1, 3, 1)
        manifest_bytes = len(encode_manifest(read_manifest(folder / "served")))
        assert 0 < metrics["bytes_received"] - manifest_bytes - result["delta_bytes"] < 1000
        with StreamingBertModel.open(url) as fresh:
            assert torch.equal(outputs(model), outputs(fresh))
            assert fresh.monitor.get_metrics()["bytes_received"] > 4 * 30_000


@pytest.mark.parametrize("disk", [True, False])
def test_a_delta_that_does_not_lead_to_the_new_chunk_is_not_used(served, disk: bool):
    folder, url = served
    config = StreamingConfig(disk_cache_dir=str(folder / "cache") if disk else "")
    with StreamingBertModel.open(url, config=config) as model:
        outputs(model)
        plain = next_revision(folder)
        publish(folder / "served", folder / "new")
        (delta,) = read_manifest(folder / "served").deltas
        path = folder / "served" / file_name(delta.digest)
        path.write_bytes(bytes(len(path.read_bytes())))
        kept = (folder / "cache" / file_name(delta.base)).read_bytes() if disk else b""
        assert model.refresh()
        assert torch.equal(outputs(model), outputs(plain))
        assert model.monitor.get_metrics()["deltas_applied"] == 0
        assert not disk or (folder / "cache" / file_name(delta.base)).read_bytes() == kept


def test_a_revision_that_cannot_be_had_leaves_the_old_one_in_use(served):
    folder, url = served
    with StreamingBertModel.open(url) as model:
        first = outputs(model)
        next_revision(folder, pooler=0.1)
        publish(folder / "served", folder / "new")
        resident = read_manifest(folder / "served").chunk("resident")
        path = folder / "served" / file_name(resident.digest)
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(Exception, match="resident"):
            model.refresh()
        received = model.monitor.get_metrics()["bytes_received"]
        assert torch.equal(outputs(model), first)
        assert model.monitor.get_metrics()["bytes_received"] == received  # all of it still in memory
        path.write_bytes(good)
        assert model.refresh() and not torch.equal(outputs(model), first)
