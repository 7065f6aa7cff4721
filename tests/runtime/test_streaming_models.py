"""Streamed transformer models over real sockets: their outputs are those of the plain model, bit for bit."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from weight_stream_harness import LyingServer, lying, raised_by, weight_server, weight_threads

from streamsplit.errors import ClosedError, ConfigError, LayerUnavailable, ManifestError, StreamSplitError

from streamed_models import CONFIGS, VOCABULARY, chunked, saved  # isort: skip
from streamsplit.facade.streaming_config import StreamingConfig
from streamsplit.weights.streaming.manifest import read_manifest

from streamsplit.facade.streaming import (  # isort: skip
    StreamingBertModel,
    StreamingGPT2Model,
    StreamingLlamaModel,
    StreamingModel,
    StreamingT5Model,
)
from streamsplit.facade.streaming_monitor import StreamingMonitor  # isort: skip

NAMED = {
    "BertModel": StreamingBertModel, "GPT2LMHeadModel": StreamingGPT2Model, "LlamaForCausalLM": StreamingLlamaModel,
    "T5ForConditionalGeneration": StreamingT5Model,
}  # fmt: skip


def inputs_of(architecture: str, seed: int = 0, batch: int = 2, length: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if architecture.startswith("T5"):
        inputs["decoder_input_ids"] = torch.randint(2, VOCABULARY, (batch, 5), generator=generator)
    return inputs


def same(streamed: Any, plain: Any) -> None:
    """Every tensor of two outputs is equal bit for bit."""
    assert list(streamed) == list(plain)
    for name in plain:
        if isinstance(plain[name], torch.Tensor):
            assert torch.equal(streamed[name], plain[name]), name


@pytest.fixture(scope="module", params=list(CONFIGS))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Any, str, Path]]:
    """(architecture, plain model, URL, folder of chunks) of each kind."""
    folder = tmp_path_factory.mktemp("streamed")
    model = saved(folder / "tiny", request.param)
    chunked(folder / "tiny", folder / "chunks")
    with weight_server(folder / "chunks") as server:
        yield request.param, model, server.url, folder / "chunks"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, Path]]:
    folder = tmp_path_factory.mktemp("bert")
    model = saved(folder / "bert-tiny", "BertModel")
    chunked(folder / "bert-tiny", folder / "chunks")
    with weight_server(folder / "chunks") as server:
        yield model, server.url, folder / "chunks"


@pytest.mark.parametrize("layers", [1, 2, None])
@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_the_outputs_are_those_of_the_plain_model_bit_for_bit(served, layers: int | None, prefetch: int):
    architecture, plain, url, _ = served
    with NAMED[architecture].open(url, prefetch=prefetch) as probe:
        largest = probe.manifest.largest_layer_bytes
    budget = None if layers is None else layers * largest
    with NAMED[architecture].open(url, cache_bytes=budget, prefetch=prefetch) as model, torch.no_grad():
        for seed in range(3):
            inputs = inputs_of(architecture, seed)
            same(model(**inputs), plain(**inputs))


def test_the_hidden_states_and_attentions_are_there_as_well(served):
    architecture, plain, url, _ = served
    inputs = inputs_of(architecture)
    plain.set_attn_implementation("eager")
    try:
        with NAMED[architecture].open(url) as model, torch.no_grad():
            model.model.set_attn_implementation("eager")
            streamed = model(**inputs, output_hidden_states=True, output_attentions=True)
            expected = plain(**inputs, output_hidden_states=True, output_attentions=True)
            for name in (key for key in expected if "hidden_states" in key or "attentions" in key):
                assert all(torch.equal(a, b) for a, b in zip(streamed[name], expected[name], strict=True)), name
    finally:
        plain.set_attn_implementation("sdpa")


@pytest.mark.parametrize("layers", [1, None])
def test_tokens_are_generated_as_by_the_plain_model(served, layers: int | None):
    architecture, plain, url, _ = served
    if architecture == "BertModel":
        pytest.skip("does not generate")
    inputs = {name: value for name, value in inputs_of(architecture).items() if not name.startswith("decoder")}
    if not architecture.startswith("T5"):
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    with NAMED[architecture].open(url) as probe:
        budget = None if layers is None else layers * probe.manifest.largest_layer_bytes
    with NAMED[architecture].open(url, cache_bytes=budget) as model:
        assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
        assert torch.equal(asyncio.run(model.generate_async(**inputs, **options)), plain.generate(**inputs, **options))
        metrics = model.monitor.get_metrics()
        assert layers == 1 or metrics["cache_misses"] == len(model.manifest.of_role("layer", "head"))


def test_the_seeds_way_to_run_a_model_works_within_a_loop(bert):
    plain, url, _ = bert

    async def run_inference() -> Any:
        model = StreamingBertModel(model_name="prajjwal1/bert-tiny", websocket_uri=url, cache_size=2)
        with torch.no_grad():
            outputs = await model.forward_async(**inputs_of("BertModel"))
        with pytest.raises(StreamSplitError, match="forward_async"):
            model(**inputs_of("BertModel"))
        model.close()
        return outputs

    outputs = asyncio.run(run_inference())
    with torch.no_grad():
        expected = plain(**inputs_of("BertModel"))
    assert outputs[0].shape == (2, 9, 32) and torch.equal(outputs[0], expected[0])


def test_dropout_is_off_whatever_mode_the_model_is_put_in(bert):
    plain, url, _ = bert
    with StreamingBertModel.open(url) as model, torch.no_grad():
        model.model.train()
        same(model(**inputs_of("BertModel")), plain(**inputs_of("BertModel")))


def test_a_layer_that_is_in_memory_is_not_fetched_again(bert):
    _, url, _ = bert
    monitor = StreamingMonitor()
    assert monitor.get_metrics()["cache_hit_rate"] == 0.0
    page = f"http://127.0.0.1:{monitor.serve_metrics()}/metrics"
    with StreamingBertModel.open(url, monitor=monitor) as model:
        assert "streamsplit_streaming_first_output_seconds" not in httpx.get(page).text
        model(**inputs_of("BertModel"))
        first = monitor.get_metrics()
        model(**inputs_of("BertModel"))
        second = monitor.get_metrics()
        text = httpx.get(page).text
    monitor.stop_metrics()
    with pytest.raises(httpx.ConnectError):
        httpx.get(page)
    for sample, value in (
        ("cache_hit_rate", 0.5), ("received_bytes_total", second["bytes_received"]), ("stalls_total", second["stalls"]),
        ("stall_seconds_total", second["stall_s"]), ("first_output_seconds", first["time_to_first_output_s"]),
    ):  # fmt: skip
        assert f"streamsplit_streaming_{sample} {float(value)}\n" in text
    assert second["bytes_received"] == first["bytes_received"]
    assert (first["cache_misses"], first["cache_hits"], second["cache_hits"]) == (4, 0, 4)
    assert second["cache_hit_rate"] == 0.5
    assert second["forwards"] == 2 and 0 < first["time_to_first_output_s"] == second["time_to_first_output_s"]


def test_a_small_budget_keeps_its_share_of_layers_and_no_more(bert):
    _, url, _ = bert
    with StreamingBertModel.open(url) as probe:
        largest = probe.manifest.largest_layer_bytes
    with StreamingBertModel.open(url, cache_bytes=3 * largest, prefetch=0) as model:
        for _ in range(5):
            model(**inputs_of("BertModel"))
        metrics = model.monitor.get_metrics()
        held = sum(p.numel() for layer in model.model.encoder.layer for p in layer.parameters())
    assert (metrics["cache_hits"], metrics["cache_misses"]) == (4 * 3, 5 * 4 - 4 * 3)
    assert held * 4 == metrics["cache_bytes"] == 3 * largest


def test_only_the_rows_that_are_looked_up_travel(bert):
    _, url, _ = bert
    with StreamingBertModel.open(url) as model:
        layers = sum(chunk.stored_bytes for chunk in model.manifest.of_role("layer", "resident"))
        before = model.monitor.get_metrics()["bytes_received"]
        model(input_ids=torch.tensor([[3, 4, 5]]))
        received = model.monitor.get_metrics()["bytes_received"] - before
        words = model.manifest.chunk("embeddings.word_embeddings.weight")
    assert words.rows is not None
    assert received < layers + 3 * words.rows.block_rows * words.rows.row_bytes + 2000 < layers + words.stored_bytes


def test_an_id_beyond_the_vocabulary_is_refused(bert):
    _, url, _ = bert
    with StreamingBertModel.open(url) as model, pytest.raises(IndexError, match="of 96"):
        model(input_ids=torch.tensor([[3, VOCABULARY]]))


def test_nothing_is_written_unless_a_disk_cache_is_asked_for_and_then_it_is_checked(bert, tmp_path: Path, monkeypatch):
    plain, url, _ = bert
    monkeypatch.chdir(tmp_path)
    with StreamingBertModel.open(url) as model:
        model(**inputs_of("BertModel"))
    assert not list(tmp_path.iterdir())
    config = StreamingConfig(disk_cache_dir=str(tmp_path / "cache"))

    def bytes_for_a_forward() -> int:
        with StreamingBertModel.open(url, config=config) as model, torch.no_grad():
            same(model(**inputs_of("BertModel")), plain(**inputs_of("BertModel")))
            return model.monitor.get_metrics()["bytes_received"]

    first, second = bytes_for_a_forward(), bytes_for_a_forward()
    files = sorted((tmp_path / "cache").glob("*.chunk"))
    assert len(files) == 5 and second < first - 4 * 30_000
    for path in files:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert bytes_for_a_forward() == pytest.approx(first, rel=0.01)
    assert bytes_for_a_forward() == pytest.approx(second, rel=0.01)
    config = config.replace(disk_cache_bytes=2 * files[0].stat().st_size + 10_000)
    bytes_for_a_forward()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.chunk")) <= config.disk_cache_bytes


@pytest.mark.parametrize(("dtype", "error"), [("fp16", 2e-3), ("bf16", 2e-2), ("int8", 4e-2)])
def test_smaller_transfers_change_the_output_by_no_more_than_stated(tmp_path: Path, dtype: str, error: float):
    plain = saved(tmp_path / "model", "BertModel")
    manifest = chunked(tmp_path / "model", tmp_path / "chunks", dtype=dtype)
    with weight_server(tmp_path / "chunks") as server, StreamingBertModel.open(server.url) as model, torch.no_grad():
        streamed, expected = (m(**inputs_of("BertModel"))[0] for m in (model, plain))
        assert model.manifest == manifest
    relative = float((streamed - expected).norm() / expected.norm())
    assert 0 < relative < error


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_model_computes_in_half_precision_where_asked_to(bert, tmp_path: Path, dtype: str):
    _, url, _ = bert
    import transformers

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    half = transformers.BertModel.from_pretrained(bert[2].parent / "bert-tiny", dtype=kind).eval()
    with StreamingBertModel.open(url, dtype=dtype) as model, torch.no_grad():
        assert model.model.dtype is kind
        same(model(**inputs_of("BertModel")), half(**inputs_of("BertModel")))


def test_compressed_chunks_give_the_same_outputs(tmp_path: Path):
    plain = saved(tmp_path / "model", "GPT2LMHeadModel")
    with torch.no_grad():
        plain.transformer.h[1].mlp.c_fc.weight.zero_()
    plain.save_pretrained(tmp_path / "model")
    manifest = chunked(tmp_path / "model", tmp_path / "chunks", compress=True)
    assert "zstd" in {chunk.encoding for chunk in manifest.chunks}
    with weight_server(tmp_path / "chunks") as server, StreamingModel.open(server.url) as model, torch.no_grad():
        same(model(**inputs_of("GPT2LMHeadModel")), plain(**inputs_of("GPT2LMHeadModel")))


@pytest.mark.parametrize("architecture", ["ViTModel", "BertForMaskedLM", "Wav2Vec2Model", "ElectraModel"])
def test_a_type_without_a_class_of_its_own_runs_by_its_one_list_of_layers(tmp_path: Path, architecture: str):
    import transformers as tf

    torch.manual_seed(0)
    images, words = {"pixel_values": torch.randn(1, 3, 16, 16)}, inputs_of("BertModel")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    made: dict[str, Callable[[], tuple[Any, dict[str, torch.Tensor]]]] = {
        "ViTModel": lambda: (tf.ViTConfig(**sizes, image_size=16, patch_size=8), images),
        "BertForMaskedLM": lambda: (tf.BertConfig(**sizes, vocab_size=VOCABULARY), words),
        "ElectraModel": lambda: (tf.ElectraConfig(**sizes, embedding_size=16, vocab_size=VOCABULARY), words),
        "Wav2Vec2Model": lambda: (
            tf.Wav2Vec2Config(
                **sizes, conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2,
                num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
            ),
            {"input_values": torch.randn(1, 400)},
        ),
    }  # fmt: skip
    config, inputs = made[architecture]()
    plain = getattr(tf, architecture)(config).eval()
    plain.save_pretrained(tmp_path / "model")
    try:
        chunked(tmp_path / "model", tmp_path / "chunks")
    except ManifestError as error:
        assert architecture == "Wav2Vec2Model" and "lists of layers" in str(error) and "register_type" in str(error)
        return
    with weight_server(tmp_path / "chunks") as server, StreamingModel.open(server.url) as model, torch.no_grad():
        same(model(**inputs), plain(**inputs))


def test_a_layer_that_cannot_be_had_is_named_and_the_model_goes_on_when_it_can(bert):
    plain, _, folder = bert
    manifest = read_manifest(folder)
    bad = manifest.chunk("encoder.layer.2").digest
    config = StreamingConfig(attempts=2)
    with (
        lying(folder, manifest) as (server, at),
        StreamingBertModel.open(at.url, config=config) as model,
        torch.no_grad(),
    ):
        server.reply = lambda session, request, digest, data: (
            [session.data(request, data[:-1] + bytes([data[-1] ^ 1]), True)]
            if digest == bad
            else server.honest(session, request, digest, data)
        )
        with pytest.raises(LayerUnavailable, match=r"layer 'encoder\.layer\.2' is not available: .*damaged") as caught:
            model(**inputs_of("BertModel"))
        assert caught.value.layer == "encoder.layer.2"
        server.reply = server.honest
        same(model(**inputs_of("BertModel")), plain(**inputs_of("BertModel")))


def test_a_server_that_goes_away_makes_the_next_layer_unavailable(bert):
    _, _, folder = bert
    with weight_server(folder) as server:
        model = StreamingBertModel.open(server.url, prefetch=0, config=StreamingConfig(attempts=1))
    with model, pytest.raises(LayerUnavailable, match="cannot be reached"):
        model(**inputs_of("BertModel"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_bytes": 1000}, r"'cache_bytes': got 1000, expected at least \d+: the largest layer"),
        ({"dtype": "int4"}, "'dtype': got 'int4', allowed fp32, fp16, bf16"),
        ({"prefetch": 99}, "'prefetch': got 99, allowed 0..8"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(bert, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        StreamingBertModel.open(bert[1], **options)


def test_another_type_or_name_than_asked_for_is_refused(bert):
    with pytest.raises(ManifestError, match=r"got a model of type 'bert'.*expected gpt2"):
        StreamingGPT2Model.open(bert[1])
    with pytest.raises(ManifestError, match=r"got model 'bert-tiny'.*expected 'bert-base'"):
        StreamingBertModel("bert-base", websocket_uri=bert[1])(**inputs_of("BertModel"))


def test_a_manifest_that_must_be_signed_is_checked_before_anything_is_fetched(tmp_path: Path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    keys = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32).public_key().public_bytes_raw().hex() for n in (1, 2)]
    saved(tmp_path / "model", "BertModel")
    chunked(tmp_path / "model", tmp_path / "chunks", signing_key=bytes([1]) * 32)
    with weight_server(tmp_path / "chunks") as server:
        with StreamingBertModel.open(server.url, config=StreamingConfig(public_key=keys[0])) as model:
            assert model(**inputs_of("BertModel"))[0].isfinite().all()
        with pytest.raises(ManifestError, match="is signed by"):
            StreamingBertModel.open(server.url, config=StreamingConfig(public_key=keys[1]))


def test_a_closed_model_holds_no_layer_and_says_that_it_is_closed(bert):
    model = StreamingBertModel.open(bert[1])
    model(**inputs_of("BertModel"))
    assert sum(p.numel() for p in model.model.encoder.layer.parameters()) > 0
    model.close()
    assert sum(p.numel() for p in model.model.encoder.layer.parameters()) == 0
    assert model.monitor.get_metrics()["forwards"] == 1
    for use in (lambda: model(**inputs_of("BertModel")), model.refresh, lambda: asyncio.run(model.forward_async())):
        with pytest.raises(ClosedError, match="the streaming model is closed; open another one"):
            use()
    model.close()


def test_a_model_that_is_closed_before_it_is_opened_does_not_connect(bert):
    before = weight_threads()
    model = StreamingBertModel(websocket_uri=bert[1])
    model.close()
    with pytest.raises(ClosedError):
        model(**inputs_of("BertModel"))
    assert weight_threads() == before


@pytest.mark.parametrize("held", ["resident", "encoder.layer.2"])
def test_a_close_while_another_thread_waits_for_weights_ends_both(bert, held: str):
    _, _, folder = bert
    manifest, before, asked = read_manifest(folder), weight_threads(), threading.Event()
    digest = manifest.chunk(held).digest

    def silent(session: Any, request: int, wanted: str, data: bytes) -> list[bytes | None]:
        if wanted != digest:
            return LyingServer.honest(session, request, wanted, data)
        asked.set()
        return []

    with lying(folder, manifest) as (server, at):
        server.reply = silent
        model = StreamingBertModel(websocket_uri=at.url)

        def close() -> None:
            assert asked.wait(60)
            model.close()
            assert weight_threads() == before

        raised = raised_by(lambda: model(**inputs_of("BertModel")), close, close)
    assert isinstance(raised[0], ClosedError) and raised[1:] == [None, None]


def test_a_close_while_the_server_is_still_being_reached_ends_both():
    before = weight_threads()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        model = StreamingBertModel(websocket_uri=f"ws://127.0.0.1:{mute.getsockname()[1]}")

        def close() -> None:
            connection, _ = mute.accept()
            with connection:
                model.close()

        raised = raised_by(lambda: model(**inputs_of("BertModel")), close)
    assert isinstance(raised[0], ClosedError) and raised[1] is None and weight_threads() == before
