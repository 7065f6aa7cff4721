"""A device's voice: the talker, its loudspeaker and its kept questions, beside whatever else the device does.

`hear` runs in the thread of the microphone, `Talker.play` in that of the loudspeaker; all else in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from streamsplit.audio.files import read_audio
from streamsplit.edge.blocks import RATE_HZ, AudioBlock, Source
from streamsplit.edge.outages import Outages
from streamsplit.edge.question_store import QuestionStore
from streamsplit.edge.reconnecting import ReconnectingSource
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.speaker import Sink, SpeakerSink
from streamsplit.edge.talker import Floats, Talker, TalkEvent
from streamsplit.errors import CheckpointError
from streamsplit.splitting.link import LinkEstimate
from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Error
from streamsplit.wire.types import FrameFlag, FrameType

log = logging.getLogger(__name__)
STEP_S = 0.05
_PLAYOUT_MS = 10.0  # of sound that the speaker asks for at once: an answer begins so much late at most
_ABOUT_SPEECH = frozenset({"bad_dialogue", "no_answer"})
_KEEP_AGAIN_MS = 5_000.0  # after the disk has failed
_NO_LINK = "no link"
_NOBODY = "the server answers nobody; set dialogue.responder there"


class TalkStatus(NamedTuple):
    """One look at a voice client."""

    state: str
    connected: bool
    rtt_ms: float
    bitrate_bps: int
    bitrates: dict[str, float]  # of the questions' frames so far, see questions.Bitrates
    target_ms: float  # of the jitter buffer
    waiting: int  # questions that are kept
    counts: dict[str, int]
    frames: dict[str, int]  # of answers, see codec.jitter.JitterCounts
    underruns: int
    problem: str
    microphone_outages: int = 0
    microphone_gone_s: float = 0.0
    loudspeaker_outages: int = 0
    loudspeaker_gone_s: float = 0.0


class Speaking(Protocol):
    """The client, as far as questions go."""

    @property
    def is_open(self) -> bool: ...
    def say(self, payload: bytes, sequence: int, captured_ms: float, *, final: bool) -> bool: ...
    def probe(self) -> None: ...


class Voice:
    """Speaks with the server through a client that somebody else runs."""

    def __init__(
        self, settings: EdgeSettings, sink: Sink, *, watch: Callable[[TalkEvent], None] = lambda event: None
    ) -> None:
        """`watch` sees every event, in the event loop. Raises AudioError for an `offline_sound` that is none,
        CheckpointError for kept questions that cannot be read, and as `Talker`."""
        talk = settings.talk
        sound = read_audio(talk.offline_sound) if talk.offline_sound else None
        self.talker = Talker(talk, offline_sound=sound, lossy=settings.server.lossy)
        self.sink = sink
        self.outages: list[Outages] = []
        if isinstance(sink, SpeakerSink):
            self._watch_outages(sink.outages)
        self.client: Speaking | None = None
        self.problem = ""
        self._device = settings.device.id
        self._watch = watch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._probed_ms = -math.inf
        self._keep_from_ms = 0.0  # not before: the disk has just failed
        self._store = QuestionStore(settings.device.folder / "questions", most=talk.conversations)
        self.talker.questions.restore(self._store.load(), now_ms(), _unix_ms())

    def start(self) -> None:
        """From now on there is sound; raises AudioError where the loudspeaker cannot be opened."""
        self._loop = asyncio.get_running_loop()
        count = math.gcd(self.talker.frame, round(_PLAYOUT_MS * RATE_HZ / 1000))
        self.sink.start(partial(self.talker.play, count=count), count)

    async def close(self) -> None:
        """Gives the loudspeaker back; what waits stays on disk."""
        await asyncio.to_thread(self.sink.close)
        self._keep_from_ms = 0.0
        await self._keep()
        self._report()

    def mind(self, source: Source) -> None:
        """Hears of the losses and returns of the microphone."""
        if isinstance(source, ReconnectingSource):
            self._watch_outages(source.outages)

    def press(self) -> None:
        """Push-to-talk: begins a question, or ends the one that is being asked."""
        (self.talker.release if self.talker.questions.asking else self.talker.press)(now_ms())

    def hear(self, samples: Floats) -> None:
        """Sound [n] as it comes from the microphone; in its thread."""
        self.talker.hear(samples, now_ms())
        if self._loop is not None and self.talker.ready:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to send for
                self._loop.call_soon_threadsafe(self._send)

    async def step(self, link: LinkEstimate) -> None:
        """What time brings; every `STEP_S`. Raises what ended the loudspeaker for good."""
        if self.sink.error is not None:
            raise self.sink.error
        self.talker.tick(now_ms())
        self.talker.follow(link, now_ms())
        self._send()
        self._probe()
        await self._keep()
        self._report()

    @property
    def quiet(self) -> bool:
        """Whether nothing is being asked or answered, and no question waits that the link could take."""
        owed = self.client is not None and self.client.is_open and self.talker.questions.waiting > 0
        return self.talker.state.name in ("IDLE", "ERROR") and not owed

    def status(self, link: LinkEstimate) -> TalkStatus:
        """One look; safe from any thread."""
        talker = self.talker
        asked = {
            name: getattr(talker.questions, name) for name in ("delivered", "forgotten", "shortened", "payload_bytes")
        }
        counts = {**vars(talker.counts), **asked}
        return TalkStatus(
            talker.state.name, self.client is not None and self.client.is_open, link.rtt_ms,
            talker.questions.bitrate_bps, talker.questions.bitrates._asdict(), talker.answer.jitter.target_ms,
            talker.questions.waiting, counts, dict(vars(talker.answer.jitter.counts)), self.sink.underruns,
            self.problem, **ChainMap(*(outages.figures for outages in self.outages)),
        )  # fmt: skip

    # -- what the connection brings ------------------------------------------------------------------------------

    def opened(self) -> None:
        """Connected."""
        if self.problem.startswith(_NO_LINK):
            self.problem = ""
        self.talker.link(True, now_ms())
        self._send()

    def closed(self, reason: str) -> None:
        """The connection is gone, or could not be made."""
        self.problem = f"{_NO_LINK}: {reason}"
        self.talker.link(False, now_ms())
        self._report()

    def take(self, frame: Frame) -> None:
        """An answer; other frames are passed over."""
        if frame.type is FrameType.DIALOGUE:
            final = bool(frame.flags & FrameFlag.FINAL)
            self.talker.take(frame.payload, final, now_ms(), float(frame.timestamp_ms))
            self._report()

    def refused(self, error: Error) -> bool:
        """Whether an error of the server was about a question."""
        nobody = error.code == "unsupported" and error.detail.startswith(FrameType.DIALOGUE.name)
        if not nobody and error.code not in _ABOUT_SPEECH:
            return False
        said = _NOBODY if nobody else f"server: {error.detail}"
        self.talker.refused(said, now_ms(), error.sequence)
        return True

    # -- inside --------------------------------------------------------------------------------------------------

    def _watch_outages(self, outages: Outages) -> None:
        self.outages.append(outages)
        outages.watch(lambda change: self.talker.changed(change, now_ms()))

    def _send(self) -> None:
        client = self.client
        if client is None or not client.is_open:
            return
        for out in self.talker.outgoing(now_ms()):
            client.say(out.payload, out.sequence, out.captured_ms, final=out.final)

    def _probe(self) -> None:
        """Among speech that goes up, a probe now and then shows the link's queue."""
        talk = self.talker
        if self.client is None or not (talk.speaks and talk.questions.adapts):
            return
        if now_ms() - self._probed_ms >= talk.settings.bitrate.probe_ms:
            self._probed_ms = now_ms()
            self.client.probe()

    async def _keep(self) -> None:
        """The store follows the questions that wait; a disk that fails costs their survival, not the dialogue."""
        known = self._store.numbers
        waiting, fresh = self.talker.waiting(known, now_ms(), _unix_ms())
        if (fresh or known.difference(waiting) or self._store.behind) and now_ms() >= self._keep_from_ms:
            try:
                await asyncio.to_thread(self._store.mirror, waiting, fresh)
            except CheckpointError as error:
                self._keep_from_ms = now_ms() + _KEEP_AGAIN_MS
                self._trouble(f"questions on disk: {error}")

    def _report(self) -> None:
        for event in self.talker.events():
            if event.kind == "error":
                self._trouble(event.value)
            elif event.kind == "device":
                self._back(event.value)
            self._watch(event)

    def _back(self, text: str) -> None:
        device, _, _ = text.partition(":")
        if self.problem.startswith(f"{device}:"):
            self.problem = ""
        log.warning("%s: %s", self._device, text)

    def _trouble(self, text: str) -> None:
        if text != self.problem:
            log.warning("%s: %s", self._device, text)
        self.problem = text


class Overheard:
    """A source whose sound a voice hears, too, before whoever listens to it."""

    def __init__(self, source: Source, voice: Voice) -> None:
        self.info = source.info
        self._source, self._voice = source, voice
        voice.mind(source)

    def __iter__(self) -> Iterator[AudioBlock]:
        for block in self._source:
            self._voice.hear(block.samples)
            yield block

    def close(self) -> None:
        """Ends it."""
        self._source.close()


def now_ms() -> float:
    """Of the clock that everything here runs by."""
    return 1000.0 * time.monotonic()


def _unix_ms() -> float:
    return 1000.0 * time.time()
