"""One device that listens and talks through one microphone and one connection; questions outlive the process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from server_harness import make_settings, running

from streamsplit.edge.blocks import AudioBlock, SourceInfo
from streamsplit.edge.reconnecting import ReconnectingSource
from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.edge.speaker import PacedSink, WavSink
from streamsplit.edge.talk import TalkRuntime
from streamsplit.edge.talker import TalkEvent
from streamsplit.edge.voice import Voice
from streamsplit.errors import AudioError, ConfigError

RATE = 16_000


def spoken(path: Path) -> str:
    """Silence, a buzz of 1.2 s, silence."""
    time_s = np.arange(round(1.2 * RATE)) / RATE
    buzz = 0.15 * sum(np.sin(2 * np.pi * 140 * k * time_s) / k for k in range(1, 6))
    quiet = 0.0005 * np.random.default_rng(0).standard_normal(round(3.0 * RATE))
    quiet[round(0.5 * RATE) : round(0.5 * RATE) + len(buzz)] += buzz
    soundfile.write(path, quiet.astype(np.float32), RATE, subtype="PCM_16")
    return str(path)


def settings(folder: Path, port: int, **more: Any) -> EdgeSettings:
    return EdgeSettings.from_mapping(
        {
            "device": {"id": "pi", "state_dir": str(folder / "pi")},
            "encoder": {"width": 0.25, "embedding_dim": 32},
            "splitting": {"gate": {"enabled": False}, "agent": {"policy": "fixed", "cut": "5:int8"}},
            "server": {"url": f"ws://127.0.0.1:{port}/v1/stream", "first_backoff_s": 0.05, "longest_backoff_s": 0.2},
            "talk": {"activity": {"end_ms": 300.0}},
            **more,
        }
    )


def served(folder: Path) -> Any:
    encoder = {"width": 0.25, "embedding_dim": 32}
    return running(make_settings(folder / "server", encoder=encoder, dialogue={"responder": "echo"}))


class Unplugged:
    """A little quiet, and it is gone."""

    info = SourceInfo("microphone", "fake", False, ())

    def __iter__(self) -> Iterator[AudioBlock]:
        for place in range(10):
            yield AudioBlock(np.zeros(320, np.float32), 20.0 * place, None, None)
        raise AudioError("pulled out")

    def close(self) -> None:
        pass


def test_a_device_listens_and_talks_through_one_microphone_that_was_gone_and_one_connection(tmp_path: Path) -> None:
    events: list[TalkEvent] = []
    file = open_source(spoken(tmp_path / "in.wav"), block_ms=20.0)
    source = ReconnectingSource(Unplugged, lambda: file, longest_s=0.001, clock_s=lambda: 0.0)
    with served(tmp_path) as server:
        made = settings(tmp_path, server.port, talk={"activity": {"end_ms": 300.0}, "error_s": 0.05})
        voice = Voice(made, WavSink(tmp_path / "out.wav"), watch=events.append)
        device = EdgeRuntime(made, source, voice=voice)
        summary = asyncio.run(asyncio.wait_for(device.run(), 60))
        backend = server.backend
        assert backend.dialogues.questions == backend.dialogues.answers == 1
        assert backend.compute._heard == 0  # its windows hold that sound: it is not learned from twice
    status = voice.status(device.link.estimate(0.0))
    assert status.counts["questions"] == status.counts["delivered"] == status.counts["answers"] == 1
    assert status.state == "IDLE" and status.problem == "" and [e.kind for e in events].count("answer") == 1
    assert [e.kind for e in events if e.kind in ("error", "device")] == ["error", "device"]
    assert status.microphone_outages == summary.status.microphone_outages == 1
    assert summary.status.problem == "" and summary.status.windows_missed == 0
    heard, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert np.abs(heard).max() > 0.1
    assert summary.status.windows_seen == summary.status.windows_sent == summary.status.results == 5
    assert device.client is not None and device.client.connections == 1


def test_a_voice_needs_a_server_and_real_time(tmp_path: Path) -> None:
    made = settings(tmp_path, 1)
    source = open_source("synthetic:1", speed=0)
    with pytest.raises(ConfigError, match="got speed 0, expected 1"):
        EdgeRuntime(made, source, speed=0, voice=Voice(made, PacedSink()))


def test_a_question_without_a_link_outlives_the_process_and_goes_up_once(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        source = open_source(spoken(tmp_path / "in.wav"), block_ms=20.0)
        first = TalkRuntime(settings(tmp_path, port), source, PacedSink())
        status = asyncio.run(asyncio.wait_for(first.run(), 60))
    assert status.waiting == 1 and status.counts["delivered"] == 0
    files = list((tmp_path / "pi" / "questions").iterdir())
    assert len(files) == 1
    with served(tmp_path) as server:
        made = settings(tmp_path, server.port)
        second = TalkRuntime(made, open_source("synthetic:0.2", block_ms=20.0), PacedSink())
        assert second.talker.questions.waiting == 1
        status = asyncio.run(asyncio.wait_for(second.run(), 60))
        assert server.backend.dialogues.questions == 1
    assert status.counts["delivered"] == 1 and status.waiting == 0
    assert list((tmp_path / "pi" / "questions").iterdir()) == []
