"""The chunker: every tensor of the model is in exactly one chunk, bit for bit, and nothing is made up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from streamed_models import CONFIGS, chunked, saved

from streamsplit.errors import ConfigError, ManifestError
from streamsplit.weights.streaming.buffers import aligned_buffer
from streamsplit.weights.streaming.chunk_file import open_tensors, unpacked
from streamsplit.weights.streaming.chunker import ModelChunker
from streamsplit.weights.streaming.manifest import (
    Manifest,
    canonical_bytes,
    decode_manifest,
    encode_manifest,
    file_name,
    read_manifest,
    sign,
    verify,
)
from streamsplit.weights.streaming.quantise import dequantise, unpack_rows


def bytes_of(folder: Path, digest: str) -> np.ndarray:
    data = (folder / file_name(digest)).read_bytes()
    buffer = aligned_buffer(len(data))
    buffer[:] = np.frombuffer(data, np.uint8)
    return buffer


def everything(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """All tensors of all chunks."""
    found: dict[str, torch.Tensor] = {}
    for chunk in manifest.chunks:
        sent = open_tensors(unpacked(chunk, bytes_of(folder, chunk.digest)))
        if chunk.rows is not None:
            found[chunk.tensors[0]] = unpack_rows(sent["rows"], manifest.dtype)
        else:
            found |= dequantise(sent)
    return found


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("compress", [False, True])
def test_the_chunks_hold_every_tensor_bit_for_bit(tmp_path: Path, architecture: str, compress: bool):
    model = saved(tmp_path / "model", architecture)
    manifest = chunked(tmp_path / "model", tmp_path / "chunks", compress=compress)
    found = everything(tmp_path / "chunks", manifest)
    expected = model.state_dict()
    assert found.keys() | manifest.tied.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[manifest.tied.get(name, name)], tensor), name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_layer_is_a_chunk_of_its_own_that_safetensors_opens(tmp_path: Path, architecture: str):
    model = saved(tmp_path / "model", architecture)
    manifest = chunked(tmp_path / "model", tmp_path / "chunks")
    layers = [chunk.name for chunk in manifest.of_role("layer")]
    assert layers == [f"{stack}.{i}" for stack in manifest.stacks for i in range(len(model.get_submodule(stack)))]
    for chunk in manifest.of_role("layer"):
        path = tmp_path / "chunks" / file_name(chunk.digest)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == chunk.digest
        with safe_open(path, "pt") as opened:
            assert set(opened.keys()) == set(chunk.tensors)
            assert all(name.startswith(f"{chunk.name}.") for name in chunk.tensors)


def test_weights_that_are_tied_are_stored_once(tmp_path: Path):
    saved(tmp_path / "model", "T5ForConditionalGeneration")
    manifest = chunked(tmp_path / "model", tmp_path / "chunks")
    assert set(manifest.tied) == {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert set(manifest.tied.values()) == {"shared.weight"}
    assert manifest.chunk("shared.weight").role == "rows"


def test_a_model_in_many_files_gives_the_chunks_of_the_same_model_in_one(tmp_path: Path):
    saved(tmp_path / "one" / "model", "BertModel")
    saved(tmp_path / "many" / "model", "BertModel", max_shard_size="20KB")
    assert (tmp_path / "many" / "model" / "model.safetensors.index.json").exists()
    manifests = [chunked(tmp_path / name / "model", tmp_path / name / "chunks") for name in ("one", "many")]
    assert manifests[0].revision == manifests[1].revision


def test_a_block_of_rows_is_found_at_its_place_under_its_hash(tmp_path: Path):
    model = saved(tmp_path / "model", "BertModel")
    manifest = chunked(tmp_path / "model", tmp_path / "chunks")
    chunk = manifest.chunk("embeddings.word_embeddings.weight")
    rows, table = chunk.rows, model.embeddings.word_embeddings.weight.detach()
    assert rows is not None and rows.block_rows == 8 and rows.blocks == 12
    data = (tmp_path / "chunks" / file_name(chunk.digest)).read_bytes()
    for block in range(rows.blocks):
        offset, length = rows.span(block)
        piece = data[offset : offset + length]
        assert hashlib.sha256(piece).digest() == rows.digest(block)
        assert piece == table[block * 8 : block * 8 + 8].numpy().tobytes()


def sent_bytes(tensor: torch.Tensor, dtype: str) -> int:
    """What a tensor takes: two bytes a number, or one and four for every channel."""
    if dtype != "int8":
        return 2 * tensor.numel()
    return 4 * tensor.numel() if tensor.ndim == 1 else tensor.numel() + 4 * len(tensor)


@pytest.mark.parametrize(("dtype", "share"), [("fp16", 2**-11), ("bf16", 2**-8), ("int8", 1 / 254)])
def test_smaller_types_have_the_size_and_error_that_they_state(tmp_path: Path, dtype: str, share: float):
    model = saved(tmp_path / "model", "LlamaForCausalLM")
    manifest = chunked(tmp_path / "model", tmp_path / "chunks", dtype=dtype)
    for name, tensor in everything(tmp_path / "chunks", manifest).items():
        exact = model.state_dict()[name]
        largest = exact.abs().reshape(len(exact), -1).amax(1, keepdim=True).reshape(-1, *[1] * (exact.ndim - 1))
        bound = largest * share if dtype == "int8" else exact.abs() * share
        assert ((tensor - exact).abs() <= bound * 1.001 + 1e-7).all(), name
    for chunk in manifest.of_role("layer"):
        expected = sum(sent_bytes(model.state_dict()[name], dtype) for name in chunk.tensors)
        assert expected < chunk.stored_bytes < expected + 2600  # the header


def test_zstd_is_used_where_it_pays_and_only_there(tmp_path: Path):
    model = saved(tmp_path / "noise", "BertModel")
    with torch.no_grad():
        for parameter in model.encoder.layer[0].parameters():
            parameter.fill_(0.5)
    model.save_pretrained(tmp_path / "model")
    manifest = chunked(tmp_path / "model", tmp_path / "chunks", compress=True, dtype="bf16")
    layer = manifest.chunk("encoder.layer.0")
    assert layer.encoding == "zstd" and layer.stored_bytes < 0.2 * layer.raw_bytes
    assert manifest.chunk("embeddings.word_embeddings.weight").encoding == "none"


def test_chunking_again_changes_nothing_and_repairs_a_damaged_chunk(tmp_path: Path):
    saved(tmp_path / "model", "BertModel")
    first = chunked(tmp_path / "model", tmp_path / "chunks")
    path = tmp_path / "chunks" / file_name(first.chunks[0].digest)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\0")
    assert chunked(tmp_path / "model", tmp_path / "chunks") == first
    assert path.read_bytes() == good


def test_a_pickle_is_not_read(tmp_path: Path):
    model = saved(tmp_path / "model", "BertModel")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ManifestError, match="pickles are never read"):
        ModelChunker(str(tmp_path / "model"), tmp_path / "chunks").chunk_model()


def test_weights_that_are_missing_are_named_instead_of_made_up(tmp_path: Path):
    saved(tmp_path / "model", "BertModel")
    with pytest.raises(ManifestError, match=r"no weights for cls\..*--architecture"):
        ModelChunker(str(tmp_path / "model"), tmp_path / "chunks", architecture="BertForMaskedLM").chunk_model()
    assert not (tmp_path / "chunks").exists()


@pytest.mark.parametrize("name", ["nowhere", "../nowhere", "empty"])
def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"no model can be read|no such folder"):
        ModelChunker(name, tmp_path / "chunks").chunk_model()


def test_an_unknown_dtype_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="'dtype': got 'fp8', allowed fp32, fp16, bf16, int8"):
        ModelChunker("any", tmp_path, dtype="fp8")


def test_a_value_beyond_half_precision_is_refused(tmp_path: Path):
    model = saved(tmp_path / "model", "BertModel")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] = 1e6
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ManifestError, match=r"encoder\.layer\.1\.output\.dense\.bias.*range of fp16"):
        chunked(tmp_path / "model", tmp_path / "chunks", dtype="fp16")


def small_manifest(tmp_path: Path) -> Manifest:
    saved(tmp_path / "model", "BertModel")
    return chunked(tmp_path / "model", tmp_path / "chunks")


def test_a_manifest_survives_its_file_and_its_revision_is_that_of_its_content(tmp_path: Path):
    manifest = small_manifest(tmp_path)
    assert decode_manifest(encode_manifest(manifest)) == manifest
    changed = msgspec.structs.replace(manifest, model="other")
    assert changed.revision != manifest.revision
    assert decode_manifest(encode_manifest(changed)).revision == changed.revision


def test_a_signed_manifest_is_good_under_its_key_and_no_other(tmp_path: Path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, other = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
    public, stranger = (k.public_key().public_bytes_raw() for k in (key, other))
    manifest = small_manifest(tmp_path)
    with pytest.raises(ManifestError, match="unsigned"):
        verify(manifest, public)
    signed = decode_manifest(encode_manifest(sign(manifest, bytes([1]) * 32)))
    verify(signed, public)
    key.public_key().verify(bytes.fromhex(signed.signature.value), canonical_bytes(manifest))
    with pytest.raises(ManifestError, match="is signed by"):
        verify(signed, stranger)
    with pytest.raises(ManifestError, match="signature is wrong"):
        verify(msgspec.structs.replace(signed, model="other"), public)
    assert signed.revision == manifest.revision


def test_a_manifest_of_another_version_says_so(tmp_path: Path):
    small_manifest(tmp_path)
    path = tmp_path / "chunks" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(ManifestError, match=r"manifest\.json: got a manifest of format 2, expected 1"):
        read_manifest(tmp_path / "chunks")


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(ManifestError, match="streamsplit weights chunk"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["chunks"].append(m["chunks"][0]), "two chunks of the same name"),
        (lambda m: m["chunks"][0].update(name="../../etc/passwd"), "does not parse"),
        (lambda m: m["chunks"][0].update(digest="../" + "0" * 61), "does not parse"),
        (lambda m: m["chunks"][0].update(stored_bytes=-1), "does not parse"),
        (lambda m: m["chunks"][0].update(stored_bytes=1), "got 1 of"),
        (lambda m: m["chunks"][1]["rows"].update(rows=1 << 39), "bytes of hashes"),
        (lambda m: m["chunks"][1].update(rows=None), "rows are described"),
        (lambda m: m.update(chunks=[]), "without a layer"),
        (lambda m: m.update(tied={"a": "b"}), "tied names"),
        (lambda m: m.update(more=1), "does not parse"),
        (lambda m: m.update(format="1"), "does not parse"),
        (lambda m: m.pop("config"), "does not parse"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, change, message: str):
    values = json.loads(encode_manifest(small_manifest(tmp_path)))
    change(values)
    with pytest.raises(ManifestError, match=message):
        decode_manifest(json.dumps(values).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"format": 1}', b"null"])
def test_bytes_that_are_no_manifest_are_refused(data: bytes):
    with pytest.raises(ManifestError):
        decode_manifest(data)
