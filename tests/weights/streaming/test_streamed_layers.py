"""What is in memory while a streamed model runs: never more than the budget and one layer, whatever the depth."""

from __future__ import annotations

import copy
import hashlib
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.errors import ConfigError, LayerUnavailable, ManifestError
from streamsplit.weights.streaming.buffers import Base, aligned_buffer
from streamsplit.weights.streaming.chunk_file import open_tensors, pack_tensors
from streamsplit.weights.streaming.manifest import Chunk, Manifest, file_name, read_manifest
from streamsplit.weights.streaming.model import StreamedModel
from streamsplit.weights.streaming.publish import publish

from streamed_models import VOCABULARY, chunked, saved  # isort: skip

IDS = torch.arange(2, 11)[None] % VOCABULARY


class FolderSource:
    """Chunks from a folder; tells `watch` of every fetch, and whose bytes have not been taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        self.untaken: dict[str, int] = {}
        self.bases: list[tuple[str, str, str]] = []
        self.watch: Callable[[], None] = lambda: None

    def fetch(self, chunk: Chunk, base: Base | None = None) -> Future[np.ndarray]:
        data = np.fromfile(self.folder / file_name(chunk.digest), np.uint8)
        buffer = aligned_buffer(len(data)) if base is None else base.data
        if base is not None:
            self.bases.append((chunk.name, base.digest, hashlib.sha256(base.data).hexdigest()))
        buffer[:] = data
        self.fetched.append(chunk.name)
        self.untaken[chunk.name] = 0 if base is not None else chunk.memory_bytes
        self.watch()
        return _Taken(buffer, lambda: self.untaken.pop(chunk.name, None))

    def fetch_rows(self, chunk: Chunk, blocks: list[int]) -> list[Future[np.ndarray]]:
        data = np.fromfile(self.folder / file_name(chunk.digest), np.uint8)
        assert chunk.rows is not None
        spans = [chunk.rows.span(block) for block in blocks]
        return [_Taken(data[offset : offset + length], lambda: None) for offset, length in spans]


class _Taken(Future):
    def __init__(self, data: np.ndarray, taken: Callable[[], object]) -> None:
        super().__init__()
        self.set_result(data)
        self._taken = taken

    def result(self, timeout: float | None = None) -> np.ndarray:
        self._taken()
        return super().result(timeout)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Manifest, Path]:
    folder = tmp_path_factory.mktemp("layers")
    model = saved(folder / "model", "BertModel")
    return model, chunked(folder / "model", folder / "chunks"), folder / "chunks"


def streamed(manifest: Manifest, source: FolderSource, layers: float, prefetch: int) -> StreamedModel:
    budget = int(layers * manifest.largest_layer_bytes)
    return StreamedModel(manifest, source, cache_bytes=budget, prefetch=prefetch, clock_s=lambda: 0.0)


@pytest.mark.parametrize("layers", [1, 1.5, 2, 3, 4])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 8])
def test_memory_is_the_budget_and_one_layer_at_most(bert, layers: float, prefetch: int):
    plain, manifest, folder = bert
    source = FolderSource(folder)
    model = streamed(manifest, source, layers, prefetch)
    largest, peaks = manifest.largest_layer_bytes, []

    def look() -> None:
        held = sum(p.numel() * 4 for p in model.model.encoder.layer.parameters())
        peaks.append(held + sum(source.untaken.values()))

    source.watch = look
    for layer in model.model.encoder.layer:
        layer.register_forward_hook(lambda *_: look())
    with torch.no_grad():
        for _ in range(4):
            assert torch.equal(model.model(IDS)[0], plain(IDS)[0])
    assert largest <= max(peaks) <= int(layers * largest) + largest


@pytest.mark.parametrize(
    ("layers", "prefetch", "hits"), [(1, 0, 1), (3, 0, 3), (3, 1, 2), (3, 2, 1), (4, 1, 4), (2, 8, 0)]
)
def test_of_every_pass_so_many_layers_are_found_as_the_budget_leaves_after_prefetch(bert, layers, prefetch, hits):
    _, manifest, folder = bert
    source = FolderSource(folder)
    model = streamed(manifest, source, layers, prefetch)
    for _ in range(6):
        model.model(IDS)
    assert model.layers.cache.hits == 5 * hits
    first = [name for name in source.fetched if name.startswith("encoder.layer")][:4]
    assert first == [f"encoder.layer.{index}" for index in range(4)]  # in order, none twice


def test_a_first_pass_fetches_every_layer_once_and_nothing_beyond_the_last(bert):
    _, manifest, folder = bert
    source = FolderSource(folder)
    streamed(manifest, source, 2, 2).model(IDS)
    layers = [name for name in source.fetched if name.startswith("encoder.layer")]
    assert layers == [f"encoder.layer.{index}" for index in range(4)]


@pytest.mark.parametrize("prefetch", [0, 1])
def test_another_revision_keeps_what_is_the_same_within_the_budget_and_one_layer(bert, tmp_path: Path, prefetch: int):
    plain, manifest, folder = bert
    served = shutil.copytree(folder, tmp_path / "served")
    changed = copy.deepcopy(plain)
    with torch.no_grad():
        for layer in (changed.encoder.layer[1], changed.encoder.layer[3]):
            layer.output.dense.bias[0] += 1.0
    changed.save_pretrained(tmp_path / "changed")
    chunked(tmp_path / "changed", tmp_path / "new")
    publish(served, tmp_path / "new")
    source, largest, peaks = FolderSource(served), manifest.largest_layer_bytes, []
    old = streamed(manifest, source, 2 + prefetch, prefetch)
    for _ in range(2):
        old.model(IDS)
    kept = {f"encoder.layer.{index}" for index in range(4)} & old.layers.cache._values.keys()
    assert kept == {"encoder.layer.0", "encoder.layer.1"}
    source.fetched.clear()
    new = StreamedModel(
        read_manifest(served), source, cache_bytes=int((2 + prefetch) * largest), prefetch=prefetch,
        clock_s=lambda: 0.0, before=old,
    )  # fmt: skip

    def look() -> None:
        layers = [layer for model in (old, new) for layer in model.model.encoder.layer]
        held = {p.data_ptr(): p.numel() * 4 for layer in layers for p in layer.parameters()}
        bases = [base.data for base in new.layers._bases.values()]
        bases = [base for base in bases if not any(0 <= at - base.ctypes.data < len(base) for at in held)]
        peaks.append(sum(held.values()) + sum(map(len, bases)) + sum(source.untaken.values()))

    look()
    assert torch.equal(old.model(IDS)[0], plain(IDS)[0])  # not yet
    source.fetched.clear()
    new.take_over(old)
    source.watch = look
    for layer in new.model.encoder.layer:
        layer.register_forward_hook(lambda *_: look())
    for _ in range(2):
        assert torch.equal(new.model(IDS)[0], changed(IDS)[0])
    base = manifest.chunk("encoder.layer.1").digest
    assert source.bases == [("encoder.layer.1", base, base)]
    assert "resident" not in source.fetched and "encoder.layer.0" not in source.fetched
    assert source.fetched.count("encoder.layer.1") == 1 and new.layers.cache.hits == 1 + 2
    assert max(peaks) <= (3 + prefetch) * largest + 2000  # a header


def test_a_chunk_of_other_tensors_or_shapes_is_refused_by_name(bert, tmp_path: Path):
    _, manifest, folder = bert
    import msgspec

    first, second = manifest.chunk("encoder.layer.0"), manifest.chunk("encoder.layer.1")
    swapped = tuple(
        msgspec.structs.replace(chunk, digest={first.name: second, second.name: first}.get(chunk.name, chunk).digest)
        for chunk in manifest.chunks
    )
    model = streamed(msgspec.structs.replace(manifest, chunks=swapped), FolderSource(folder), 4, 0)
    with pytest.raises(LayerUnavailable, match=r"encoder\.layer\.0.*does not hold the tensors"):
        model.model(IDS)
    config = {**manifest.config, "intermediate_size": 32}
    with pytest.raises(ManifestError, match=r"encoder\.layer\.0.*memory_bytes"):
        streamed(msgspec.structs.replace(manifest, config=config), FolderSource(folder), 4, 0)
    tensors = open_tensors(np.fromfile(folder / file_name(first.digest), np.uint8))
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1])
    data = pack_tensors({**tensors, name: tensors[name].T.contiguous()})
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / file_name(digest)).write_bytes(data)
    source = FolderSource(tmp_path)
    for chunk in manifest.chunks:
        shutil.copy(folder / file_name(chunk.digest), tmp_path)
    turned = msgspec.structs.replace(first, digest=digest, stored_bytes=len(data), raw_bytes=len(data))
    chunks = tuple(turned if chunk is first else chunk for chunk in manifest.chunks)
    model = streamed(msgspec.structs.replace(manifest, chunks=chunks), source, 4, 0)
    with pytest.raises(LayerUnavailable, match=r"encoder\.layer\.0.*got shape"):
        model.model(IDS)


class RowSource(FolderSource):
    """Counts the bytes of rows that are in memory beside their places."""

    held = most = 0

    def fetch_rows(self, chunk: Chunk, blocks: list[int]) -> list[Future[np.ndarray]]:
        assert chunk.rows is not None
        (first, _), (last, length) = chunk.rows.span(blocks[0]), chunk.rows.span(blocks[-1])
        data = np.fromfile(self.folder / file_name(chunk.digest), np.uint8, last + length - first, offset=first)
        self.held += len(data)
        self.most = max(self.most, self.held)
        weakref.finalize(data, self.let_go, len(data))
        return [_Taken(data, lambda: None)]

    def let_go(self, size_bytes: int) -> None:
        self.held -= size_bytes


def test_a_heads_matrix_that_the_embedding_shares_is_held_once_and_a_few_megabytes_on_their_way(tmp_path: Path):
    import transformers

    config = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=25_000, bos_token_id=1, eos_token_id=2)
    plain = transformers.GPT2LMHeadModel(config).eval()
    plain.save_pretrained(tmp_path / "model")
    manifest = chunked(tmp_path / "model", tmp_path / "chunks")
    source = RowSource(tmp_path / "chunks")
    model = streamed(manifest, source, 1, 0)
    with torch.no_grad():
        assert torch.equal(model.model(IDS).logits, plain(IDS).logits)
    table = model.model.lm_head.weight
    assert table.data_ptr() == model._tables["transformer.wte.weight"]._matrix().data_ptr()
    assert source.held == 0 and source.most <= 5 << 20 < table.nbytes == 6_400_000


def test_an_empty_layer_computes_nothing(bert):
    _, manifest, folder = bert
    model = streamed(manifest, FolderSource(folder), 4, 0)
    layer = model.model.encoder.layer[0]
    with pytest.raises(RuntimeError):
        layer.forward(torch.zeros(1, 3, 32))
    with pytest.raises(ConfigError, match="the largest layer must fit"):
        streamed(manifest, FolderSource(folder), 0.9, 0)
