"""How late an echo is heard, stage by stage: a voice client and a server in processes of their own, a shaped link."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamsplit.edge.blocks import RATE_HZ, AudioBlock, Pacer, SourceInfo
from streamsplit.edge.settings import EdgeSettings, ServerLinkSettings
from streamsplit.edge.speaker import PacedSink
from streamsplit.edge.talk import TalkRuntime
from streamsplit.edge.voice import now_ms
from streamsplit.errors import StreamSplitError
from streamsplit.evaluation.echo_server import echo_server
from streamsplit.evaluation.provenance import machine, revision_of_code
from streamsplit.evaluation.talk_stages import FrameWatch, summary
from streamsplit.network.bandwidth import constant_trace
from streamsplit.network.packets import PacketLinkSettings
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.udp_shaper import LossyProxy

_LINK_BPS = 10e6
_WARM_UP = 250  # frames: what was said before the link was there has been caught up with


class _Buzz:
    """A voice that does not stop, in blocks of a frame."""

    info = SourceInfo("synthetic", "buzz", False, ())

    def __init__(self, frame: int, watch: FrameWatch) -> None:
        self._frame, self._pacer, self._watch = frame, Pacer(1.0), watch

    def __iter__(self) -> Iterator[AudioBlock]:
        at, began_ms = 0, now_ms()
        while self._pacer.wait((at + self._frame) * 1000.0 / RATE_HZ):
            t = np.arange(at, at + self._frame) / RATE_HZ
            tone = np.sin(2 * np.pi * 140 * t) + 0.5 * np.sin(2 * np.pi * 280 * t)
            samples = (0.15 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)
            self._watch.begins(began_ms + at * 1000.0 / RATE_HZ)
            yield AudioBlock(samples, at * 1000.0 / RATE_HZ, None, None)
            at += self._frame

    def close(self) -> None:
        """Ends it."""
        self._pacer.close()


class _Heard(PacedSink):
    """Nobody listens; when what is played is noted."""

    def __init__(self, watch: FrameWatch) -> None:
        super().__init__()
        self._watch = watch

    def take(self, samples: NDArray[np.float32]) -> None:
        """A part of a frame."""
        self._watch.plays()


def measure(
    settings: EdgeSettings,
    iterations: int,
    *,
    url: str | None = None,
    transport: str = "websocket",
    one_way_ms: float = 20.0,
    down_ms: float | None = None,
    jitter_ms: float = 0.0,
    loss: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Latencies of `iterations` messages of an echo over a link of so many milliseconds each way, or `down_ms` on the
    way back; with `url`, of a server that is there already, over whatever link leads to it.

    `transport` is 'websocket' or 'quic'. Over QUIC a share `loss` of packets is lost either way, in bursts of mean 2; a
    WebSocket's link has none. Raises StreamSplitError where the echo does not come back.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device = settings.device.replace(state_dir=str(folder / "device"))
        talk = settings.talk.replace(
            activity=settings.talk.activity.replace(kind="push", lead_ms=0.0), longest_s=3_600.0
        )
        settings = settings.replace(device=device, talk=talk)
        if url is not None:
            there = settings.server.replace(url=url)
            return _run(there, settings, iterations, progress, one_clock=False) | {"link": "as it is"}
        down_ms = one_way_ms if down_ms is None else down_ms
        with (
            echo_server(folder, transport) as echo,
            shaped(echo.port, transport, (one_way_ms, down_ms), jitter_ms, loss, seed) as proxy,
        ):
            server = reached(settings.server, folder, transport, proxy)
            found = _run(server, settings, iterations, progress, one_clock=True, aside_s=lambda: proxy.cpu_s)
    link = {
        "one_way_ms": one_way_ms, "down_ms": down_ms, "jitter_ms": jitter_ms, "mbit_s": _LINK_BPS / 1e6, "loss": loss,
    }  # fmt: skip
    return found | {"transport": transport, "link": link, "seed": seed}


@contextmanager
def shaped(
    port: int, transport: str, one_way_ms: tuple[float, float], jitter_ms: float, loss: float, seed: int
) -> Iterator[LossyProxy | ShapedProxy]:
    """A link to the server on this port (TCP and UDP); `one_way_ms` up and down, the ways alike but for that."""
    proxy: LossyProxy | ShapedProxy
    if transport == "quic":
        up, down = (
            PacketLinkSettings(one_way_ms=delay_ms, jitter_ms=jitter_ms, loss=loss, rate_bps=_LINK_BPS)
            for delay_ms in one_way_ms
        )
        proxy = LossyProxy(("127.0.0.1", port), up, down, seed=seed)
    else:
        uplink, downlink = (constant_trace(_LINK_BPS, 2 * delay_ms) for delay_ms in one_way_ms)
        proxy = ShapedProxy(("127.0.0.1", port), uplink, downlink, jitter_ms=jitter_ms, seed=seed)
    proxy.start_in_thread()
    try:
        yield proxy
    finally:
        proxy.stop_thread()


def reached(
    settings: ServerLinkSettings, folder: Path, transport: str, proxy: LossyProxy | ShapedProxy
) -> ServerLinkSettings:
    """How a device reaches the server of `echo_server` through a link."""
    if transport == "websocket":
        return settings.replace(url=f"ws://127.0.0.1:{proxy.address[1]}/v1/stream")
    from streamsplit.server.certificate import certificate_files

    fingerprint = certificate_files("", "", folder / "server").fingerprint
    return settings.replace(url=f"quic://127.0.0.1:{proxy.address[1]}", tls_fingerprint=fingerprint)


def _run(
    server: ServerLinkSettings,
    settings: EdgeSettings,
    iterations: int,
    progress: Callable[[int, int], None],
    *,
    one_clock: bool,
    aside_s: Callable[[], float] = lambda: 0.0,
) -> dict[str, Any]:
    """`one_clock`: the server runs on this machine; `aside_s`: processor time of this process so far that is none of
    the client's."""
    settings = settings.replace(server=server)
    watch = FrameWatch(now_ms)
    runtime = TalkRuntime(settings, _Buzz(settings.talk.opus.frame_samples, watch), _Heard(watch))
    runtime.talker.watch(watch)
    talk = runtime.talker.settings
    wanted = iterations * talk.frames_per_message + _WARM_UP

    async def until_heard() -> None:
        running = asyncio.create_task(runtime.run(wanted * talk.opus.frame_ms / 1000.0 + 30.0))
        while not running.done() and not runtime.status().connected:
            await asyncio.sleep(0.01)
        runtime.voice.press()  # only now: what is said before the link is there is not live
        while not running.done() and watch.played < wanted:
            progress(watch.played // talk.frames_per_message, iterations)
            await asyncio.sleep(0.1)
        runtime.stop()
        await running

    cpu_s, wall_s = time.process_time() - aside_s(), time.monotonic()
    asyncio.run(until_heard())
    cpu_s, wall_s = time.process_time() - aside_s() - cpu_s, time.monotonic() - wall_s
    moments = watch.moments(after=_WARM_UP)
    if len(moments.played) < max(1, (wanted - _WARM_UP) // 2):
        raise StreamSplitError(
            f"got {len(moments.played)} frames back of {wanted}: {runtime.voice.problem or 'is there an echo?'}"
        )
    return summary(moments, runtime.talker.questions.lookahead_ms, one_clock=one_clock) | {
        "messages": iterations, "message_ms": talk.frames_per_message * talk.opus.frame_ms, "codec": talk.codec,
        "bitrates": runtime.talker.questions.bitrates._asdict(),
        "payload_bytes_s": round(runtime.talker.questions.payload_bytes / wall_s, 1),
        "socket_bytes_s": round((runtime.client.bytes.up if runtime.client else 0) / wall_s, 1),
        "link_bytes_s": _each(runtime.client.bytes.packet_bytes if runtime.client else (0, 0), wall_s),
        "client_cpu_share": round(cpu_s / wall_s, 4), "buffer": dict(vars(runtime.talker.answer.jitter.counts)),
        "underruns": runtime.voice.sink.underruns, "code": revision_of_code(), "machine": machine(),
    }  # fmt: skip


def _each(sizes: tuple[int, int], wall_s: float) -> dict[str, float]:
    """Up and down a second, with headers of IP and TCP or UDP."""
    return {name: round(size / wall_s, 1) for name, size in zip(("up", "down"), sizes, strict=True)}
