"""Live questions at the server: holes are waited for, then recovered or concealed; a question keeps its length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from streamsplit.codec.opus_stream import OpusEncoderStream, OpusSettings
from streamsplit.codec.pcm import pack_pcm
from streamsplit.errors import ProtocolError
from streamsplit.server.connection import Connection, Link
from streamsplit.server.dialogue import exchange
from streamsplit.server.dialogue.exchange import Dialogues
from streamsplit.server.dialogue.question import Coded, Named, Question
from streamsplit.server.dialogue.responders import Echo
from streamsplit.server.dialogue.settings import DialogueSettings
from streamsplit.server.fleet import Device
from streamsplit.server.precedence import Precedence
from streamsplit.wire.dialogue import Kind, Utterance, pack_utterance, unpack_utterance
from streamsplit.wire.frame import Frame, decode_frame
from streamsplit.wire.messages import Hello
from streamsplit.wire.session import ClientSession, ServerSession
from streamsplit.wire.types import FrameFlag, FrameType

FRAME = 320
RNG = np.random.default_rng(3)
SOUND = (0.2 * RNG.standard_normal((20, FRAME))).astype(np.float32)


async def unnamed(sound: np.ndarray) -> Named:
    raise AssertionError("nobody asked for a name")


def piece(first: int, *frames: bytes, kind: Kind = Kind.PCM16, live: bool = True) -> Utterance:
    return Utterance(7, first, kind, 20.0, frames, 0, live)


def open_session() -> ServerSession:
    """One whose device is there."""
    client, server = ClientSession(), ServerSession(0.0)
    hello = Hello(protocol=1, device_id="pi", token="", epoch=1, oldest_sequence=1, next_sequence=1)
    client.hello(hello, 0.0)
    for data in client.bytes_to_send():
        server.receive(data, 0.0)
    server.accept(0.0, session_id="s", resume_token=b"t")
    return server


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(scenario(), 30.0)

    asyncio.run(run())


def test_what_comes_in_any_order_is_heard_in_order_and_what_does_not_come_is_a_gap_of_its_length() -> None:
    async def scenario() -> None:
        question = Question("pi", piece(0, pack_pcm(SOUND[0])), unnamed, patience_ms=100.0)
        for now_ms, place in ((0.0, 0), (20.0, 2), (25.0, 1), (60.0, 4), (80.0, 5)):
            question.add(piece(place, pack_pcm(SOUND[place])), now_ms)
        question.end(8)
        assert not question.complete and not question.over.is_set()
        question.finish()
        heard = (await question.whole()).reshape(-1, FRAME)
        assert len(heard) == question.frames == 8
        for place, frame in enumerate(heard):
            expected = SOUND[place] if place in (0, 1, 2, 4, 5) else np.zeros(FRAME)
            assert np.abs(frame - expected).max() < 1e-4
        assert (question.counts.received, question.counts.concealed) == (5, 3)
        passed_on = [coded.first async for coded in question.pieces()]
        assert passed_on == [0, 2, 1, 4, 5]

    in_loop(scenario)


def test_a_lost_frame_of_opus_is_recovered_from_the_copy_in_the_packet_after_it() -> None:
    """Against the frame itself: the copy is coarse, concealment from nothing but the past is far worse."""
    t = np.arange(60 * FRAME) / 16_000
    swept = (0.3 * np.sin(2 * np.pi * (150 + 120 * t) * t) * (1 + np.sin(2 * np.pi * 5 * t))).astype(np.float32)
    encoder = OpusEncoderStream(OpusSettings(fec=True, expected_loss=0.2, dtx=False))
    packets = [encoder.encode(frame) for frame in swept.reshape(-1, FRAME)]

    def heard_without(lost: set[int]) -> np.ndarray:
        found: list[np.ndarray] = []

        async def scenario() -> None:
            question = Question("pi", piece(0, packets[0], kind=Kind.OPUS), unnamed, patience_ms=40.0)
            for place, packet in enumerate(packets):
                if place not in lost:
                    question.add(piece(place, packet, kind=Kind.OPUS), 20.0 * place)
            question.end(len(packets))
            question.finish()
            found.append(await question.whole())
            assert question.counts.recovered + question.counts.concealed == len(lost)

        in_loop(scenario)
        return found[0].reshape(-1, FRAME)

    whole = heard_without(set())
    alone, first_of_two = heard_without({30}), heard_without({30, 31})
    misses = [other[30] - whole[30] for other in (alone, first_of_two)]
    errors = [float(np.linalg.norm(miss) / np.linalg.norm(whole[30])) for miss in misses]
    assert errors[0] < 0.5 * errors[1], errors


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (piece(6_000, b"", live=True), "longest question"),
        (piece(1_000, pack_pcm(SOUND[0])), "live frame 1000, 20 s before its time"),
        (piece(1, b"\x00\x00"), "got 1 samples, expected 320"),
        (piece(1, b"\xfc", kind=Kind.OPUS), "in the middle of PCM16"),
    ],
)
def test_a_live_piece_that_cannot_be_is_refused(wrong: Utterance, text: str) -> None:
    async def scenario() -> None:
        question = Question("pi", piece(0, pack_pcm(SOUND[0])), unnamed)
        question.add(piece(0, pack_pcm(SOUND[0])), 0.0)
        with pytest.raises(ProtocolError, match=text):
            question.add(wrong, 0.0)

    in_loop(scenario)


@pytest.mark.parametrize("live", [True, False])
def test_what_follows_an_answer_that_ended_early_is_not_asked_again(live: bool) -> None:
    """A responder that has heard enough: messages behind that begin nothing and fail nothing, the question's end is
    acknowledged, also if all of it comes once more, and the next question is asked."""
    asked: list[int] = []

    class Impatient:
        async def respond(self, question: Question) -> AsyncIterator[str]:
            asked.append(question.number)
            yield "enough"

    async def scenario() -> None:
        link = Link(Device("pi"), open_session(), stream=None)  # type: ignore[arg-type]  # no windows here
        link.connection = Connection(None, link.session, Precedence())  # type: ignore[arg-type]  # nothing is written here
        dialogues = Dialogues(DialogueSettings(learn=False), Impatient(), lambda *_: unnamed(SOUND[0]))

        def say(number: int, place: int, flags: FrameFlag = FrameFlag.NONE) -> None:
            payload = pack_utterance(piece(place, pack_pcm(SOUND[0]), live=live)._replace(utterance=number))
            dialogues.on_frame(link, Frame(FrameType.DIALOGUE, flags, 1, 0, payload))

        for number in (7, 8):
            say(number, 0)
            while dialogues.answers < len(asked) or number not in asked:
                await asyncio.sleep(0)
            for place in (1, 2, 3):
                say(number, place)
                await asyncio.sleep(0)
            before = _ends(link, number)
            say(number, 4, FrameFlag.FINAL)
            assert _ends(link, number) == before + 1
        say(7, 0)  # once more, from its beginning: its answer was lost
        say(7, 1, FrameFlag.FINAL)
        assert _ends(link, 7) == 3 and dialogues.failures == 0
        await asyncio.sleep(0)
        dialogues.close()

    in_loop(scenario)
    assert asked == [7, 8]


def test_an_echo_tells_when_it_left_and_how_long_it_was_held_which_is_when_it_came() -> None:
    """A responder that takes 30 ms: by the header's time and the field `held_ms`, each in whole milliseconds."""

    class Slow:
        async def respond(self, question: Question) -> AsyncIterator[Coded]:
            async for coded in question.pieces():
                await asyncio.sleep(0.03)
                yield coded

    async def scenario() -> None:
        link = Link(Device("pi"), open_session(), stream=None)  # type: ignore[arg-type]  # no windows here
        link.connection = Connection(None, link.session, Precedence())  # type: ignore[arg-type]  # nothing is written here
        link.session.bytes_to_send()
        dialogues = Dialogues(DialogueSettings(learn=False), Slow(), lambda *_: unnamed(SOUND[0]))
        before_ms = exchange.now_ms()
        dialogues.on_frame(
            link, Frame(FrameType.DIALOGUE, FrameFlag.NONE, 1, 0, pack_utterance(piece(0, pack_pcm(SOUND[0]))))
        )
        came_ms = exchange.now_ms()
        while not (told := link.session.bytes_to_send()):
            await asyncio.sleep(0.001)
        echo = decode_frame(told[0])
        held_ms = unpack_utterance(echo.payload).held_ms
        left_ms = before_ms + (echo.timestamp_ms - before_ms) % 2.0**32
        assert held_ms >= 29 and left_ms <= exchange.now_ms()
        assert before_ms - 1.5 <= left_ms - held_ms <= came_ms + 0.5
        dialogues.close()

    in_loop(scenario)


def test_a_question_whose_device_vanished_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ABANDONED_S", 0.05)
    closed = asyncio.Event()

    class Patient:
        async def respond(self, question: Question) -> AsyncIterator[str]:
            try:
                yield str(len(await question.whole()))
            finally:
                closed.set()

    async def scenario() -> None:
        link = Link(Device("pi"), open_session(), stream=None)  # type: ignore[arg-type]  # no windows here
        link.connection = Connection(None, link.session, Precedence())  # type: ignore[arg-type]  # nothing is written here
        dialogues = Dialogues(DialogueSettings(learn=False), Patient(), lambda *_: unnamed(SOUND[0]))
        payload = pack_utterance(piece(0, pack_pcm(SOUND[0]), live=False))
        dialogues.on_frame(link, Frame(FrameType.DIALOGUE, FrameFlag.NONE, 1, 0, payload))
        await asyncio.wait_for(closed.wait(), 20.0)
        while not dialogues.idle:
            await asyncio.sleep(0.001)
        told = [decode_frame(data).type for data in link.session.bytes_to_send()]
        assert dialogues.failures == 0 and FrameType.ERROR not in told  # or the device would forget its question
        dialogues.on_frame(link, Frame(FrameType.DIALOGUE, FrameFlag.FINAL, 2, 0, payload))  # it is back, and asks anew
        while not dialogues.answers:
            await asyncio.sleep(0.001)

    in_loop(scenario)


def test_a_refused_question_that_comes_again_from_its_beginning_is_asked() -> None:
    async def scenario() -> None:
        link = Link(Device("pi"), open_session(), stream=None)  # type: ignore[arg-type]  # no windows here
        link.connection = Connection(None, link.session, Precedence())  # type: ignore[arg-type]  # nothing is written here
        dialogues = Dialogues(DialogueSettings(learn=False), Echo(), lambda *_: unnamed(SOUND[0]))

        def say(place: int, frame: bytes, flags: FrameFlag = FrameFlag.NONE) -> None:
            payload = pack_utterance(piece(place, frame, live=False))
            dialogues.on_frame(link, Frame(FrameType.DIALOGUE, flags, 1, 0, payload))

        say(0, b"\x00\x00")  # no frame of PCM
        say(1, pack_pcm(SOUND[0]))
        assert dialogues.failures == 1 and dialogues.idle
        say(0, pack_pcm(SOUND[0]))
        say(1, pack_pcm(SOUND[1]), FrameFlag.FINAL)
        while not dialogues.answers:
            await asyncio.sleep(0)
        assert dialogues.failures == 1

    in_loop(scenario)


def _ends(link: Link, number: int) -> int:
    """How many answers with FINAL to a question are on their way to the device, or were."""
    for data in link.session.bytes_to_send():
        frame = decode_frame(data)
        if frame.type is FrameType.DIALOGUE and frame.flags & FrameFlag.FINAL:
            ended = unpack_utterance(frame.payload).utterance
            _ENDED.setdefault(link, []).append(ended)
    return _ENDED.get(link, []).count(number)


_ENDED: dict[Link, list[int]] = {}


def test_without_the_mark_a_hole_is_refused_as_ever() -> None:
    async def scenario() -> None:
        question = Question("pi", piece(0, live=False), unnamed)
        with pytest.raises(ProtocolError, match="got frame 2, expected 0"):
            question.add(piece(2, pack_pcm(SOUND[0]), live=False), 0.0)

    in_loop(scenario)
