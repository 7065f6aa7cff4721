"""A voice client: a microphone or a file, the talker, a connection to the server, a loudspeaker or a file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from streamsplit import __version__
from streamsplit.audio.files import read_audio
from streamsplit.edge.blocks import Source
from streamsplit.edge.client import EdgeClient
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.speaker import Sink
from streamsplit.edge.talker import Talker, TalkEvent
from streamsplit.splitting.link import LinkEstimator
from streamsplit.wire.events import Acked
from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Error, Hello, Message, Welcome
from streamsplit.wire.types import PROTOCOL_VERSION, FrameFlag, FrameType

log = logging.getLogger(__name__)
_TICK_S = 0.02
_DRAIN_S = 10.0  # at the end, for the last answer
_ABOUT_SPEECH = frozenset({"bad_dialogue", "no_answer"})


class TalkStatus(NamedTuple):
    """One look at a voice client."""

    state: str
    connected: bool
    rtt_ms: float
    bitrate_bps: int
    target_ms: float  # of the jitter buffer
    waiting: int  # questions that are kept
    counts: dict[str, int]
    frames: dict[str, int]  # of answers, see codec.jitter.JitterCounts
    underruns: int
    problem: str


class TalkRuntime:
    """Runs until its source ends, `duration_s` is over or `stop`; then waits a little for the last answer."""

    def __init__(
        self,
        settings: EdgeSettings,
        source: Source,
        sink: Sink,
        *,
        watch: Callable[[TalkEvent], None] = lambda event: None,
    ) -> None:
        """`watch` sees every event, in the event loop. Raises AudioError for an `offline_sound` that is none, and as
        `Talker`."""
        talk = settings.talk
        sound = read_audio(talk.offline_sound) if talk.offline_sound else None
        self.settings, self.source, self.sink = settings, source, sink
        self.talker = Talker(talk, offline_sound=sound, lossy=settings.server.lossy)
        self.queue = OfflineQueue(settings.queue_path, settings.queue)  # windows of another run go up as well
        self.link = LinkEstimator(settings.splitting.link)
        self.problem = ""
        self.client: EdgeClient | None = None
        self._watch = watch
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """Ends the run in good order; safe from any thread and from a signal handler."""
        self._stop.set()
        self.source.close()

    def press(self) -> None:
        """Push-to-talk: begins a question, or ends the one that is being asked."""
        asking = self.talker.questions.asking
        (self.talker.release if asking else self.talker.press)(_now_ms())

    async def run(self, duration_s: float | None = None) -> TalkStatus:
        """Raises ConnectionRefused when the server turns the device away for good, AudioError when the source fails."""
        self._loop = asyncio.get_running_loop()
        self.client = EdgeClient(self.settings.server, self.queue, self, self.link, dialogue=True)
        listener = threading.Thread(target=self._listen, name="microphone", daemon=True)
        connection = asyncio.create_task(self.client.run())
        deadline = None if duration_s is None else time.monotonic() + duration_s
        try:
            self.sink.start(self.talker.play, self.talker.frame)
            listener.start()
            drained = 0.0
            while not connection.done():
                await asyncio.sleep(_TICK_S)
                self._step()
                if deadline is not None and time.monotonic() >= deadline:
                    self.stop()
                if self._ended.is_set() or self._stop.is_set():
                    drained = drained or time.monotonic()
                    self.talker.release(_now_ms())
                    quiet = self.talker.state.name in ("IDLE", "ERROR") and not self._owed
                    if quiet or time.monotonic() - drained > _DRAIN_S:
                        break
            if connection.done():
                connection.result()
            else:
                await self.client.finish("done")
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(connection), 2.0)
        finally:
            self.stop()
            connection.cancel()
            await asyncio.gather(connection, return_exceptions=True)
            await asyncio.to_thread(self.sink.close)
            await asyncio.to_thread(listener.join, 2.0)
            self._report()
            self.queue.close()
        if self._error is not None:
            raise self._error
        return self.status()

    @property
    def _owed(self) -> bool:
        """Whether questions wait that the link could take."""
        return self.client is not None and self.client.is_open and self.talker.questions.waiting > 0

    def status(self) -> TalkStatus:
        """One look; safe from any thread."""
        talker, estimate = self.talker, self.link.estimate(_now_ms())
        asked = {name: getattr(talker.questions, name) for name in ("delivered", "forgotten", "payload_bytes")}
        counts = {**vars(talker.counts), **asked}
        return TalkStatus(
            talker.state.name, self.client is not None and self.client.is_open, estimate.rtt_ms,
            talker.questions.bitrate_bps, talker.answer.jitter.target_ms, talker.questions.waiting, counts,
            dict(vars(talker.answer.jitter.counts)), self.sink.underruns, self.problem,
        )  # fmt: skip

    # -- threads -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            for block in self.source:
                if self._stop.is_set():
                    break
                self.talker.hear(block.samples, _now_ms())
                self._in_loop(self._send)
        except Exception as error:  # an unplugged microphone: the dialogue says so, and the run ends with it
            self._error = error
            self.talker.fail(f"microphone: {error}", _now_ms())
        finally:
            self._ended.set()

    def _in_loop(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to send for
            if self._loop is not None:
                self._loop.call_soon_threadsafe(work)

    # -- event loop ----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        now_ms = _now_ms()
        self.talker.tick(now_ms)
        estimate = self.link.estimate(now_ms)
        self.talker.rate(estimate.bandwidth_bps, estimate.rtt_ms)
        self._send()
        self._report()

    def _send(self) -> None:
        client = self.client
        if client is None or not client.is_open:
            return
        for out in self.talker.outgoing(_now_ms()):
            client.say(out.payload, out.sequence, out.captured_ms, final=out.final)

    def _report(self) -> None:
        for event in self.talker.events():
            if event.kind == "error":
                self.problem = event.value
                log.warning("%s: %s", self.settings.device.id, event.value)
            self._watch(event)

    # -- for the client ------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """The greeting."""
        settings, queue = self.settings, self.queue
        return Hello(
            protocol=PROTOCOL_VERSION, device_id=settings.device.id, token=settings.server.secret, epoch=queue.epoch,
            oldest_sequence=queue.oldest_sequence, next_sequence=queue.next_sequence, results_from=queue.results_from,
            sample_rate_hz=settings.audio.sample_rate, mel_bands=settings.audio.n_mels,
            window_frames=settings.audio.window_frames, stride_frames=settings.audio.stride_frames,
            device_class=settings.device.type, software=f"streamsplit {__version__}",
        )  # fmt: skip

    async def opened(self, welcome: Welcome) -> None:
        """Connected."""
        self.problem = "" if self.problem.startswith("no link") else self.problem
        self.talker.link(True, _now_ms())
        self._send()

    def closed(self, reason: str) -> None:
        """The connection is gone, or could not be made."""
        self.problem = f"no link: {reason}"
        self.talker.link(False, _now_ms())
        self._report()

    async def acked(self, event: Acked) -> None:
        """Windows of another run are at the server."""

    def next_chunk(self) -> tuple[bytes, bool] | None:
        """No weights go up from here."""
        return None

    async def message(self, message: Message) -> None:
        """Errors count; what else the server says is for devices that listen."""
        if not isinstance(message, Error):
            return
        if message.code in _ABOUT_SPEECH or message.code == "unsupported":
            said = "the server answers nobody; set dialogue.responder there" if message.code == "unsupported" else ""
            self.talker.refused(said or f"server: {message.detail}", _now_ms(), message.sequence)
        else:
            self.problem = f"server: {message.code}: {message.detail}"

    async def media(self, frame: Frame) -> None:
        """An answer."""
        if frame.type is FrameType.DIALOGUE:
            self.talker.take(frame.payload, bool(frame.flags & FrameFlag.FINAL), _now_ms())
            self._report()


def _now_ms() -> float:
    return 1000.0 * time.monotonic()
