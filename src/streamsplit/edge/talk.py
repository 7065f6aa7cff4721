"""A voice client: a microphone or a file, a voice, a connection to the server; no encoder, no windows."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from streamsplit import __version__
from streamsplit.edge.blocks import Source
from streamsplit.edge.client import EdgeClient
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.speaker import Sink
from streamsplit.edge.talker import TalkEvent
from streamsplit.edge.voice import STEP_S, TalkStatus, Voice, now_ms
from streamsplit.splitting.link import LinkEstimator
from streamsplit.wire.events import Acked
from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Error, Hello, Message, Welcome
from streamsplit.wire.types import PROTOCOL_VERSION

_DRAIN_S = 10.0  # at the end, for the last answer


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
        """Raises as `Voice`."""
        self.settings, self.source = settings, source
        self.voice = Voice(settings, sink, watch=watch)
        self.voice.mind(source)
        self.talker = self.voice.talker
        self.queue = OfflineQueue(settings.queue_path, settings.queue)  # windows of another run go up as well
        self.link = LinkEstimator(settings.splitting.link)
        self.client: EdgeClient | None = None
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def stop(self) -> None:
        """Ends the run in good order; safe from any thread and from a signal handler."""
        self._stop.set()
        self.source.close()

    async def run(self, duration_s: float | None = None) -> TalkStatus:
        """Raises ConnectionRefused when the server turns the device away for good, AudioError when the source or the
        loudspeaker fails and is not tried again."""
        self.client = EdgeClient(self.settings.server, self.queue, self, self.link, dialogue=True)
        self.voice.client = self.client
        listener = threading.Thread(target=self._listen, name="microphone", daemon=True)
        connection = asyncio.create_task(self.client.run())
        deadline = None if duration_s is None else time.monotonic() + duration_s
        try:
            self.voice.start()
            listener.start()
            drained = 0.0
            while not connection.done():
                await asyncio.sleep(STEP_S)
                await self.voice.step(self.link.estimate(now_ms()))
                if deadline is not None and time.monotonic() >= deadline:
                    self.stop()
                if self._ended.is_set() or self._stop.is_set():
                    drained = drained or time.monotonic()
                    self.talker.release(now_ms())
                    if self.voice.quiet or time.monotonic() - drained > _DRAIN_S:
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
            await self.voice.close()
            if listener.ident is not None:  # it listened
                await asyncio.to_thread(listener.join, 2.0)
            self.queue.close()
        if self._error is not None:
            raise self._error
        return self.status()

    def status(self) -> TalkStatus:
        """One look; safe from any thread."""
        return self.voice.status(self.link.estimate(now_ms()))

    def _listen(self) -> None:
        try:
            for block in self.source:
                if self._stop.is_set():
                    break
                self.voice.hear(block.samples)
        except Exception as error:  # for good: the dialogue says so, and the run ends with it
            self._error = error
            self.talker.fail(f"microphone: {error}", now_ms())
        finally:
            self._ended.set()

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
        self.voice.opened()

    def closed(self, reason: str) -> None:
        """The connection is gone, or could not be made."""
        self.voice.closed(reason)

    async def acked(self, event: Acked) -> None:
        """Windows of another run are at the server."""

    def next_chunk(self) -> tuple[bytes, bool] | None:
        """No weights go up from here."""
        return None

    async def message(self, message: Message) -> None:
        """Errors count; what else the server says is for devices that listen."""
        if isinstance(message, Error) and not self.voice.refused(message):
            self.voice.problem = f"server: {message.code}: {message.detail}"

    async def media(self, frame: Frame) -> None:
        """An answer."""
        self.voice.take(frame)
