"""Voice clients and a server that answers them, over real sockets in real time."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from server_harness import make_settings, running

from streamsplit.cli.main import main
from streamsplit.edge.blocks import AudioBlock, Pacer
from streamsplit.edge.reconnecting import ReconnectingSource
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.edge.speaker import PacedSink, WavSink
from streamsplit.edge.talk import TalkRuntime
from streamsplit.edge.talker import TalkEvent
from streamsplit.edge.voice import TalkStatus
from streamsplit.errors import AudioError
from streamsplit.network.packets import PacketLinkSettings
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import constant_trace
from streamsplit.network.udp_shaper import LossyProxy

RATE = 16_000


def voice(seconds: float, pitch: float = 140.0) -> np.ndarray:
    """A buzz with harmonics that swells and fades."""
    t = np.arange(round(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 6))
    return (0.15 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def recording(path: Path, *parts: np.ndarray) -> str:
    noise = 0.0005 * np.random.default_rng(0).standard_normal(sum(map(len, parts)))
    soundfile.write(path, (np.concatenate(parts) + noise).astype(np.float32), RATE, subtype="PCM_16")
    return str(path)


def pause(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def settings(folder: Path, port: int, device: str = "pi", fingerprint: str = "", **talk: Any) -> EdgeSettings:
    url = f"quic://127.0.0.1:{port}" if fingerprint else f"ws://127.0.0.1:{port}/v1/stream"
    backoff = {"first_backoff_s": 0.05, "longest_backoff_s": 0.2}
    return EdgeSettings.from_mapping(
        {
            "device": {"id": device, "state_dir": str(folder / device)},
            "server": {"url": url, "tls_fingerprint": fingerprint, **backoff},
            "talk": {"activity": {"end_ms": 300.0}, **talk},
        }
    )


def talk(folder: Path, port: int, source: str, *, device: str = "pi", sink: Any = None, **more: Any):
    events: list[TalkEvent] = []
    out = sink or WavSink(folder / f"{device}.wav")
    made = settings(folder, port, device, **more)
    runtime = TalkRuntime(made, open_source(source, block_ms=20.0), out, watch=events.append)
    return runtime, events


def converse(folder: Path, port: int, source: str, **more: Any) -> tuple[TalkStatus, list[TalkEvent], np.ndarray]:
    runtime, events = talk(folder, port, source, **more)
    status = asyncio.run(asyncio.wait_for(runtime.run(), 60))
    heard, _ = soundfile.read(folder / f"{more.get('device', 'pi')}.wav", dtype="float32")
    return status, events, heard


def server(folder: Path, responder: str = "echo", **dialogue: Any):
    listen = {"quic_port": 0}
    return running(make_settings(folder / "server", server=listen, dialogue={"responder": responder, **dialogue}))


def reached(running_server: Any, transport: str) -> tuple[int, str]:
    """Port and fingerprint; "" is a WebSocket."""
    listener = running_server.app.state.quic
    return (listener.port, listener.fingerprint) if transport == "quic" else (running_server.port, "")


TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "quic"])


def states(events: list[TalkEvent]) -> list[str]:
    return [event.value for event in events if event.kind == "state"]


def similarity(heard: np.ndarray, said: np.ndarray) -> float:
    """Largest normalised correlation of what was said with a stretch of what was heard."""
    n = 1 << (len(heard) + len(said)).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, n) * np.conj(np.fft.rfft(said, n)), n)[: len(heard)]
    at = int(product.argmax())
    piece = heard[at : at + len(said)]
    piece = np.pad(piece, (0, len(said) - len(piece)))
    return float(piece @ said / (np.linalg.norm(piece) * np.linalg.norm(said) + 1e-9))


def piecewise(heard: np.ndarray, said: np.ndarray) -> float:
    """Median similarity of pieces of 100 ms: live sound may leave out frames between them."""
    pieces = said[: len(said) // 1_600 * 1_600].reshape(-1, 1_600)
    return float(np.median([similarity(heard, piece) for piece in pieces]))


@TRANSPORTS
@pytest.mark.parametrize("codec", ["opus", "pcm16"])
def test_an_echo_comes_back_while_it_is_spoken(tmp_path: Path, codec: str, transport: str) -> None:
    said = voice(1.2)
    source = recording(tmp_path / "in.wav", pause(0.3), said, pause(1.5))
    with server(tmp_path) as running_server:
        port, fingerprint = reached(running_server, transport)
        status, events, heard = converse(tmp_path, port, source, codec=codec, fingerprint=fingerprint)
    assert status.state == "IDLE" and status.counts["questions"] == status.counts["delivered"] == 1
    assert status.counts["answers"] == 1 and status.frames["lost"] == status.frames["late"] == 0
    assert states(events)[:3] == ["RECORDING", "STREAMING", "PROCESSING"] and states(events)[-1] == "IDLE"
    assert piecewise(heard, said) > (0.95 if codec == "pcm16" else 0.8)
    if (
        codec == "pcm16"
    ):  # what comes back is what was said, half frame for half frame, but for a few that were caught up with
        recorded, _ = soundfile.read(source, dtype="int16")
        spoken = [frame.tobytes() for frame in recorded[: len(recorded) // 160 * 160].reshape(-1, 160)]
        played = [frame for frame in np.rint(heard * 32_768).astype(np.int16).reshape(-1, 160) if np.abs(frame).max()]
        places = [spoken.index(frame.tobytes()) for frame in played]
        assert places == sorted(set(places)) and len(places) > 0.8 * (places[-1] - places[0] + 1)


def test_an_announcer_names_the_nearest_labelled_sound_and_the_question_is_learned_from(tmp_path: Path) -> None:
    source = recording(tmp_path / "in.wav", pause(0.3), voice(1.5), pause(1.0))
    with server(tmp_path, "announce") as running_server:
        _, events, _ = converse(tmp_path, running_server.port, source)
        assert ("text", "I know no names of sounds yet.") in [(e.kind, e.value) for e in events]
        backend = running_server.backend
        windows = [w.features for w in _windows(voice(1.5))]
        embeddings, _ = backend.compute.call(lambda: backend.compute.hear("x", windows, 0)).result(10)
        backend.labels.add("a buzz", embeddings, backend.space)
        status, events, heard = converse(tmp_path, running_server.port, source, device="second")
    said = [event.value for event in events if event.kind == "text"]
    assert len(said) == 1 and said[0].startswith("I heard a buzz, ") and said[0].endswith(" percent.")
    assert status.counts["answers"] == 1 and np.abs(heard).max() > 0.05


def _windows(sound: np.ndarray) -> list[Any]:
    from streamsplit.audio.windows import cut_windows

    return cut_windows(sound)


def test_a_command_answers_with_what_it_prints(tmp_path: Path) -> None:
    """It is fed as the question comes: this one reverses the sign and says it back."""
    program = "import sys, array\n" + (
        "while data := sys.stdin.buffer.read(640):\n"
        "    a = array.array('h', data)\n"
        "    sys.stdout.buffer.write(array.array('h', [-max(x, -32767) for x in a]).tobytes())\n"
        "    sys.stdout.buffer.flush()\n"
    )
    said = voice(1.0)
    source = recording(tmp_path / "in.wav", pause(0.3), said, pause(1.5))
    with server(tmp_path, "command", command=[sys.executable, "-c", program]) as running_server:
        status, _, heard = converse(tmp_path, running_server.port, source, codec="pcm16")
    assert status.counts["answers"] == 1 and similarity(heard, -said) > 0.9


def test_a_hook_over_http_answers_with_a_wav_or_text(tmp_path: Path) -> None:
    posted: list[tuple[str, str, int]] = []

    class Assistant(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.headers["Content-Type"], self.headers["X-Device"], len(body)))
            self.send_response(200)
            self.send_header("Content-Type", "audio/wav" if self.path == "/wav" else "text/plain")
            self.end_headers()
            self.wfile.write(body if self.path == "/wav" else b"hello there")

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Assistant)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{http.server_port}"
    said = voice(1.0)
    source = recording(tmp_path / "in.wav", pause(0.3), said, pause(1.0))
    try:
        with server(tmp_path, "http", url=f"{base}/wav") as running_server:
            status, _, heard = converse(tmp_path, running_server.port, source, codec="pcm16")
        assert status.counts["answers"] == 1 and similarity(heard, said) > 0.95
        with server(tmp_path / "text", "http", url=f"{base}/text") as running_server:
            status, events, _ = converse(tmp_path, running_server.port, source, device="text")
        assert "hello there" in [event.value for event in events] and status.state == "IDLE"
    finally:
        http.shutdown()
    assert posted[0][:2] == ("audio/wav", "pi") and posted[0][2] > 2 * RATE


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import time; time.sleep(60)", "nothing said within 0.5 s"),
        ("import sys; sys.exit('it is broken')", "it is broken"),
    ],
)
def test_a_responder_that_hangs_or_fails_is_told_and_the_next_question_is_asked(
    tmp_path: Path, program: str, text: str
) -> None:
    source = recording(tmp_path / "in.wav", pause(0.3), voice(0.5), pause(3.0), voice(0.5), pause(1.0))
    with server(tmp_path, "command", command=[sys.executable, "-c", program], answer_s=0.5) as running_server:
        status, events, _ = converse(tmp_path, running_server.port, source, error_s=1.2)
        assert running_server.backend.dialogues.failures == 2
    assert status.counts["questions"] == status.counts["errors"] == 2
    assert text in status.problem and states(events).count("ERROR") == 2 and states(events)[-1] in ("ERROR", "IDLE")


def test_without_a_responder_the_client_is_told_what_to_set(tmp_path: Path) -> None:
    source = recording(tmp_path / "in.wav", pause(0.3), voice(0.6), pause(1.0))
    with server(tmp_path, "") as running_server:
        status, _, _ = converse(tmp_path, running_server.port, source)
    assert "set dialogue.responder" in status.problem


def test_questions_asked_without_a_server_are_answered_when_it_is_there(tmp_path: Path) -> None:
    port = _free_port()
    source = recording(tmp_path / "in.wav", pause(0.3), voice(0.8), pause(1.2), voice(0.8, 180.0), pause(6.0))
    runtime, events = talk(tmp_path, port, source)
    done = threading.Thread(target=lambda: asyncio.run(runtime.run()))
    done.start()
    deadline = time.monotonic() + 120
    while runtime.talker.counts.stored < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    made = make_settings(tmp_path / "server", server={"port": port}, dialogue={"responder": "echo"})
    with running(made) as running_server:
        while running_server.backend.dialogues.answers < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        done.join(20)
        assert running_server.backend.dialogues.questions == 2
    assert runtime.talker.questions.waiting == 0 and runtime.talker.counts.stored == 2
    assert "PLAYING" in states(events)  # the tones


def test_two_talkers_at_once_hear_each_their_own_echo(tmp_path: Path) -> None:
    said = {"a": voice(1.0, 130.0), "b": voice(1.0, 210.0)}
    sources = {
        name: recording(tmp_path / f"in-{name}.wav", pause(0.3), sound, pause(1.5)) for name, sound in said.items()
    }
    with server(tmp_path) as running_server:
        runtimes = [talk(tmp_path, running_server.port, sources[name], device=name)[0] for name in said]

        async def both() -> None:
            await asyncio.gather(*(runtime.run() for runtime in runtimes))

        asyncio.run(both())
    for name, other in (("a", "b"), ("b", "a")):
        heard, _ = soundfile.read(tmp_path / f"{name}.wav", dtype="float32")
        own, others = piecewise(heard, said[name]), piecewise(heard, said[other])
        assert own > 0.75 and own > others + 0.15, (own, others)


def test_a_microphone_that_fails_is_an_error_with_its_reason_and_the_run_ends_only_if_it_cannot_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Unplugged:
        info = open_source("synthetic:1").info

        def __init__(self) -> None:
            self.error = errors.pop(0)

        def __iter__(self):
            yield from open_source("synthetic:0.3", block_ms=20.0)
            if not errors:
                idle_again.wait(20.0)
            raise self.error

        def close(self) -> None:
            pass

    errors = [AudioError("pulled out"), OSError("the device is gone")]
    events: list[TalkEvent] = []
    idle_again = threading.Event()

    def watch(event: TalkEvent) -> None:
        events.append(event)
        if states(events)[-2:] == ["ERROR", "IDLE"]:
            idle_again.set()

    source = ReconnectingSource(Unplugged, Unplugged, longest_s=0.001)
    with server(tmp_path) as running_server:
        made = settings(tmp_path, running_server.port, error_s=0.05)
        runtime = TalkRuntime(made, source, PacedSink(), watch=watch)
        with pytest.raises(OSError, match="the device is gone"):
            asyncio.run(runtime.run())
    assert "microphone: the device is gone" in runtime.voice.problem
    status = runtime.status()
    assert (status.counts["errors"], status.microphone_outages, status.loudspeaker_outages) == (2, 1, 0)
    said = [(event.kind, event.value.partition(";")[0]) for event in events if event.kind in ("error", "device")]
    back = ("device", f"microphone: back after {source.outages.figures['microphone_gone_s']:.1f} s")
    assert said == [("error", "microphone: pulled out"), back, ("error", "microphone: the device is gone")]
    assert [text.count("pulled out") for text in caplog.messages if "pulled out" in text] == [1]
    assert idle_again.is_set()


def test_the_command_talks_with_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = recording(tmp_path / "in.wav", pause(0.3), voice(0.8), pause(1.3))
    config = tmp_path / "edge.yaml"
    config.write_text(json.dumps({"device": {"state_dir": str(tmp_path / "state")}}))
    with server(tmp_path) as running_server:
        words = ["talk", "--config", str(config), "--server", f"127.0.0.1:{running_server.port}", "--source", source]
        words += ["--sink", str(tmp_path / "out.wav"), "--message-ms", "20", "--json", "--device-id", "desk"]
        assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "summary" and lines[-1]["counts"]["answers"] == 1
    used = lines[-1]["bitrates"]
    assert 8_000 <= used["least_bps"] <= used["mean_bps"] <= used["most_bps"] <= 32_000 and used["changes"] >= 0
    assert {"event", "value", "at_ms"} == set(lines[0])
    assert main(["talk", "--source", str(tmp_path / "none.wav"), "--sink", "none"]) == 1
    assert "no such file" in capsys.readouterr().err


class Speaker:
    """Somebody who does not stop speaking, in real time."""

    info = open_source("synthetic:1").info

    def __init__(self) -> None:
        self.pacer = Pacer(1.0)

    def __iter__(self) -> Iterator[AudioBlock]:
        sound = voice(60.0).reshape(-1, 320)
        for number, samples in enumerate(sound):
            if not self.pacer.wait(20.0 * (number + 1)):
                return
            yield AudioBlock(samples, 20.0 * number, None, None)

    def close(self) -> None:
        self.pacer.close()


GOOD, SLOW = constant_trace(1e6, 40.0), constant_trace(20e3, 40.0)


@contextmanager
def shaped(port: int, transport: str) -> Iterator[tuple[int, Callable[[], None], Callable[[], None]]]:
    """A link to the server: its port, what makes the way up slow, what makes it good again."""
    if transport == "quic":
        good = PacketLinkSettings(rate_bps=1e6, queue_ms=2_000.0)
        lossy = LossyProxy(("127.0.0.1", port), good).start_in_thread()
        up = lossy.up
        slow = good.replace(rate_bps=50e3)  # 29 kbit/s of it are headers of 50 packets a second
        proxy, bad, well = lossy, lambda: setattr(up, "settings", slow), lambda: setattr(up, "settings", good)
    else:
        tcp = ShapedProxy(("127.0.0.1", port), GOOD, GOOD).start_in_thread()
        proxy, bad, well = tcp, lambda: tcp.change(SLOW, GOOD), lambda: tcp.change(GOOD, GOOD)
    try:
        yield proxy.address[1], bad, well
    finally:
        proxy.stop_thread()


def test_speech_falls_to_8_kbit_on_a_link_of_20_arrives_all_the_same_and_climbs_again(tmp_path: Path) -> None:
    """Two talkers at once, one for each transport; a link's rate changes when its talker has done what it should."""
    quick = {"probe_ms": 60.0, "settle_ms": 100.0, "climb_ms": 150.0, "queue_ms": 200.0, "room_ms": 150.0}

    async def speak(transport: str, running_server: Any) -> tuple[dict[str, set[int]], dict[str, float]]:
        port, fingerprint = reached(running_server, transport)
        seen: dict[str, set[int]] = {"coded": set(), "received": set()}
        with shaped(port, transport) as (port, bad, well):
            made = settings(
                tmp_path, port, transport, fingerprint, bitrate=quick, activity={"kind": "push", "lead_ms": 20.0}
            )
            runtime = TalkRuntime(made, Speaker(), PacedSink())
            runtime.talker.watch(lambda what, index, number: seen.get(what, set()).add(index))
            questions = runtime.talker.questions
            talking = asyncio.create_task(runtime.run())
            try:
                await _until(lambda: runtime.status().connected)
                runtime.voice.press()
                await _until(lambda: bool(seen["received"]) and questions.bitrate_bps >= 24_000)
                bad()
                await _until(lambda: questions.bitrate_bps == 8_000)
                well()
                await _until(lambda: questions.bitrate_bps > 8_000)
                runtime.voice.press()
                await _until(lambda: questions.delivered == 1)
            finally:
                talking.cancel()
                await asyncio.gather(talking, return_exceptions=True)
            return seen, runtime.status().bitrates

    async def both() -> Any:
        with server(tmp_path) as running_server:
            return await asyncio.gather(*(speak(transport, running_server) for transport in ("websocket", "quic")))

    found = asyncio.run(both())
    for seen, used in found:
        assert len(seen["coded"]) > 50 and seen["received"] <= seen["coded"]
        assert used["least_bps"] == 8_000 < used["mean_bps"] < used["most_bps"] and used["changes"] >= 3
    assert found[0][0]["received"] == found[0][0]["coded"]  # over a WebSocket nothing is lost


async def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.01)


@pytest.mark.realtime
def test_an_echo_over_20_ms_each_way_is_heard_soon_after_it_is_said(tmp_path: Path) -> None:
    """The command's own measurement; its bounds are those of a busy machine, docs/dialogue.md has the figures. The way
    back has 40 ms more, which shows there and not on the way up: no delay is shorter than the link's own."""
    out = tmp_path / "latency.json"
    assert main(["measure-latency", "--iterations", "20", "--down-ms", "60", "--output", str(out)]) == 0
    found = json.loads(out.read_text())
    stages = {name: values["p50"] for name, values in found["stages"].items()}
    assert 150.0 < found["total"]["p50"] < 440.0 and found["frames"] >= 50
    assert stages["uplink"] >= 20.0 and stages["downlink"] >= 59.0 and found["buffer"]["lost"] == 0
    assert 20.0 < stages["downlink"] - stages["uplink"] < 60.0
    whole = sum(values["mean"] for values in found["stages"].values())
    assert found["total"]["mean"] == pytest.approx(whole, abs=0.1) and stages["capture"] >= 20.0
    assert found["socket_bytes_s"] < 5_000 and found["command"].startswith("streamsplit measure-latency")


def _free_port() -> int:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
