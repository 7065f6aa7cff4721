"""Numbers of a manifest are held against the model before anything is allocated; skeletons are built side by side."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import ManifestError
from streamsplit.weights.streaming.encoder import EmptyEncoder, encoder_chunks
from streamsplit.weights.streaming.manifest import (
    Delta,
    Manifest,
    RowBlocks,
    decode_manifest,
    encode_manifest,
    read_manifest,
)
from streamsplit.weights.streaming.model import StreamedModel
from streamsplit.weights.streaming.skeleton import build_config, build_skeleton

from streamed_models import chunked, saved  # isort: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder: Path = tmp_path_factory.mktemp("bert")
    saved(folder / "model", "BertModel")
    chunked(folder / "model", folder / "chunks")
    return read_manifest(folder / "chunks")


class Nobody:
    """A source that must not be asked."""

    def fetch(self, *_: Any) -> Any:
        raise AssertionError("something was fetched")

    fetch_rows = fetch


def changed(manifest: Manifest, role: str, **values: Any) -> Manifest:
    chunk = manifest.of_role(role)[0]
    if "rows" in values:
        values["rows"] = msgspec.structs.replace(chunk.rows, **values["rows"])
    other = msgspec.structs.replace(chunk, **values)
    return msgspec.structs.replace(manifest, chunks=tuple(other if c is chunk else c for c in manifest.chunks))


@pytest.mark.parametrize(
    ("role", "values", "said"),
    [
        ("layer", {"raw_bytes": 1 << 39, "stored_bytes": 1 << 39}, "raw_bytes"),
        ("layer", {"memory_bytes": 4}, "memory_bytes"),
        ("resident", {"raw_bytes": 1 << 30, "stored_bytes": 1 << 30}, "raw_bytes"),
        ("rows", {"rows": {"rows": 1 << 39}}, "rows"),
        ("rows", {"rows": {"row_bytes": 1 << 20}}, "rows"),
    ],
)
def test_sizes_that_are_not_the_models_are_refused_before_anything_is_fetched(manifest, role, values, said):
    wrong = changed(manifest, role, **values)
    with pytest.raises(ManifestError, match=rf"chunk '.*': got {said} .*, expected .* for its tensors"):
        StreamedModel(wrong, Nobody(), cache_bytes=None, clock_s=lambda: 0.0)  # type: ignore[arg-type]


def test_a_configuration_of_more_layers_than_chunks_is_not_built(manifest):
    wrong = msgspec.structs.replace(manifest, config={**manifest.config, "num_hidden_layers": 10**9})
    with pytest.raises(ManifestError, match="'num_hidden_layers' 1000000000"):
        StreamedModel(wrong, Nobody(), cache_bytes=None, clock_s=lambda: 0.0)  # type: ignore[arg-type]


class Largest(TorchDispatchMode):
    """Sees every tensor that is made in memory."""

    size_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type == "cpu":
            self.size_bytes = max(self.size_bytes, made.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize(("positions", "said"), [(1 << 23, "chunk '.*position.*': got "), (1 << 26, "buffers take")])
def test_a_configuration_makes_nothing_large_before_it_is_checked(manifest, positions: int, said: str):
    """Its buffers are computed from numbers that chunks may bear out or not."""
    config = {**manifest.config, "max_position_embeddings": positions}
    wrong = msgspec.structs.replace(manifest, config=config)
    if said == "buffers take":
        name = "embeddings.position_embeddings.weight"
        row = {"rows": positions, "dim": 32, "row_bytes": 128, "block_rows": positions, "data_offset": 128}
        rows = RowBlocks(**row, digests=bytes(32))
        total = positions * 128
        sizes = {"memory_bytes": total, "raw_bytes": total + 128, "stored_bytes": total + 128}
        chunks = [
            msgspec.structs.replace(chunk, role="rows", rows=rows, **sizes) if chunk.tensors == (name,) else chunk
            for chunk in wrong.chunks
        ]
        wrong = msgspec.structs.replace(wrong, chunks=tuple(chunks))
    with Largest() as largest, pytest.raises(ManifestError, match=said):
        StreamedModel(wrong, Nobody(), cache_bytes=None, clock_s=lambda: 0.0)  # type: ignore[arg-type]
    assert largest.size_bytes < 1 << 16


def test_a_configuration_of_many_parts_that_the_manifest_does_not_name_is_not_built(manifest):
    sizes = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 4, "decoder_num_hidden_layers": 3000}
    wrong = msgspec.structs.replace(
        manifest, model_type="vit_mae", architecture="ViTMAEForPreTraining",
        config={"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 32, **sizes},
    )  # fmt: skip
    with pytest.raises(ManifestError, match="far more tensors than the manifest names"):
        StreamedModel(wrong, Nobody(), cache_bytes=None, clock_s=lambda: 0.0)  # type: ignore[arg-type]


def test_an_encoders_blocks_and_a_deltas_size_are_held_to_the_same(manifest):
    settings = EncoderSettings(width=0.25, embedding_dim=16)
    whole, _ = encoder_chunks(make_encoder(settings), settings)
    with pytest.raises(ManifestError, match="raw_bytes"):
        EmptyEncoder(changed(whole, "layer", raw_bytes=1 << 39, stored_bytes=1 << 39))
    target = manifest.chunks[0].digest
    delta = Delta(base="0" * 64, target=target, digest="1" * 64, stored_bytes=1 << 40, kind="exact")
    with pytest.raises(ManifestError, match="larger than the chunk"):
        decode_manifest(encode_manifest(msgspec.structs.replace(manifest, deltas=(delta,))))


def test_skeletons_are_built_in_one_thread_while_others_build_real_models(manifest):
    config = build_config(manifest.model_type, manifest.config)
    wrong: list[str] = []
    over = threading.Event()

    def real() -> None:
        while not over.is_set():
            layer = nn.Linear(7, 5)
            if layer.weight.device.type != "cpu" or not bool(layer.weight.any()):
                wrong.append("a real layer lost its weights")

    def empty() -> None:
        for _ in range(3):
            model = build_skeleton(manifest.architecture, config)
            if any(parameter.device.type != "meta" for parameter in model.parameters()):
                wrong.append("a skeleton has weights")
            if any(buffer.device.type != "cpu" for buffer in model.buffers()):
                wrong.append("a buffer is lost")

    threads = [threading.Thread(target=empty) for _ in range(2)]
    beside = threading.Thread(target=real)
    for thread in (beside, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    over.set()
    beside.join(60)
    assert not wrong
    assert nn.Linear(3, 2).weight.device.type == "cpu" and torch.equal(
        model_buffers(manifest)["embeddings.position_ids"], torch.arange(config.max_position_embeddings)[None]
    )


def model_buffers(manifest: Manifest) -> dict[str, torch.Tensor]:
    return dict(
        build_skeleton(manifest.architecture, build_config(manifest.model_type, manifest.config)).named_buffers()
    )
