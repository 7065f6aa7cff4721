"""Simulated devices that really compute: what the server answers is what the whole encoder says of the same audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.edge.model import EncoderModel
from streamsplit.edge.settings import EdgeSettings
from streamsplit.encoders.factory import make_encoder
from streamsplit.errors import CutError
from streamsplit.network.trace import constant_trace
from streamsplit.server.settings import ServerSettings
from streamsplit.simulation.fleet import FleetDevice, FleetResult, FleetSettings, FleetSimulation
from streamsplit.simulation.pipeline import EncoderServer, PipelineWork
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.policy import FixedPolicy
from streamsplit.splitting.table import packaged_table
from streamsplit.splitting.transmission import GateSettings, UncertaintyGate

TABLE = packaged_table("mobilenet", "pi4")
SECONDS = 8.0


def sound(seed: int) -> list[np.ndarray]:
    blocks = Soundscape(seed).blocks(1_600)
    return [next(blocks)[0] for _ in range(int(10 * SECONDS))]


def run(folder: Path, cuts: list[str], stop_s: float = 7.0) -> FleetResult:
    """One device a cut, each with sound of its own."""
    fleet = []
    server = None
    for number, text in enumerate(cuts):
        settings = EdgeSettings.from_mapping({"device": {"id": f"d{number}", "state_dir": str(folder)}})
        model, policy = EncoderModel(settings), FixedPolicy(Cut.parse(text))
        server = server or EncoderServer.like(model, ServerSettings())
        gate = UncertaintyGate(GateSettings(enabled=False))
        work = PipelineWork(model, TABLE, policy, gate, device_profile("pi4"), sound(number))
        link = constant_trace(3e6, 40.0)
        fleet.append(FleetDevice(f"d{number}", TABLE, policy, link, stop_s=stop_s, start_s=0.01 * number, work=work))
    return FleetSimulation(FleetSettings(keep_results=True), fleet, completes=server).run(12.0)


def test_every_cut_gives_the_embedding_of_the_whole_encoder(tmp_path: Path) -> None:
    """Oracle: the encoder in one piece on the same windows. Sound in 16 bits, features and activations in 8 are a
    little off, embeddings in fp16 hardly. Devices share the server's batches."""
    torch.set_num_threads(1)
    cuts = {"0:pcm16": 0.01, "0:logmel-int8": 0.1, "6:int8": 0.1, "13:embedding-fp16": 1e-3}
    result = run(tmp_path, list(cuts))
    encoder = make_encoder()
    for number, (cut, tolerance) in enumerate(cuts.items()):
        device = result[f"d{number}"]
        windows = WindowStream().push(np.concatenate(sound(number)))
        with torch.no_grad():
            expected = encoder(torch.from_numpy(np.stack([window.features for window in windows]))).numpy()
        assert len(device.results) == device.counts["sent"] == 12 and device.rejected == 0
        assert set(device.cut_names()) == {cut}
        for window, answer in device.results.items():
            got = np.frombuffer(answer.embedding, "<f2").astype(np.float32)
            assert np.linalg.norm(got - expected[window]) < tolerance, (cut, window)
    assert result.server_windows > result.server_batches


def test_audio_that_runs_out_is_said(tmp_path: Path) -> None:
    with pytest.raises(CutError, match="the audio ends before window"):
        run(tmp_path, ["6:int8"], stop_s=20.0)
