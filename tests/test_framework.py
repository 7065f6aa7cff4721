"""The facade: real splits, real learning, exact checkpoints, the research code's signatures."""

from __future__ import annotations

import asyncio
import inspect
import math

import numpy as np
import pytest
import torch

import streamsplit
from streamsplit import (
    DynamicSplittingAgent,
    EdgeModule,
    EdgeTrainer,
    MobileNetV3EdgeEncoder,
    MobileNetV3ServerEncoder,
    ServerModule,
    ServerTrainer,
    ServerTrainingConfig,
    StreamSplitConfig,
    StreamSplitFramework,
    StreamSplitMode,
    TrainingConfig,
)
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import cut_windows
from streamsplit.edge.readings import Readings
from streamsplit.errors import (
    AudioError,
    CheckpointError,
    ConfigError,
    CutError,
    EncoderError,
    RevisionError,
    StreamSplitError,
)
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.policy import FixedPolicy, learner_of
from streamsplit.weights.revision import encoder_weights

SMALL = {"width_multiplier": 0.25, "embedding_dim": 32, "warm_start_windows": 16, "publish_steps": 2}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def config(**changes) -> StreamSplitConfig:
    return StreamSplitConfig(**{**SMALL, **changes})


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return Soundscape(seed).read(int(16_000 * seconds))


def spectrogram(seed: int = 0, frames: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(-7, 3, (128, frames)).astype(np.float32))


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# ---- the framework ----


def stream(mode: StreamSplitMode, audio: np.ndarray, framework=None, policy=None, chunk: int = 16_000) -> list[dict]:
    framework = framework or StreamSplitFramework(config())
    if policy is not None:
        framework.agent.policy = policy

    async def go():
        await framework.start(mode=mode)
        results = [await framework.process_audio_stream(audio[at : at + chunk]) for at in range(0, len(audio), chunk)]
        await framework.stop()
        return results

    return asyncio.run(go())


def test_one_second_of_sound_gives_a_window_in_every_mode():
    for mode in StreamSplitMode:
        (result,) = stream(mode, sound(1.0))
        assert result["mode"] == mode.value and result["windows"] == 1
        assert np.linalg.norm(result["embedding"]) == pytest.approx(1.0, abs=1e-4)
        assert result["embeddings"].shape == (1, 32)
        assert result["latency"] > 0


def test_edge_only_sends_nothing_and_server_only_sends_the_sound():
    audio = sound(4.0)
    edge = stream(StreamSplitMode.EDGE_ONLY, audio)
    server = stream(StreamSplitMode.SERVER_ONLY, audio)
    assert sum(result["bytes_sent"] for result in edge) == 0
    assert {result["split_point"] for result in edge} == {13}
    windows = sum(result["windows"] for result in server)
    assert windows == 7  # 98 frames every 50 in 4 s
    # the first window whole (15,920 samples), the others their new half second, 16 bit each, and a header a window
    assert sum(result["bytes_sent"] for result in server) == 2 * (15_920 + 6 * 8_000) + 20 * windows


def test_every_cut_gives_the_embedding_that_the_server_alone_gives():
    audio = sound(2.0)
    reference = np.concatenate([r["embeddings"] for r in stream(StreamSplitMode.SERVER_ONLY, audio)])
    sizes = {}
    for text in ("0:logmel-int8", "2:int8", "6:fp16", "12:int8", "13:embedding-int8"):
        policy = FixedPolicy(Cut.parse(text))
        results = stream(StreamSplitMode.DYNAMIC_SPLIT, audio, policy=policy)
        assert {result["split_point"] for result in results} == {policy.cut.block}
        got = np.concatenate([result["embeddings"] for result in results])
        assert got.shape == reference.shape
        assert min(cosine(a, b) for a, b in zip(got, reference, strict=True)) > 0.999
        sizes[text] = sum(result["bytes_sent"] for result in results)
    assert sizes["13:embedding-int8"] < sizes["12:int8"] < sizes["2:int8"]


def test_chunking_does_not_change_the_windows():
    audio = sound(3.0)
    whole = stream(StreamSplitMode.SERVER_ONLY, audio, chunk=len(audio))
    pieces = stream(StreamSplitMode.SERVER_ONLY, audio, chunk=3_333)
    a, b = (np.concatenate([result["embeddings"] for result in results]) for results in (whole, pieces))
    assert a.shape == b.shape and np.abs(a - b).max() < 1e-5
    assert any(result["windows"] == 0 and result["embedding"] is None for result in pieces[:2])


def test_device_and_server_learn_and_the_device_adopts_what_the_server_publishes():
    framework = StreamSplitFramework(config(memory="bank"))
    framework.agent.policy = FixedPolicy(Cut.parse("0:logmel-fp16"))
    before = encoder_weights(framework.edge.learner.query)
    first = framework.edge.revision
    losses = []

    async def go():
        await framework.start(mode=StreamSplitMode.DYNAMIC_SPLIT)
        audio = sound(90.0)
        for at in range(0, len(audio), 16_000):  # until both have learned: the server learns at its own pace
            result = await framework.process_audio_stream(audio[at : at + 16_000])
            losses.append(result["loss"])
            if result["revision"] != first and framework.server.refiner.steps and framework.edge.learner.steps:
                break
        await framework.stop()
        return result

    result = asyncio.run(go())
    assert framework.server.refiner.warm_started and framework.server.refiner.steps > 0
    assert framework.edge.revision != first
    assert result["revision"] in (
        framework.edge.revision,
        *(known.revision for known in framework.server.refiner.lineage),
    )
    assert framework.edge.learner.steps > 0 and any(math.isfinite(loss) for loss in losses)
    after = encoder_weights(framework.edge.learner.query)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_device_alone_starts_its_own_readout_and_learns():
    framework = StreamSplitFramework(config())
    results = stream(StreamSplitMode.EDGE_ONLY, sound(24.0), framework)
    assert framework.edge.learner.started and framework.edge.learner.steps > 0
    assert math.isfinite(results[-1]["loss"])


def test_a_checkpoint_goes_on_with_the_same_embeddings(tmp_path):
    framework = StreamSplitFramework(config())
    stream(StreamSplitMode.DYNAMIC_SPLIT, sound(12.0), framework)
    path = tmp_path / "deep" / "framework.safetensors"
    framework.save_checkpoint(path)
    other = StreamSplitFramework(config())
    other.load_checkpoint(str(path))
    assert other.edge.revision == framework.edge.revision
    for window in cut_windows(sound(3.0, seed=9), length_frames=98):
        embeddings, uncertainties = [], []
        for part in (framework, other):
            output = part.edge.cross(window, Cut.parse("5:int8"))
            answer = part.server.complete(output, 5)
            embeddings.append(answer["embedding"].numpy())
            uncertainties.append((output["uncertainty"], answer["uncertainty"]))
        assert np.allclose(*embeddings, atol=1e-6)
        assert uncertainties[0] == pytest.approx(uncertainties[1], abs=1e-4)


def test_a_bad_checkpoint_is_refused_and_changes_nothing(tmp_path):
    framework = StreamSplitFramework(config())
    good = tmp_path / "good"
    framework.save_checkpoint(good)
    revision = framework.edge.revision
    data = good.read_bytes()
    for name, content in (("empty", b""), ("cut", data[: len(data) // 2]), ("noise", bytes(range(256)) * 8)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            framework.load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="none"):
        framework.load_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"another config.*embedding_dim"):
        StreamSplitFramework(config(embedding_dim=16)).load_checkpoint(good)
    trainer = EdgeTrainer(TrainingConfig(), MobileNetV3EdgeEncoder(embedding_dim=32, width_multiplier=0.25))
    with pytest.raises(CheckpointError, match="'framework' file, expected 'edge-trainer'"):
        trainer.load_checkpoint(good)
    assert framework.edge.revision == revision


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    framework = StreamSplitFramework(config())
    path = tmp_path / "file"
    path.write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        framework.save_checkpoint(path / "below")
    assert path.read_text() == "in the way"


def test_the_framework_says_what_is_out_of_order():
    framework = StreamSplitFramework(config())

    async def go():
        with pytest.raises(StreamSplitError, match="start"):
            await framework.process_audio_stream(sound(1.0))
        await framework.stop()  # harmless
        await framework.start()
        with pytest.raises(StreamSplitError, match="runs already"):
            await framework.start()
        with pytest.raises(StreamSplitError, match="stop it"):
            framework.load_checkpoint("x")
        with pytest.raises(AudioError, match="NaN"):
            await framework.process_audio_stream(np.full(16_000, np.nan, np.float32))
        with pytest.raises(AudioError, match="mono"):
            await framework.process_audio_stream(np.zeros((2, 8000), np.float32))
        assert (await framework.process_audio_stream(sound(1.0)))["windows"] == 1
        await framework.stop()

    asyncio.run(go())


def test_config_mistakes_name_the_key_and_the_nearest_known_one():
    with pytest.raises(TypeError, match="learning_rat"):
        StreamSplitConfig(learning_rat=1)
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        StreamSplitConfig(split_reward_weights={"acuracy": 1.0})
    with pytest.raises(ConfigError, match="did you mean 'raspberry_pi_4"):
        StreamSplitConfig(device_type="raspberry_pi_4c")
    with pytest.raises(ConfigError, match="sample_rate"):
        StreamSplitConfig(sample_rate=44_100)
    with pytest.raises(ConfigError, match="memory_bank_size_min"):
        StreamSplitConfig(memory_bank_size_min=600)


# ---- modules ----


def test_a_split_between_modules_agrees_with_both_ends_alone():
    edge, server = EdgeModule(config()), ServerModule(config())
    x = spectrogram()

    async def go():
        whole, _ = await server.process(x)
        alone, info = await edge.process(x)
        assert np.array_equal(whole.numpy(), alone.numpy())  # the same weights at both ends
        assert {"uncertainty", "loss", "memory_size", "latency"} <= set(info)
        for split_point in (0, 1, 7, 12, 13):
            output = await edge.process_partial(x, split_point)
            assert output["split_point"] == split_point and isinstance(output["payload"], bytes)
            answer = await server.process_continuation(output, split_point)
            assert cosine(answer["embedding"], whole) > 0.99  # INT8, on noise
            assert answer["split_point"] == split_point and answer["latency"] > 0

    asyncio.run(go())


def test_what_crosses_is_what_the_device_computed():
    edge = EdgeModule(config())
    x = spectrogram()
    output = asyncio.run(edge.process_partial(x, 6))
    with torch.no_grad():
        crossing = edge.learner.key.forward_to(x[None], 6)
    assert torch.equal(output["activations"], crossing.h[0])
    assert torch.equal(output["partial_embedding"], crossing.partial[0])


def test_modules_refuse_what_does_not_fit():
    edge, server = EdgeModule(config()), ServerModule(config())

    async def refused(error, text, call):
        with pytest.raises(error, match=text):
            await call

    async def go():
        await refused(CutError, "split point 14", edge.process_partial(spectrogram(), 14))
        await refused(EncoderError, "shape", edge.process(torch.zeros(5, 5)))
        await refused(EncoderError, "NaN", edge.process(torch.full((128, 64), math.nan)))
        output = await edge.process_partial(spectrogram(), 6)
        await refused(CutError, "cut after block 6", server.process_continuation(output, 5))
        await refused(CutError, "'payload'", server.process_continuation({}, 5))
        unknown = {**output, "revision": "0" * 64}
        await refused(RevisionError, "0000", server.process_continuation(unknown, 6))
        await refused(EncoderError, "zero", server.receive_edge_embedding({"embedding": torch.zeros(32)}))
        await refused(CutError, "'embedding'", server.receive_edge_embedding({"embeding": torch.zeros(32)}))

    asyncio.run(go())


def test_finished_embeddings_are_taken_by_the_server():
    server = ServerModule(config())
    assert asyncio.run(server.receive_edge_embedding({"embedding": torch.randn(32), "device_id": "a"})) is True
    assert len(server.refiner.buffer) == 1


def test_the_resource_state_is_shares():
    state = EdgeModule(config()).get_resource_state()
    assert set(state) == {"cpu", "memory", "battery", "thermal"}
    assert all(0.0 <= value <= 1.0 for value in state.values())


def test_the_server_learns_from_spectrograms():
    server = ServerModule(config())
    windows = [np.asarray(spectrogram(seed, 98)) for seed in range(24)]

    async def go():
        for window in windows:
            await server.process(torch.from_numpy(window))

    asyncio.run(go())
    report = server.refine()
    assert server.refiner.warm_started and report is not None and not report.skipped
    published = server.publish()
    assert published.breaks_space and published.revision == server.revision


# ---- trainers ----


def test_the_edge_trainer_learns_and_its_loss_falls():
    trainer = EdgeTrainer(
        TrainingConfig(learning_rate=1e-3, momentum=0.9, batch_size=8, warm_start_windows=16),
        MobileNetV3EdgeEncoder(embedding_dim=32, width_multiplier=0.25),
    )
    losses = []
    for window in cut_windows(sound(80.0)):
        result = trainer.train_step(window.features)
        if result["learned"]:
            losses.append(result["loss"]["total_loss"])
    assert result["memory_bank_stats"]["current_size"] == trainer.get_training_metrics()["windows"] == len(losses) + 15
    assert result["global_step"] > 30
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


def test_the_edge_trainers_checkpoint_goes_on_exactly(tmp_path):
    def trainer() -> EdgeTrainer:
        settings = TrainingConfig(batch_size=8, warm_start_windows=16)
        return EdgeTrainer(settings, MobileNetV3EdgeEncoder(embedding_dim=32, width_multiplier=0.25))

    one, two = trainer(), trainer()
    for seed in range(20):
        one.train_step(spectrogram(seed))
    one.save_checkpoint(tmp_path / "edge")
    two.load_checkpoint(tmp_path / "edge")
    for seed in range(20, 26):
        a, b = one.train_step(spectrogram(seed)), two.train_step(spectrogram(seed))
        assert a["loss"] == b["loss"] and torch.equal(a["embedding"], b["embedding"])


def server_trainer(**changes) -> ServerTrainer:
    settings = ServerTrainingConfig(**{"learning_rate": 1e-3, "batch_size": 64, **changes})
    return ServerTrainer(settings, MobileNetV3ServerEncoder(64, 32, 3, width_multiplier=0.25))


def smooth_walk(steps: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.cumsum(rng.normal(size=(steps, 32)), axis=0).astype(np.float32))


def test_the_server_trainer_learns_from_embeddings_alone():
    trainer = server_trainer(temporal_window=40)
    walks = {"a": smooth_walk(40, 1), "b": smooth_walk(40, 2)}

    async def go():
        for device, walk in walks.items():
            await trainer.receive_embeddings(device, {"embeddings": walk})
        assert trainer.get_training_metrics()["global_step"] == 0  # not started yet
        assert math.isnan(trainer.get_training_metrics()["average_loss"])
        await trainer.start_training()
        losses = []
        for _ in range(3):  # the buffer holds 40 of each device: after each round, the same windows again
            for z in walks["b"]:
                await trainer.receive_embeddings("b", {"embeddings": z})
            losses.append(trainer.get_training_metrics()["loss"]["total_loss"])
        await trainer.stop_training()
        await trainer.receive_embeddings("a", {"embeddings": walks["a"][0]})
        return losses

    losses = asyncio.run(go())
    metrics = trainer.get_training_metrics()
    assert metrics["global_step"] == 120 and metrics["active_devices"] == 2
    assert metrics["received_embeddings"] == 201 and metrics["buffered_embeddings"] == 80
    assert losses[2] < losses[1] < losses[0]


def test_the_refinement_head_starts_as_the_identity_and_keeps_unit_norm():
    model = MobileNetV3ServerEncoder(64, 32, 3, width_multiplier=0.25)
    z = torch.nn.functional.normalize(torch.randn(5, 32), dim=1)
    assert torch.allclose(model.refine(z), z, atol=1e-6)
    x = spectrogram()
    assert torch.allclose(model(x), model.encoder(x), atol=1e-6)


def test_the_server_trainer_trains_its_encoder_from_spectrograms():
    trainer = server_trainer(min_devices_per_update=1, warm_start_windows=16)
    before = encoder_weights(trainer.model.encoder)

    async def go():
        await trainer.start_training()
        for seed in range(22):
            data = {"embeddings": smooth_walk(1, seed)[0], "spectrograms": [spectrogram(seed)]}
            await trainer.receive_embeddings("a", data)

    asyncio.run(go())
    after = encoder_weights(trainer.model.encoder)
    assert trainer.get_training_metrics()["encoder_steps"] > 0
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_the_server_trainers_checkpoint_brings_back_model_and_progress(tmp_path):
    one, two = server_trainer(), server_trainer()

    async def go():
        await one.start_training()
        await one.receive_embeddings("a", {"embeddings": smooth_walk(20)})

    asyncio.run(go())
    one.save_checkpoint(tmp_path / "server")
    two.load_checkpoint(tmp_path / "server")
    a, b = encoder_weights(one.model), encoder_weights(two.model)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert two.get_training_metrics()["global_step"] == 1
    with pytest.raises(StreamSplitError):
        other = ServerTrainer(None, MobileNetV3ServerEncoder(32, 32, 3, width_multiplier=0.25))
        other.load_checkpoint(tmp_path / "server")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "'embeddings'"),
        ({"embeddings": torch.zeros(32)}, "zero"),
        ({"embeddings": torch.full((32,), math.nan)}, "NaN"),
        ({"embeddings": torch.ones(31)}, r"\[n, 32\]"),
        ({"embeddings": torch.ones(2, 32), "timestamps": [1.0]}, "1 timestamps for 2"),
        ({"embeddings": torch.ones(2, 32), "spectrograms": [spectrogram()]}, "1 spectrograms for 2"),
    ],
)
def test_the_server_trainer_refuses_what_does_not_fit_and_keeps_nothing(data, text):
    trainer = server_trainer()
    with pytest.raises(EncoderError, match=text):
        asyncio.run(trainer.receive_embeddings("a", data))
    assert trainer.get_training_metrics()["received_embeddings"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_falls_back_to_the_cpu_with_a_warning():
    with pytest.warns(UserWarning, match="CUDA is not available"):
        trainer = ServerTrainer(None, MobileNetV3ServerEncoder(64, 32, 2, width_multiplier=0.25), device="cuda")
    assert trainer.device == "cpu"
    with pytest.warns(UserWarning, match="CUDA is not available"):
        EdgeTrainer(None, MobileNetV3EdgeEncoder(embedding_dim=32, width_multiplier=0.25), device="cuda")
    with pytest.warns(UserWarning, match="CUDA is not available"):
        ServerModule(config(device="cuda"))
    with pytest.raises(ConfigError, match="tpu"):
        ServerTrainer(None, MobileNetV3ServerEncoder(64, 32, 2, width_multiplier=0.25), device="tpu")


# ---- the agent ----


def agent(**changes) -> DynamicSplittingAgent:
    changes.setdefault("readings", lambda: Readings(0.2, 0.3))
    return DynamicSplittingAgent(StreamSplitConfig(), **changes)


def test_the_agent_sends_less_when_the_link_gets_worse_and_says_why():
    split = agent()

    async def at(mbps: float, rtt_ms: float) -> dict:
        for _ in range(20):
            await split.update_performance({"bandwidth": [mbps], "rtt": [rtt_ms]})
        return await split.get_split_decision()

    async def go():
        await split.start()
        good, poor = await at(20.0, 20.0), await at(0.05, 250.0)
        await split.stop()
        return good, poor

    good, poor = asyncio.run(go())
    sizes = [split.table.row(Cut.parse(answer["cut"])).payload_bytes for answer in (good, poor)]
    assert sizes[0] > 5 * sizes[1]
    assert good["network_quality"] == pytest.approx(1.0) and poor["network_quality"] == pytest.approx(0.0, abs=0.02)
    assert good["reasoning"] and 0 < good["confidence"] <= 1 and good["split_point"] < poor["split_point"]


def test_network_quality_is_where_bandwidth_and_round_trip_lie_in_their_ranges():
    split = agent()
    assert split.get_network_quality() == 0.5
    asyncio.run(split.update_performance({"bandwidth": [4.25], "latency": [125.0]}))
    assert split.get_network_quality() == pytest.approx(0.5)
    asyncio.run(split.update_performance({"bandwidth": [8.0]}))
    assert split.get_network_quality() == pytest.approx(((4.25 + 0.3 * 3.75 - 0.5) / 7.5 + 0.5) / 2)


def test_the_agents_estimates_age():
    now = [0.0]
    split = agent(clock_ms=lambda: now[0])
    asyncio.run(split.update_performance({"bandwidth": [0.02], "rtt": [50.0]}))
    now[0] = 3_000.0
    seen = split.observation()
    assert seen.bandwidth_bps == pytest.approx(2e4) and seen.bandwidth_age_ms == 3_000.0
    assert seen.cpu == 0.2 and seen.memory == 0.3


def test_the_agent_refuses_names_and_values_that_mean_nothing():
    split = agent()
    for history, text in (({"bandwith": [1.0]}, "did you mean 'bandwidth'"), ({"rtt": ["x"]}, "list of numbers")):
        with pytest.raises(ConfigError, match=text):
            asyncio.run(split.update_performance(history))
    with pytest.raises(ConfigError, match="NaN"):
        asyncio.run(split.update_performance({"rtt": [math.nan], "bandwidth": [1.0]}))
    assert split.get_network_quality() == 0.5  # the good half of a bad update is not taken either

    class Bad:
        bandwidth_range = (8.0, 0.5)

    with pytest.raises(ConfigError, match="bandwidth_range"):
        DynamicSplittingAgent(Bad())


def test_the_agent_logs_decisions_with_alternatives_and_judges_them_by_the_latencies_it_is_told():
    split = agent()

    async def go() -> dict:
        await split.update_performance({"bandwidth": [8.0], "rtt": [30.0]})
        answers = [await split.get_split_decision() for _ in range(3)]
        await split.update_performance({"latency": [400.0, 80.0]})  # of the second and the third
        return answers[-1]

    answer = asyncio.run(go())
    assert answer["alternatives"] and answer["cut"] not in [cut for cut, _ in answer["alternatives"]]
    rows = split.decision_log()
    assert [row["latency_ms"] for row in rows] == [None, 400.0, 80.0]
    assert rows[0]["regret"] is None and rows[1]["regret"] >= rows[2]["regret"] >= 0
    assert split.mean_regret == pytest.approx((rows[1]["regret"] + rows[2]["regret"]) / 2)
    asyncio.run(split.update_performance({"latency": [50.0]}))  # nothing waits for it any more
    assert split.decision_log() == rows


@pytest.mark.parametrize("name", ["greedy", "heuristic", "argmin", "bandit", "keep-local"])
def test_the_agent_takes_its_policy_by_name(name):
    split = DynamicSplittingAgent(StreamSplitConfig(policy=name), readings=lambda: Readings(0.2, 0.3))
    answer = asyncio.run(split.get_split_decision())
    assert answer["cut"] in map(str, split.table.cuts) and 0 <= answer["confidence"] <= 1 and split.problem == ""


def test_what_the_agent_is_told_teaches_a_policy_that_learns():
    split = DynamicSplittingAgent(StreamSplitConfig(policy="bandit"), readings=lambda: Readings(0.2, 0.3))
    before = learner_of(split.policy)._model.samples

    async def go() -> None:
        for _ in range(5):
            await split.get_split_decision()
            await split.update_performance({"latency": [120.0]})

    asyncio.run(go())
    sent = sum(Cut.parse(row["cut"]).sends for row in split.decision_log())
    assert learner_of(split.policy)._model.samples == before + sent > 0


def test_an_agent_without_a_usable_policy_file_decides_by_the_heuristic_and_says_so(tmp_path):
    config = StreamSplitConfig(policy="ppo", policy_file=str(tmp_path / "none.npz"))
    split = DynamicSplittingAgent(config, readings=lambda: Readings(0.2, 0.3))
    assert "the heuristic decides" in split.problem
    assert "'ppo' is not usable" in asyncio.run(split.get_split_decision())["reasoning"]


# ---- the research code's API reference ----

SIGNATURES = {
    StreamSplitFramework: {
        "start": (True, ["mode"]), "stop": (True, []), "process_audio_stream": (True, ["audio"]),
        "save_checkpoint": (False, ["filepath"]), "load_checkpoint": (False, ["filepath"]),
    },
    EdgeModule: {
        "process": (True, ["spectrogram"]), "process_partial": (True, ["spectrogram", "split_point"]),
        "get_resource_state": (False, []),
    },
    ServerModule: {
        "process": (True, ["spectrogram"]), "process_continuation": (True, ["edge_output", "split_point"]),
        "receive_edge_embedding": (True, ["embedding_data"]),
    },
    DynamicSplittingAgent: {
        "get_split_decision": (True, []), "update_performance": (True, ["performance_history"]),
        "get_network_quality": (False, []),
    },
}  # fmt: skip


@pytest.mark.parametrize("cls", SIGNATURES, ids=lambda cls: cls.__name__)
def test_methods_have_the_signatures_of_the_api_reference(cls):
    for name, (is_async, parameters) in SIGNATURES[cls].items():
        method = getattr(cls, name)
        assert inspect.iscoroutinefunction(method) is is_async, name
        assert list(inspect.signature(method).parameters)[1:] == parameters, name


def test_everything_that_is_exported_loads():
    for name in streamsplit.__all__:
        assert getattr(streamsplit, name) is not None


def test_the_edge_encoder_takes_single_spectrograms_batches_and_both_resolutions():
    model = MobileNetV3EdgeEncoder(embedding_dim=32, width_multiplier=0.25)
    x = spectrogram()
    with torch.no_grad():
        single = model(x)
        assert single.shape == (32,)
        assert torch.equal(model(x[None])[0], single) and torch.equal(model(x[None, None])[0], single)
        assert model(x[:64]).shape == (32,)
    with pytest.raises(EncoderError, match="input_dim 80"):
        MobileNetV3EdgeEncoder(input_dim=80)
