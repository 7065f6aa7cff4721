"""The dialogue at the device over a transport that loses, repeats and reorders live sound, in virtual time."""

from __future__ import annotations

import heapq
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamsplit.codec.jitter import JitterCounts
from streamsplit.codec.reorder import ReorderBuffer
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.edge.talker import Talker
from streamsplit.wire.dialogue import Kind, Utterance, may_be_lost, pack_utterance, unpack_utterance
from streamsplit.wire.frame import Frame, decode_frame, encode_frame
from streamsplit.wire.talk_states import TALK_TABLE, TalkState
from streamsplit.wire.types import FrameFlag, FrameType

FRAME = 320


def sound(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    """A buzz over faint noise; level 0 is a pause."""
    t = np.arange(round(seconds * 50) * FRAME) / 16_000
    noise = 0.001 * np.random.default_rng(seed).standard_normal(len(t))
    return (level * np.sin(2 * np.pi * 140 * t) * (0.7 + 0.3 * np.sin(2 * np.pi * 4 * t)) + noise).astype(np.float32)


class LossyWorld:
    """A talker and a server that echoes, with a stream that keeps its order and datagrams that nothing is sure of."""

    def __init__(self, *, loss: float, repeated: float = 0.0, seed: int = 0, **changes: Any) -> None:
        made = TalkSettings.from_mapping({"activity": {"end_ms": 300.0}, **changes})
        self.talker = Talker(made, lossy=True)
        self.loss, self.repeated, self.random = loss, repeated, random.Random(seed)
        self.now_ms = self.stream_ms = 0.0
        self.under_way: list[tuple[float, int, bool, bytes]] = []  # arrival, order, up, frame
        self.order = 0
        self.lost = self.datagrams = self.on_stream = 0
        self.questions: dict[int, ReorderBuffer] = {}
        self.lengths: dict[int, int] = {}
        self.states: list[str] = []
        self.out: list[np.ndarray] = []

    def link(self, up: bool) -> None:
        self.under_way.clear()
        self.talker.link(up, self.now_ms)

    def send(self, frame: Frame, up: bool) -> None:
        data = encode_frame(frame)
        arrives = [self.now_ms + self.random.uniform(15.0, 45.0)]
        if may_be_lost(data):
            self.datagrams += 1
            if self.random.random() < self.loss:
                self.lost += 1
                return
            if self.random.random() < self.repeated:
                arrives.append(self.now_ms + self.random.uniform(15.0, 90.0))
        else:
            self.on_stream += 1
            arrives = [max(self.stream_ms, arrives[0] + (80.0 if self.random.random() < self.loss else 0.0))]
            self.stream_ms = arrives[0]
        for at_ms in arrives:
            self.order += 1
            heapq.heappush(self.under_way, (at_ms, self.order, up, data))

    def run(self, samples: np.ndarray) -> None:
        for at in range(0, len(samples), FRAME):
            self.now_ms += 20.0
            self.talker.hear(samples[at : at + FRAME], self.now_ms)
            self.step()

    def step(self) -> None:
        for out in self.talker.outgoing(self.now_ms):
            flags = FrameFlag.FINAL if out.final else FrameFlag.NONE
            self.send(Frame(FrameType.DIALOGUE, flags, out.sequence, 0, out.payload), up=True)
        while self.under_way and self.under_way[0][0] <= self.now_ms:
            at_ms, _, up, data = heapq.heappop(self.under_way)
            frame = decode_frame(data)
            if up:
                self.serve(unpack_utterance(frame.payload), bool(frame.flags & FrameFlag.FINAL), at_ms)
            else:
                self.talker.take(frame.payload, bool(frame.flags & FrameFlag.FINAL), at_ms)
        self.out.append(self.talker.play(self.now_ms))
        self.talker.tick(self.now_ms)
        self.states += [event.value for event in self.talker.events() if event.kind == "state"]

    def serve(self, piece: Utterance, final: bool, now_ms: float) -> None:
        number = piece.utterance
        if piece.kind is Kind.STOP:
            return
        if number in self.lengths:
            if piece.live and not final:  # overtaken by the end
                self.say(piece)
            elif final:
                self.say(Utterance(number, 0, piece.kind, 20.0, ()), final=True)
            return
        if not piece.live and piece.first == 0:  # once more, whole
            self.questions[number] = ReorderBuffer(100.0)
        buffer = self.questions.setdefault(number, ReorderBuffer(100.0))
        for place, data in enumerate(piece.frames):
            buffer.push(piece.first + place, data, now_ms)
        if piece.frames:
            self.say(piece._replace(live=True))
        if final:
            self.lengths[number] = piece.first + len(piece.frames)
            buffer.finish(self.lengths[number])
            self.say(Utterance(number, self.lengths[number], piece.kind, 20.0, ()), final=True)

    def say(self, piece: Utterance, *, final: bool = False) -> None:
        flags = FrameFlag.FINAL if final else FrameFlag.NONE
        self.send(Frame(FrameType.DIALOGUE, flags, 1, 0, pack_utterance(piece)), up=False)

    @property
    def counts(self) -> JitterCounts:
        return self.talker.answer.jitter.counts


def test_over_a_lossy_transport_speech_goes_up_live_a_frame_a_message_and_with_fec() -> None:
    world = LossyWorld(loss=0.0)
    assert world.talker.settings.opus.fec and world.talker.settings.opus.expected_loss == 0.1
    world.link(True)
    world.run(np.concatenate([sound(0.5, 0.0), sound(1.0, 0.3), sound(1.5, 0.0)]))
    (frames,) = world.lengths.values()
    assert world.datagrams == 2 * (frames - 1) and world.on_stream == 4  # both ways: the first message, and the end
    assert world.states == ["RECORDING", "STREAMING", "PROCESSING", "RECEIVING", "PLAYING", "IDLE"]
    assert world.counts.lost == world.counts.recovered == 0 and world.counts.received == frames
    assert not LossyWorld(loss=0.0, codec="pcm16").talker.settings.opus.fec  # PCM's packets carry no other


def test_over_tcp_nothing_is_live_and_fec_is_off() -> None:
    talker = Talker(TalkSettings.from_mapping({"activity": {"kind": "push", "lead_ms": 20.0}}))
    assert not talker.settings.opus.fec and talker.settings.frames_per_message == 3
    talker.link(True, 0.0)
    talker.press(0.0)
    for place in range(9):
        talker.hear(sound(0.02, 0.3), 20.0 * place)
    pieces = [unpack_utterance(out.payload) for out in talker.outgoing(180.0)]
    assert len(pieces) == 3 and not any(piece.live for piece in pieces)


@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_lost_messages_are_recovered_or_concealed_and_never_silence(loss: float) -> None:
    world = LossyWorld(loss=loss, seed=4)
    world.link(True)
    world.run(np.concatenate([sound(0.5, 0.0), sound(4.0, 0.3), sound(2.0, 0.0)]))
    counts = world.counts
    assert world.lost and counts.recovered and counts.lost and not counts.comfort
    came_to = counts.played + counts.recovered + counts.lost + counts.left_out
    assert 0 <= next(iter(world.lengths.values())) - came_to <= 4  # but for a first one that was repeated too late
    assert world.talker.counts.answers == 1 and world.talker.counts.errors == 0
    loud = np.array([np.abs(frame).max() > 0.02 for frame in world.out])
    first, last = np.flatnonzero(loud)[[0, -1]]
    assert loud[first : last + 1].mean() > 0.92  # silence in place of what is lost would give .85


def test_when_everything_that_may_be_lost_is_lost_the_question_still_ends_and_is_answered() -> None:
    world = LossyWorld(loss=0.999)
    world.link(True)
    world.run(np.concatenate([sound(0.5, 0.0), sound(1.0, 0.3), sound(4.0, 0.0)]))
    assert world.talker.state is TalkState.IDLE and len(world.lengths) == 1
    assert world.talker.questions.waiting == 0 and world.talker.counts.errors == 0


def test_after_a_lost_link_the_question_goes_up_again_whole_on_the_stream() -> None:
    world = LossyWorld(loss=0.3, seed=2)
    world.link(True)
    world.run(np.concatenate([sound(0.5, 0.0), sound(0.6, 0.3)]))
    world.link(False)
    world.run(sound(0.2, 0.3))
    world.link(True)
    before = world.datagrams
    world.run(np.concatenate([sound(0.4, 0.3), sound(3.0, 0.0)]))
    ((number, frames),) = world.lengths.items()
    assert world.questions[number].counts.received == frames and world.questions[number].complete
    assert world.datagrams > before  # the echo may be lost, the question not
    assert world.talker.state is TalkState.IDLE and world.talker.questions.waiting == 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 30), loss=st.floats(0.0, 0.6), repeated=st.floats(0.0, 0.5))
@example(seed=254, loss=0.0, repeated=0.0625)  # the link goes between a question's end and its echo's
def test_whatever_is_lost_repeated_or_late_every_question_ends_once_and_nothing_hangs(
    seed: int, loss: float, repeated: float
) -> None:
    rng = np.random.default_rng(seed)
    world = LossyWorld(loss=loss, repeated=repeated, seed=seed, conversations=100, activity={"end_ms": 100.0})
    up = False
    for _ in range(12):
        happens = rng.random()
        if happens < 0.25:
            up = not up
            world.link(up)
        world.run(sound(float(rng.uniform(0.1, 0.6)), 0.3 if happens < 0.65 else 0.0, seed))
    world.run(sound(1.0, 0.0))
    world.link(False)
    world.link(True)
    world.run(sound(5.0, 0.0))
    assert len(world.lengths) == world.talker.counts.questions
    assert world.talker.state is TalkState.IDLE and world.talker.questions.waiting == 0
    steps = {(TalkState[a], TalkState[b]) for a, b in pairwise(["IDLE", *world.states])}
    assert steps <= {(before, after) for (before, _), after in TALK_TABLE.items()}
