"""Devices and the server over real sockets: answers, order, resuming, restarts, and everything that can be wrong."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from server_harness import (
    RunningServer,
    TestDevice,
    device,
    embedding_window,
    make_settings,
    media,
    running,
    unit,
)
from websockets.asyncio.client import connect

from streamsplit.audio.windows import WindowStream
from streamsplit.edge.payload import pack_input
from streamsplit.encoders.crossing import pack_crossing
from streamsplit.encoders.factory import make_encoder
from streamsplit.errors import PortInUseError
from streamsplit.server.run import listen
from streamsplit.weights.revision import encoder_weights, revision_of, revision_prefix
from streamsplit.wire.media import Encoding, Resolution
from streamsplit.wire.messages import Gmm, Stats
from streamsplit.wire.types import FrameType

ENCODER = make_encoder()
REVISION = revision_of(encoder_weights(ENCODER))
PREFIX = revision_prefix(REVISION)
EPOCHS = itertools.count(1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for the tests that need nothing special of it."""
    settings = make_settings(tmp_path_factory.mktemp("server"), auth={"device_tokens": {"locked": "right"}})
    with running(settings) as server:
        yield server


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise on the grid of 16-bit audio."""
    audio = 0.2 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds)).clip(-4, 4)
    return (np.rint(audio * 32768) / 32768).astype(np.float32)


def device_row(server: RunningServer, name: str) -> dict[str, Any]:
    """The device's part of /api/status."""
    return next(row for row in server.status()["devices"] if row["device"] == name)


def embedding_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f2").astype(np.float32)


# -- what comes back ---------------------------------------------------------------------------------------------


def test_every_kind_of_cut_gives_the_same_embedding_as_the_whole_encoder(server: RunningServer) -> None:
    """The server completes each cut; oracle: the encoder run in one piece on the device's own window."""
    windows = WindowStream().push(sound(6.0), Resolution.FULL)
    with torch.no_grad():
        expected = ENCODER(torch.from_numpy(np.stack([w.features for w in windows]))).numpy()

    async def main() -> None:
        async with device(server.port, "cuts", want_embedding=True) as d:
            cuts: list[tuple[int, Encoding]] = [
                (0, Encoding.PCM16), (0, Encoding.PCM16), (0, Encoding.LOGMEL_FP16), (3, Encoding.FP32),
                (6, Encoding.FP16), (9, Encoding.INT8), (13, Encoding.EMBEDDING_FP16), (0, Encoding.PCM16),
            ]  # fmt: skip
            for number, (block, encoding) in enumerate(cuts):
                window = windows[number]
                if block == 0:
                    packed = pack_input(window, encoding, 50 if number in (1, 2) else 100)
                    payload = media(window.index, 0, 0, encoding, packed.payload, packed.new_frames)
                    await d.send(payload, packed.frame_type)
                elif block < 13:
                    with torch.no_grad():
                        crossing = ENCODER.forward_to(torch.from_numpy(window.features)[None], block)
                    payload = media(window.index, PREFIX, block, encoding, pack_crossing(crossing, encoding))
                    await d.send(payload, FrameType.FEATURES)
                else:
                    await d.send(embedding_window(window.index, PREFIX, expected[number]))
            await d.until(lambda: len(d.results) == len(cuts))
            for result, (_, encoding), z in zip(
                sorted(d.results, key=lambda r: r.sequence), cuts, expected, strict=False
            ):
                error = np.abs(embedding_of(result.embedding) - z).max()
                assert error < (0.03 if encoding is Encoding.INT8 else 2e-3), (encoding, error)
            await d.until(lambda: d.acked == len(cuts) and not d.queue)

    asyncio.run(main())
    row = device_row(server, "cuts")
    assert row["windows_by_cut"]["0:pcm16"] == 3 and sum(row["windows_by_cut"].values()) == 8


def test_reduced_windows_are_completed_too(server: RunningServer) -> None:
    windows = WindowStream().push(sound(3.0), Resolution.REDUCED)

    async def main() -> None:
        async with device(server.port, "reduced", want_embedding=True) as d:
            for number, window in enumerate(windows):
                new = 100 if number == 0 else 50
                packed = pack_input(window, Encoding.PCM16, new)
                await d.send(media(window.index, 0, 0, Encoding.PCM16, packed.payload, new, 1), packed.frame_type)
            await d.until(lambda: len(d.results) == len(windows))
            with torch.no_grad():
                expected = ENCODER(torch.from_numpy(np.stack([w.features for w in windows]))).numpy()
            for result, z in zip(d.results, expected, strict=True):
                np.testing.assert_allclose(embedding_of(result.embedding), z, atol=2e-3)

    asyncio.run(main())


def test_results_echo_the_window_and_the_capture_time(server: RunningServer) -> None:
    async def main() -> None:
        async with device(server.port, "echo") as d:
            for window in (4, 9, 11):
                await d.send(embedding_window(window, PREFIX))
            await d.until(lambda: len(d.results) == 3)
            assert [(r.sequence, r.window, r.capture_ms, r.embedding) for r in d.results] == [
                (1, 4, 500, b""), (2, 9, 1000, b""), (3, 11, 1500, b"")]  # fmt: skip

    asyncio.run(main())


def test_the_mixture_comes_down_after_every_hundred_windows_and_fits_in_35_kb(server: RunningServer) -> None:
    async def main() -> None:
        async with device(server.port, "gmm") as d:
            for window in range(230):
                await d.send(embedding_window(window, PREFIX))
            await d.until(lambda: len(d.results) == 230)
            gmms = [m for m in d.messages if isinstance(m, Gmm)]
            assert 1 <= len(gmms) <= 2  # latest wins: the second may have replaced the first
            assert gmms[-1].revision == REVISION and len(gmms[-1].data) == 2 * 64 * 257 < 35_000

    asyncio.run(main())


def test_the_status_counts_bytes_of_the_socket_and_shows_the_last_stats(server: RunningServer) -> None:
    async def main() -> int:
        async with device(server.port, "counted") as d:
            for window in range(5):
                await d.send(embedding_window(window, PREFIX))
            await d.say(Stats(cpu=0.25, cut="13:embedding-fp16", queue_windows=3, collapsed=True))
            await d.until(lambda: len(d.results) == 5 and d.acked == 5)
            while device_row(server, "counted")["stats"] is None:
                await asyncio.sleep(0.01)
            assert "streamsplit_devices_collapsed 1.0" in server.get("/metrics").text
            return d.session.sent_bytes

    sent = asyncio.run(main())
    row = device_row(server, "counted")
    assert row["stats"]["cpu"] == 0.25 and row["stats"]["uncertainty"] is None and row["stats"]["queue_windows"] == 3
    assert row["stats"]["collapsed"] is True
    frames = 5 + 1 + 1
    assert sent + 6 * frames <= row["uplink_bytes"] <= sent + 14 * (frames + 5)
    assert row["windows"] == 5 and row["latency_ms"]["p50"] > 0
    page = server.get("/")
    assert "<title>StreamSplit</title>" in page.text and not re.search(r"(src|href)=.https?://", page.text)
    assert 'streamsplit_windows_total{cut="13:embedding-fp16"}' in server.get("/metrics").text


def test_recent_windows_come_with_their_embeddings(server: RunningServer) -> None:
    import base64

    async def main() -> None:
        async with device(server.port, "asked") as d:
            for window in range(3):
                await d.send(embedding_window(window, PREFIX, unit(40 + window)))
            await d.until(lambda: len(d.results) == 3)

    asyncio.run(main())
    answer = server.get("/api/windows", params={"device": "asked", "embeddings": "1", "limit": "2"}).json()
    assert answer["dim"] == 128 and [w["window"] for w in answer["windows"]] == [1, 2]
    np.testing.assert_allclose(embedding_of(base64.b64decode(answer["windows"][1]["embedding"])), unit(42), atol=1e-3)
    assert server.get("/api/windows", params={"limit": "0"}).status_code == 400


def test_the_current_weights_can_be_downloaded(server: RunningServer) -> None:
    from safetensors.numpy import load

    answer = server.get("/api/revision")
    assert answer.headers["X-Revision"] == REVISION == revision_of(load(answer.content))
    assert server.get("/api/revision", params={"revision": "../../etc/passwd"}).status_code == 404


def test_a_label_given_to_windows_names_later_ones(server: RunningServer) -> None:
    import httpx

    async def main(windows: list[int]) -> list[str]:
        async with device(server.port, "labelled") as d:
            for window in windows:
                await d.send(embedding_window(window, PREFIX, unit(77 + window % 2)))
            await d.until(lambda: len(d.results) == len(windows))
            return [r.label for r in d.results]

    asyncio.run(main([0, 1]))
    for sequence, label in ((1, "rain"), (2, "dog")):
        body = {"label": label, "windows": [{"device": "labelled", "epoch": 7, "sequence": sequence}]}
        assert httpx.post(server.url + "/api/labels", json=body).status_code == 200
    assert httpx.post(server.url + "/api/labels", content=b"{").status_code == 400

    async def later() -> list[str]:
        async with device(server.port, "later") as d:
            for window in (0, 1):
                await d.send(embedding_window(window, PREFIX, unit(77 + window)))
            await d.until(lambda: len(d.results) == 2)
            return [r.label for r in sorted(d.results, key=lambda r: r.sequence)]

    assert asyncio.run(later()) == ["rain", "dog"]
    assert server.get("/api/labels").json() == {"labels": ["dog", "rain"]}


# -- lost connections and restarts -------------------------------------------------------------------------------


def test_after_a_broken_link_the_session_resumes_and_nothing_is_lost_or_counted_twice(server: RunningServer) -> None:
    async def main() -> None:
        d = await TestDevice(server.port, "broken").connect()
        for window in range(60):
            await d.send(embedding_window(window, PREFIX))
            if window % 20 == 13:
                await d.cut()
                await d.connect()
                assert d.opened is not None and d.opened.welcome.resumed
        await d.until(lambda: len(d.results) == 60 and d.acked == 60)
        assert sorted(r.sequence for r in d.results) == list(range(1, 61))
        await d.close()

    asyncio.run(main())
    assert device_row(server, "broken")["windows"] == 60


def test_a_device_that_comes_back_without_its_session_gets_the_results_it_missed(server: RunningServer) -> None:
    async def main() -> None:
        first = await TestDevice(server.port, "amnesia").connect()
        for window in range(10):
            await first.send(embedding_window(window, PREFIX))
        await first.until(lambda: first.acked == 10)
        await first.cut()
        second = TestDevice(server.port, "amnesia", results_from=4)
        second.next = 11
        await second.connect()
        assert second.opened is not None and not second.opened.welcome.resumed
        assert second.opened.feed_from == 11
        await second.until(lambda: len(second.results) == 7)
        assert [r.sequence for r in second.results] == list(range(4, 11))
        await second.close()

    asyncio.run(main())


def test_a_second_connection_takes_over_from_the_first(server: RunningServer) -> None:
    async def main() -> None:
        first = await TestDevice(server.port, "twice").connect()
        async with device(server.port, "twice") as second:
            await first.until(lambda: first.closed is not None)
            assert first.closed is not None and first.closed.code == "replaced"
            await second.send(embedding_window(0, PREFIX))
            await second.until(lambda: len(second.results) == 1)

    asyncio.run(main())
    assert device_row(server, "twice")["connections"] == 2


def test_a_restarted_server_goes_on_where_it_ended_in_the_middle_of_a_stream_of_pieces(tmp_path: Path) -> None:
    windows = WindowStream().push(sound(6.0, seed=2), Resolution.FULL)
    with torch.no_grad():
        expected = ENCODER(torch.from_numpy(np.stack([w.features for w in windows]))).numpy()

    async def feed(d: TestDevice, part: list[Any]) -> None:
        for window in part:
            new = 100 if window.index == 0 else 50
            packed = pack_input(window, Encoding.PCM16, new)
            await d.send(media(window.index, 0, 0, Encoding.PCM16, packed.payload, new), packed.frame_type)

    async def first(port: int) -> None:
        async with device(port, want_embedding=True) as d:
            await feed(d, windows[:5])
            await d.until(lambda: d.acked == 5)

    async def second(port: int) -> None:
        d = TestDevice(port, want_embedding=True)
        d.next = 6
        await d.connect()
        assert d.opened is not None and d.opened.welcome.received_through == 5
        await feed(d, windows[5:])
        await d.until(lambda: len(d.results) == len(windows) - 5)
        for result in d.results:
            np.testing.assert_allclose(embedding_of(result.embedding), expected[result.window], atol=2e-3)
        await d.close()

    settings = make_settings(tmp_path)
    with running(settings) as server:
        asyncio.run(first(server.port))
    with running(settings) as server:
        asyncio.run(second(server.port))
        totals = server.status()["totals"]
        assert (totals["stored_windows"], totals["stored_rejected"]) == (len(windows), 0)


# -- what can be wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"device_id": "locked", "token": "wrong"}, "bad_token", "token of device 'locked'"),
        ({"sample_rate_hz": 44100}, "bad_settings", "sample_rate_hz: got 44100, expected 16000"),
        ({"mel_bands": 64}, "bad_settings", "mel_bands: got 64, expected 128"),
        ({"stride_frames": 25}, "bad_settings", "stride_frames: got 25, expected 50"),
        ({"codec": "0badc0de"}, "bad_settings", "codec: got 0badc0de, expected one of "),
        ({"encoder": "resnet18"}, "bad_settings", "encoder: got 'resnet18', expected 'mobilenet'"),
    ],
)
def test_a_device_that_does_not_fit_is_told_why_and_not_to_try_again(
    server: RunningServer, changes: dict[str, Any], code: str, detail: str
) -> None:
    async def main() -> None:
        d = TestDevice(server.port, **changes)
        await d.connect()
        assert d.closed is not None and d.closed.code == code and detail in d.closed.reason
        assert not d.closed.retry
        await d.close()

    asyncio.run(main())


def test_the_right_token_opens(server: RunningServer) -> None:
    async def main() -> None:
        async with device(server.port, "locked", token="right") as d:
            assert d.opened is not None

    asyncio.run(main())


def test_a_device_with_unknown_weights_is_told_to_fetch(server: RunningServer) -> None:
    from streamsplit.wire.messages import Revision

    async def main() -> None:
        async with device(server.port, "stale", revision="ab" * 32) as d:
            await d.until(lambda: any(isinstance(m, Revision) for m in d.messages))
            offer = next(m for m in d.messages if isinstance(m, Revision))
            assert (offer.revision, offer.base, offer.kind) == (REVISION, "", "full")
            assert [e.code for e in d.errors] == ["unknown_revision"]
            await d.send(embedding_window(0, 0xABABABAB))
            await d.until(lambda: len(d.errors) == 2 and d.acked == 1)
            assert (d.errors[1].code, d.errors[1].sequence, d.errors[1].fatal) == ("unknown_revision", 1, False)

    asyncio.run(main())


def nan_activations() -> bytes:
    with torch.no_grad():
        crossing = ENCODER.forward_to(torch.zeros(1, 128, 100), 6)
    data = bytearray(pack_crossing(crossing, Encoding.FP32))
    data[50:54] = np.float32(np.nan).tobytes()
    return media(0, PREFIX, 6, Encoding.FP32, bytes(data))


def other_shape() -> bytes:
    with torch.no_grad():
        crossing = ENCODER.forward_to(torch.zeros(1, 128, 60), 6)
    return media(0, PREFIX, 6, Encoding.FP16, pack_crossing(crossing, Encoding.FP16))


def other_block() -> bytes:
    with torch.no_grad():
        crossing = ENCODER.forward_to(torch.zeros(1, 128, 100), 2)
    return media(0, PREFIX, 6, Encoding.FP16, pack_crossing(crossing, Encoding.FP16))


@pytest.mark.parametrize(
    ("payload", "kind", "detail"),
    [
        (nan_activations(), FrameType.FEATURES, "NaN"),
        (other_shape(), FrameType.FEATURES, "activations"),
        (other_block(), FrameType.FEATURES, "activations"),
        (media(0, PREFIX, 13, Encoding.EMBEDDING_FP16, b"\x20\x00\x80\x00"), FrameType.EMBEDDING, "128 values"),
        (embedding_window(0, PREFIX, 3 * unit(1)), FrameType.EMBEDDING, "norm 3"),
        (media(0, PREFIX, 5, Encoding.PCM16, b""), FrameType.AUDIO, "pcm16"),
        (media(0, PREFIX, 99, Encoding.FP16, b""), FrameType.FEATURES, "block 0..13"),
        (media(0, 0, 0, Encoding.PCM16, b"\0\0" * 99, 100), FrameType.AUDIO, "99 samples"),
        (b"short", FrameType.FEATURES, "5 bytes"),
        (embedding_window(0, PREFIX), FrameType.GRADIENT, "gradients"),
    ],
)
def test_a_window_that_cannot_be_completed_is_refused_alone(
    server: RunningServer, payload: bytes, kind: FrameType, detail: str
) -> None:
    async def main() -> None:
        d = TestDevice(server.port, "clumsy", epoch=next(EPOCHS))
        await d.connect()
        await d.send(embedding_window(0, PREFIX))
        await d.send(payload, kind)
        await d.send(embedding_window(2, PREFIX))
        await d.until(lambda: len(d.results) == 2 and len(d.errors) == 1 and d.acked == 3)
        error = d.errors[0]
        assert (error.code, error.sequence, error.fatal) == ("bad_window", 2, False)
        assert detail in error.detail
        assert sorted(r.sequence for r in d.results) == [1, 3]
        await d.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x01", "truncated"),
        (b"\x02\x01\x00\x00" + bytes(12), "bad_version"),
        (b"\x01\xc8\x00\x00" + bytes(12), "unknown_type"),
        (b"\x01\x01\x00\x00" + bytes(8) + b"\xff\xff\xff\x7f", "frame_too_large"),
        (b"\x01\x02\x00\x00" + bytes(12), "unexpected"),
        ("hello", "bad_message"),
    ],
)
def test_a_broken_frame_ends_that_connection_with_a_clear_error_and_no_other(
    server: RunningServer, data: bytes | str, code: str
) -> None:
    from streamsplit.wire.frame import decode_frame
    from streamsplit.wire.messages import Error, decode_message

    async def main() -> None:
        async with device(server.port, "bystander", epoch=next(EPOCHS)) as other:
            async with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as stranger:
                await stranger.send(data)
                frame = decode_frame(await asyncio.wait_for(stranger.recv(decode=False), 10))
                error = decode_message(frame.type, frame.payload)
                assert isinstance(error, Error) and error.fatal
                assert error.code == code or (code == "unexpected" and error.code in ("unexpected", "bad_message"))
            await other.send(embedding_window(0, PREFIX))
            await other.until(lambda: len(other.results) == 1)

    asyncio.run(main())


def test_a_message_larger_than_any_frame_ends_that_connection_only(server: RunningServer) -> None:
    from websockets.exceptions import ConnectionClosed

    async def main() -> None:
        async with connect(f"ws://127.0.0.1:{server.port}/v1/stream", max_size=None, compression=None) as stranger:
            with pytest.raises(ConnectionClosed):
                await stranger.send(bytes(4 << 20))
                while True:
                    await asyncio.wait_for(stranger.recv(), 10)
        assert server.get("/healthz").text == "ok\n"

    asyncio.run(main())


def test_a_full_server_turns_further_devices_away_but_lets_known_ones_back_in(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        async with device(port, "one"):
            d = await TestDevice(port, "two").connect()
            assert d.closed is not None and d.closed.code == "server_full" and d.closed.retry
            await d.close()
            async with device(port, "one") as again:
                assert again.opened is not None

    with running(make_settings(tmp_path, limits={"max_devices": 1})) as server:
        asyncio.run(main(server.port))


def test_a_device_that_sends_too_fast_is_told_and_slowed_down(tmp_path: Path) -> None:
    import time

    from streamsplit.wire.messages import Throttle

    async def main(port: int) -> float:
        async with device(port) as d:
            started = time.monotonic()
            for window in range(90):
                await d.send(embedding_window(window, PREFIX))
            await d.until(lambda: len(d.results) == 90)
            assert any(isinstance(m, Throttle) and m.min_interval_ms >= 20 for m in d.messages)
            return time.monotonic() - started

    with running(make_settings(tmp_path, limits={"max_windows_per_s": 30.0})) as server:
        assert asyncio.run(main(server.port)) > 0.8  # 60 at once, the rest at 30 a second


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} on 127.0.0.1 is taken"):
            listen("127.0.0.1", port)


def test_the_api_asks_for_its_token_and_the_page_does_not(tmp_path: Path) -> None:
    with running(make_settings(tmp_path, auth={"api_token": "s3cret"})) as server:
        assert server.get("/api/status").status_code == 401
        assert server.get("/metrics").status_code == 401
        assert server.get("/api/status", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert server.get("/").status_code == 200
        assert server.get("/readyz").status_code == 200
