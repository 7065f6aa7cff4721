"""Questions of all devices and the answers' way back; a question is answered to its end unless the device says stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.jitter import JitterCounts
from streamsplit.codec.opus_stream import OpusEncoderStream, OpusSettings
from streamsplit.codec.pcm import pack_pcm
from streamsplit.errors import ProtocolError, StreamSplitError
from streamsplit.server.connection import Link, now_ms
from streamsplit.server.dialogue.question import Coded, Named, Question
from streamsplit.server.dialogue.responders import Reply, Responder
from streamsplit.server.dialogue.settings import DialogueSettings
from streamsplit.wire.dialogue import LONGEST_TEXT, Kind, Utterance, pack_utterance, unpack_utterance
from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Error
from streamsplit.wire.types import FrameFlag, FrameType, Priority

LOG = logging.getLogger(__name__)
Floats = NDArray[np.float32]
REMEMBERED = 64  # numbers of a device's questions that came whole
MOST_DEVICES = 4096  # whose questions are remembered
MOST_OPEN = 16  # questions of a device that are answered at once: as many as it keeps, and some
ABANDONED_S = 60.0  # without a piece of a question that is not over
_MOST_QUEUED_BYTES = 64 << 10
_POLL_S = 0.01


class _Conversation:
    """One device's."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[Question, asyncio.Task[None]]] = {}
        self.heard: deque[int] = deque(maxlen=REMEMBERED)
        self.done: deque[int] = deque(maxlen=REMEMBERED)  # answered to the end, or not to be answered any more
        self.sequence = 0
        self.broken = -1  # number of a question that was refused: the rest of it is passed over


class Dialogues:
    """Takes DIALOGUE frames of all links; used in the event loop only."""

    def __init__(
        self,
        settings: DialogueSettings,
        responder: Responder | None,
        name: Callable[[str, Floats, bool], Awaitable[Named]],
    ) -> None:
        """`name(device, sound, learn)` embeds a question, names it and, if it is to, learns from it."""
        self.settings, self.responder = settings, responder
        self.questions = self.answers = self.failures = 0
        self.frames = JitterCounts()  # of live questions that are over
        self._name = name
        self._conversations: dict[str, _Conversation] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def enabled(self) -> bool:
        """Whether anybody answers."""
        return self.responder is not None

    @property
    def idle(self) -> bool:
        """Whether no question is being answered."""
        return not any(conversation.open for conversation in self._conversations.values())

    def status(self) -> dict[str, Any]:
        """Counts for /api/status; `frames` of questions over lossy links that are over."""
        counts = {name: getattr(self, name) for name in ("questions", "answers", "failures")}
        return {**counts, "frames": dict(vars(self.frames))}

    def on_frame(self, link: Link, frame: Frame) -> None:
        """A DIALOGUE frame of a device; what is wrong with it is told to the device."""
        conversation = self._conversation(link.device.id)
        number = -1
        try:
            piece = unpack_utterance(frame.payload)
            number = piece.utterance
            self._take(link, conversation, piece, bool(frame.flags & FrameFlag.FINAL))
        except ProtocolError as error:
            self._fail(link, conversation, "bad_dialogue", error.detail, number)
        except StreamSplitError as error:
            self._fail(link, conversation, "no_answer", str(error), number)

    def _conversation(self, device: str) -> _Conversation:
        """A device's; beyond so many devices, those forgotten that have been silent for longest."""
        conversation = self._conversations.pop(device, None) or _Conversation()
        self._conversations[device] = conversation
        if len(self._conversations) > MOST_DEVICES:
            silent = next((name for name, held in self._conversations.items() if not held.open), None)
            if silent is not None and silent != device:
                del self._conversations[silent]
        return conversation

    def _take(self, link: Link, conversation: _Conversation, piece: Utterance, final: bool) -> None:
        number = piece.utterance
        if piece.kind is Kind.STOP:
            self._stop(conversation, number)
            conversation.done.append(number)
            return
        question = conversation.open[number][0] if number in conversation.open else None
        live = question is not None and question.live and piece.live
        if number in conversation.heard and not (live and not final):  # it came whole before; say so
            if final and question is None:
                self._send(link, conversation, Utterance(number, 0, piece.kind, piece.frame_ms, ()), final=True)
            return
        if number == conversation.broken:
            if piece.first or piece.live:
                return
            conversation.broken = -1  # from its beginning: the device has not heard that it was refused
        elif question is None and number in conversation.done:  # the rest of what nobody listens to any more
            if final:
                conversation.heard.append(number)
                self._send(link, conversation, Utterance(number, 0, piece.kind, piece.frame_ms, ()), final=True)
            return
        if question is not None and piece.live and not question.live:
            return  # of a connection before this one
        if question is None or (piece.first == 0 and question.frames and not live):  # new, or after a lost link again
            question = self._begin(link, conversation, piece)
        question.add(piece, now_ms())
        if final:
            conversation.heard.append(number)
            question.end(piece.first + len(piece.frames))
            if self._teaches(link):
                self._keep(self._learn(question))
            if not question.complete:
                self._keep(self._wait_for_rest(link, conversation, question))
        if question.complete:
            self._finish(question)

    async def _wait_for_rest(self, link: Link, conversation: _Conversation, question: Question) -> None:
        """What is still missing of a live question may be on its way; then it is over."""
        await asyncio.sleep(self.settings.patience_ms / 1000.0)
        try:
            self._finish(question)
        except ProtocolError as error:
            self._fail(link, conversation, "bad_dialogue", error.detail, question.number)

    def _finish(self, question: Question) -> None:
        if question.over.is_set():
            return
        question.finish()
        for name, count in vars(question.counts).items():
            setattr(self.frames, name, getattr(self.frames, name) + count)

    def _begin(self, link: Link, conversation: _Conversation, piece: Utterance) -> Question:
        self._stop(conversation, piece.utterance)
        while len(conversation.open) >= MOST_OPEN:
            self._stop(conversation, next(iter(conversation.open)))
        device = link.device.id

        async def name(sound: Floats) -> Named:
            return await self._name(device, sound, self._teaches(link))

        settings = self.settings
        question = Question(device, piece, name, longest_s=settings.longest_s, patience_ms=settings.patience_ms)
        self.questions += 1
        task = self._keep(self._answer(link, conversation, question))
        conversation.open[question.number] = question, task
        return question

    def _teaches(self, link: Link) -> bool:
        """Whether its questions are learned from: the windows of a device that listens hold the same sound."""
        return self.settings.learn and not link.device.windows

    def _stop(self, conversation: _Conversation, number: int) -> None:
        held = conversation.open.pop(number, None)
        if held is not None:
            held[1].cancel()

    def close(self) -> None:
        """Nobody is answered any more."""
        for task in list(self._tasks):
            task.cancel()

    def _keep(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _learn(self, question: Question) -> None:
        try:
            await question.named()
        except StreamSplitError as error:
            LOG.warning("%s: question %d not learned from: %s", question.device, question.number, error)

    # -- the answer ----------------------------------------------------------------------------------------------

    async def _answer(self, link: Link, conversation: _Conversation, question: Question) -> None:
        assert self.responder is not None
        voice = _Voice(self, link, conversation, question)
        replies = self.responder.respond(question)
        try:
            async with contextlib.aclosing(_in_time(replies, question, self.settings.answer_s)) as said:
                async for reply in said:
                    await voice.say(reply)
            await voice.finish()
            self.answers += 1
            conversation.done.append(question.number)
        except _Gone:  # nobody is there to hear it
            return
        except Exception as error:  # a responder is its user's code: whatever it raises, the server goes on
            LOG.warning("%s: question %d: %s: %s", question.device, question.number, type(error).__name__, error)
            self._fail(
                link,
                conversation,
                "no_answer",
                f"the responder failed ({type(error).__name__}: {error})",
                question.number,
            )
        finally:
            close = getattr(replies, "aclose", None)
            if close is not None:
                await close()
            held = conversation.open.get(question.number)
            if held is not None and held[0] is question:
                del conversation.open[question.number]

    def _fail(self, link: Link, conversation: _Conversation, code: str, detail: str, number: int) -> None:
        self.failures += 1
        conversation.broken = number
        held = conversation.open.get(number)
        if held is not None and held[1] is not asyncio.current_task():
            self._stop(conversation, number)
        link.session.send(Error(code=code, detail=detail[:500], sequence=max(number, 0)))
        link.wake()

    def _send(self, link: Link, conversation: _Conversation, piece: Utterance, *, final: bool = False) -> bool:
        conversation.sequence = conversation.sequence % 0xFFFF_FFFF + 1
        flags = FrameFlag.FINAL if final else FrameFlag.NONE
        sent = link.session.send_media(
            FrameType.DIALOGUE, pack_utterance(piece), now_ms(), flags, conversation.sequence
        )
        link.wake()
        return sent


async def _in_time(replies: AsyncIterator[Reply], question: Question, answer_s: float) -> AsyncGenerator[Reply, None]:
    """A responder's replies; each may take as long as it likes while the question is asked, and `answer_s` after it.

    Raises _Gone where nothing comes of the question any more: its device is not told, and asks it anew when it is back.
    """
    clock = asyncio.get_running_loop().time
    asking = asyncio.current_task()
    since_s = math.inf  # the wait for the present reply; inf: nobody waits
    expired: Exception | None = None

    async def watch() -> None:
        nonlocal expired
        while not question.over.is_set():  # nothing of it for so long: its device is gone, or the link hangs
            left_s = ABANDONED_S - max(now_ms() - question.latest_ms, 0.0) / 1000.0
            if left_s <= 0:
                expired = _Gone()
                if asking is not None:
                    asking.cancel()
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(question.over.wait(), left_s)
        over_s = clock()
        while (left_s := max(since_s, over_s) + answer_s - clock()) > 0:
            await asyncio.sleep(min(left_s, answer_s))
        expired = ProtocolError("no_answer", f"nothing said within {answer_s:g} s")
        if asking is not None:
            asking.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        while True:
            since_s = clock()
            reply = await anext(replies)
            since_s = math.inf
            yield reply
    except StopAsyncIteration:
        return
    except asyncio.CancelledError:
        if expired is not None:
            raise expired from None
        raise
    finally:
        watching.cancel()


class _Gone(Exception):
    """The device is not connected any more."""


class _Voice:
    """One answer on its way: frames of the question's kind and length, messages as large as the question's, paced."""

    def __init__(self, owner: Dialogues, link: Link, conversation: _Conversation, question: Question) -> None:
        settings = owner.settings
        self._owner, self._link, self._conversation, self._question = owner, link, conversation, question
        opus = OpusSettings(frame_ms=question.frame_ms, bitrate_bps=settings.bitrate_bps, dtx=False)
        self._samples = opus.frame_samples
        self._encoder = OpusEncoderStream(opus) if question.kind is Kind.OPUS else None
        self._size = max(1, round(60.0 / question.frame_ms))
        self._ahead_ms = settings.ahead_ms
        self._rest = np.zeros(0, np.float32)
        self._frames: list[bytes] = []
        self._sent = 0
        self._began_ms = 0.0
        self._echoes = False

    async def say(self, reply: Reply) -> None:
        """Sends what is whole of it; raises _Gone where nobody is there."""
        if isinstance(reply, str):
            data = reply.encode()[:LONGEST_TEXT].decode(errors="ignore").encode()
            await self._out(Utterance(self._question.number, 0, Kind.TEXT, 0.0, (data,)))
        elif isinstance(reply, Coded):
            held_ms = now_ms() - reply.arrived_ms
            await self._out(self._piece(reply.frames, round(held_ms))._replace(first=reply.first, live=True))
            self._sent = max(self._sent, reply.first + len(reply.frames))
            self._echoes = True
        else:
            await self._speak(np.asarray(reply, np.float32))

    async def finish(self) -> None:
        """The rest, and the end."""
        if len(self._rest):
            await self._speak(np.zeros(-len(self._rest) % self._samples, np.float32))
        if self._frames:
            await self._flush(len(self._frames))
        if self._echoes:  # the last of a live question's frames may have been lost
            self._sent = max(self._sent, self._question.frames)
        await self._out(self._piece(()), final=True)

    async def _speak(self, samples: Floats) -> None:
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise ProtocolError(
                "no_answer", f"the responder gave an array of shape {samples.shape}, expected sound [n]"
            )
        joined = np.concatenate([self._rest, samples])
        whole = len(joined) - len(joined) % self._samples
        self._rest = joined[whole:]
        for at in range(0, whole, self._samples):
            frame = joined[at : at + self._samples]
            self._frames.append(self._encoder.encode(frame) if self._encoder is not None else pack_pcm(frame))
            if len(self._frames) == self._size:
                await self._flush(self._size)

    async def _flush(self, count: int) -> None:
        """One message, not further before its time than is allowed."""
        self._began_ms = self._began_ms or now_ms()
        early_ms = self._began_ms + self._sent * self._question.frame_ms - self._ahead_ms - now_ms()
        if early_ms > 0:
            await asyncio.sleep(early_ms / 1000.0)
        frames, self._frames = tuple(self._frames[:count]), self._frames[count:]
        await self._out(self._piece(frames))
        self._sent += len(frames)

    def _piece(self, frames: tuple[bytes, ...], held_ms: int = 0) -> Utterance:
        question = self._question
        return Utterance(question.number, self._sent, question.kind, question.frame_ms, frames, held_ms)

    async def _out(self, piece: Utterance, *, final: bool = False) -> None:
        while self._link.session.queued_bytes(Priority.DIALOGUE) > _MOST_QUEUED_BYTES:
            await asyncio.sleep(_POLL_S)
        if self._link.connection is None or not self._owner._send(self._link, self._conversation, piece, final=final):
            raise _Gone
