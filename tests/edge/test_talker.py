"""The dialogue at the device, in virtual time: states, questions that survive a lost link, answers, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.codec.opus_stream import OpusEncoderStream, OpusSettings
from streamsplit.edge.activity import EnergyDetector, SpeechGate, make_detector
from streamsplit.edge.outages import LOUDSPEAKER, MICROPHONE, DeviceChange
from streamsplit.edge.talk_settings import ActivitySettings, TalkSettings
from streamsplit.edge.talker import Talker, tones
from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.splitting.link import LinkEstimate
from streamsplit.wire.dialogue import Kind, Utterance, pack_utterance, unpack_utterance
from streamsplit.wire.talk_states import TALK_TABLE, TalkState

FRAME = 320
RATE = 16_000


def noise(seconds: float, level: float = 0.001, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def speech(seconds: float, seed: int = 1) -> np.ndarray:
    """A buzz that swells and fades, far above the noise."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 140 * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t + seed))).astype(np.float32)


def make(**changes: Any) -> Talker:
    return Talker(TalkSettings.from_mapping({"activity": {"end_ms": 300.0}, **changes}))


class World:
    """A talker, a link of so many milliseconds each way, and a server that answers each question once."""

    def __init__(self, talker: Talker, *, one_way_ms: float = 20.0, answer: Callable[[int], int] = lambda n: n) -> None:
        self.talker, self.one_way_ms, self.answer = talker, one_way_ms, answer
        self.now_ms = 0.0
        self.up = False
        self.down: list[tuple[float, bytes, bool]] = []
        self.sent: list[tuple[float, Utterance, bool]] = []
        self.partial: dict[int, list[bytes]] = {}
        self.questions: list[tuple[int, int]] = []  # (number, frames) as the server has them
        self.stops: list[int] = []
        self.out: list[np.ndarray] = []
        self.states: list[str] = []
        self.events: list[tuple[str, str]] = []

    def link(self, up: bool) -> None:
        self.up = up
        self.down.clear()
        self.partial.clear()
        self.talker.link(up, self.now_ms)

    def run(self, sound: np.ndarray) -> None:
        for at in range(0, len(sound) - FRAME + 1, FRAME):
            self.now_ms += 20.0
            self.talker.hear(sound[at : at + FRAME], self.now_ms)
            self.step()

    def step(self) -> None:
        ready, outgoing = self.talker.ready, self.talker.outgoing(self.now_ms)
        assert ready == bool(outgoing)
        for message in outgoing:
            piece = unpack_utterance(message.payload)
            self.sent.append((self.now_ms, piece, message.final))
            self.serve(piece, message.final)
        while self.down and self.down[0][0] <= self.now_ms:
            _, payload, final = self.down.pop(0)
            self.talker.take(payload, final, self.now_ms)
        self.out.append(self.talker.play(self.now_ms))
        self.talker.tick(self.now_ms)
        for event in self.talker.events():
            self.events.append((event.kind, event.value))
            if event.kind == "state":
                self.states.append(event.value)

    def serve(self, piece: Utterance, final: bool) -> None:
        if piece.kind is Kind.STOP:
            self.stops.append(piece.utterance)
            return
        frames = self.partial.setdefault(piece.utterance, [])
        assert piece.first == len(frames)
        frames += piece.frames
        if not final:
            return
        if piece.utterance in dict(self.questions):  # it came before: the server says so, and answers nothing
            frames.clear()
            again = pack_utterance(Utterance(piece.utterance, 0, Kind.OPUS, 20.0, ()))
            self.down.append((self.now_ms + 2 * self.one_way_ms, again, True))
            return
        self.questions.append((piece.utterance, len(frames)))
        arrives = self.now_ms + 2 * self.one_way_ms
        count = self.answer(len(frames))
        encoder = OpusEncoderStream(OpusSettings(dtx=False))
        coded = [encoder.encode(speech(0.02)) for _ in range(count)]
        for first in range(0, count, 3):
            data = pack_utterance(Utterance(piece.utterance, first, Kind.OPUS, 20.0, tuple(coded[first : first + 3])))
            self.down.append((arrives + 20.0 * first, data, False))
        end = pack_utterance(Utterance(piece.utterance, count, Kind.OPUS, 20.0, ()))
        self.down.append((arrives + 20.0 * count, end, True))
        self.down.sort(key=lambda arrival: arrival[0])


def test_a_question_goes_through_the_seeds_states_and_its_answer_is_played() -> None:
    world = World(make())
    world.link(True)
    world.run(np.concatenate([noise(0.5), speech(1.0), noise(2.5)]))
    assert world.states == ["RECORDING", "STREAMING", "PROCESSING", "RECEIVING", "PLAYING", "IDLE"]
    ((_, frames),) = world.questions
    assert frames == pytest.approx((1.0 + 0.2 + 0.3) * 50, abs=5)  # with its lead and the silence that ends it
    heard = np.concatenate(world.out)
    loud = np.flatnonzero(np.abs(heard) > 0.05)
    assert len(loud) and loud[-1] - loud[0] == pytest.approx(frames * FRAME, rel=0.1)
    assert world.talker.counts.answers == 1 and world.talker.questions.waiting == 0
    assert world.talker.questions.delivered == 1


def test_speech_goes_up_while_it_is_spoken_in_messages_of_three_frames() -> None:
    world = World(make())
    world.link(True)
    world.run(np.concatenate([noise(0.5), speech(1.0)]))
    pieces = [piece for _, piece, _ in world.sent]
    assert {len(piece.frames) for piece in pieces} == {3} and len(pieces) >= 15
    times = [now for now, piece, _ in world.sent if piece.first >= 12]  # behind the lead, which goes at once
    assert {after - before for before, after in pairwise(times)} == {60.0}


@pytest.mark.parametrize("frames", [30, 31, 32])
def test_a_question_that_is_answered_while_it_is_asked_still_goes_up_to_its_end(frames: int) -> None:
    """An echo: each message comes back at once. However many frames are left at the end, they and the end arrive."""
    talker = make(activity={"kind": "push", "lead_ms": 20.0})
    sent: list[tuple[int, int, bool]] = []
    talker.link(True, 0.0)
    talker.press(0.0)

    def pass_on(now_ms: float) -> None:
        for message in talker.outgoing(now_ms):
            piece = unpack_utterance(message.payload)
            sent.append((piece.first, len(piece.frames), message.final))
            talker.take(pack_utterance(piece._replace(live=True)), message.final, now_ms)

    for place in range(frames):
        now_ms = 20.0 * (place + 1)
        talker.hear(speech(0.02), now_ms)
        if place == frames - 1:
            talker.release(now_ms)
            late = pack_utterance(Utterance(talker.answer.number, 0, Kind.OPUS, 20.0, (b"\xfc",), 0, True))
            talker.take(late, False, now_ms)  # more of the echo, before the rest has gone up
            assert talker.questions.waiting == 1
        pass_on(now_ms)
    assert sum(count for _, count, _ in sent) == frames and [final for *_, final in sent].count(True) == 1
    assert sent[-1][2] and talker.questions.waiting == 0


def test_playback_begins_long_before_the_answer_is_complete() -> None:
    world = World(make(), answer=lambda n: 200)
    world.link(True)
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(1.2)]))
    assert world.talker.state is TalkState.PLAYING and world.down  # more of it is still to come
    asked = next(now for now, _, final in world.sent if final)
    first = next(20.0 * (i + 1) for i, frame in enumerate(world.out) if np.abs(frame).max() > 0.01)
    assert first - asked <= 40.0 + 3 * 60.0


def test_who_speaks_on_before_the_answer_begins_loses_no_question() -> None:
    world = World(make(), one_way_ms=800.0, answer=lambda n: 100)
    world.link(True)
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(0.6), speech(0.5), noise(1.0)]))
    assert "PROCESSING" in world.states[: world.states.index("RECORDING", 1)]
    first, second = (number for number, _ in world.questions)
    assert world.stops == [first]  # said when its answer began, not before the server has heard it
    world.run(noise(5.0))
    counts = world.talker.counts
    assert counts.questions == world.talker.questions.delivered == 2 and counts.answers == 1 and counts.errors == 0
    assert world.stops == [first] and second in dict(world.questions) and world.talker.questions.waiting == 0


def test_in_parts_the_same_sound_plays_and_begins_within_one() -> None:
    """Two talkers with one answer each; one plays frames of 20 ms, one parts of 5 ms on a clock between them."""
    encoder = OpusEncoderStream(OpusSettings(dtx=False))
    coded = tuple(encoder.encode(frame) for frame in speech(0.4).reshape(-1, FRAME))
    played = []
    for part_ms in (20.0, 5.0):
        talker, out, count = make(activity={"kind": "push"}), [], round(16 * part_ms)
        talker.link(True, 0.0)
        talker.press(0.0)
        talker.hear(speech(0.1), 0.0)
        talker.release(0.0)
        talker.outgoing(0.0)
        for at_ms in np.arange(0.0, 800.0, part_ms):
            if at_ms - part_ms < 101.0 <= at_ms:
                for first in range(0, len(coded), 4):
                    piece = Utterance(talker.answer.number, first, Kind.OPUS, 20.0, coded[first : first + 4])
                    talker.take(pack_utterance(piece), first + 4 == len(coded), 101.0)
            out.append(talker.play(at_ms, count))
            assert len(out[-1]) == count
        assert talker.counts.answers == 1
        played.append(np.concatenate(out))
    whole, parts = (np.trim_zeros(sound) for sound in played)
    assert np.array_equal(whole, parts)
    assert np.flatnonzero(played[0])[0] - np.flatnonzero(played[1])[0] == 16 * (120 - 105)


def test_speaking_while_the_answer_plays_stops_it_and_asks_anew() -> None:
    world = World(make(), answer=lambda n: 300)
    world.link(True)
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(1.5), 3.0 * speech(0.5)]))
    assert world.states[-3:] == ["PLAYING", "RECORDING", "STREAMING"]
    assert world.talker.counts.barge_ins == 1 and world.stops == [world.questions[0][0]]
    assert np.abs(world.out[-1]).max() == 0.0
    quiet = World(make(barge_in=False), answer=lambda n: 100)
    quiet.link(True)
    quiet.run(np.concatenate([noise(0.5), speech(0.5), noise(1.5), 3.0 * speech(0.5), noise(3.0)]))
    assert quiet.talker.counts.barge_ins == 0 and quiet.talker.counts.answers == 1


def test_push_to_talk_begins_and_ends_where_the_button_says() -> None:
    world = World(make(activity={"kind": "push", "lead_ms": 20.0}))
    world.link(True)
    world.run(speech(0.5))
    assert world.states == []
    world.talker.press(world.now_ms)
    world.run(noise(0.4))
    world.talker.release(world.now_ms)
    world.run(noise(0.1))
    assert world.states[:3] == ["RECORDING", "STREAMING", "PROCESSING"]
    assert world.questions[0][1] == 20 + 1
    world.talker.press(world.now_ms)  # a question shorter than a message
    world.talker.hear(noise(0.02), world.now_ms)
    world.talker.release(world.now_ms)
    world.step()
    assert world.questions[1][1] == 2


def test_without_a_link_questions_are_kept_tones_play_and_everything_goes_up_in_order_once() -> None:
    world = World(make())
    for seed in range(3):
        world.run(np.concatenate([noise(0.5, seed=seed), speech(0.6), noise(1.5)]))
    assert world.states == ["RECORDING", "IDLE", "RECEIVING", "PLAYING", "IDLE"] * 3
    played = np.concatenate(world.out)
    assert np.abs(played).max() == pytest.approx(np.abs(tones()).max())
    assert world.talker.counts.stored == world.talker.questions.waiting == 3 and not world.sent
    world.link(True)
    world.run(noise(1.0))
    numbers = [number for number, _ in world.questions]
    assert numbers == sorted(numbers) and len(numbers) == 3
    assert world.talker.questions.waiting == 0 and world.talker.state is TalkState.IDLE
    world.link(False)
    world.link(True)
    world.run(noise(0.5))
    assert len(world.questions) == 3  # nothing twice


@pytest.mark.parametrize("lost_at_s", [0.9, 1.3, 1.85, 2.0, 2.3])
def test_a_link_lost_in_any_state_loses_no_question(lost_at_s: float) -> None:
    world = World(make(), one_way_ms=100.0, answer=lambda n: 60)
    world.link(True)
    sound = np.concatenate([noise(0.5), speech(1.0), noise(3.0)])
    cut = round(lost_at_s * RATE) // FRAME * FRAME
    world.run(sound[:cut])
    before = world.talker.state
    world.link(False)
    world.run(sound[cut:])
    world.link(True)
    world.run(noise(2.0))
    assert len(world.questions) == 1, before
    assert world.talker.state is TalkState.IDLE and world.talker.questions.waiting == 0


def test_what_is_kept_is_bounded() -> None:
    world = World(make(conversations=2, recording_messages=5, activity={"end_ms": 100.0}))
    for seed in range(4):
        world.run(np.concatenate([noise(0.6), speech(0.5 if seed < 3 else 3.0), noise(0.6)]))
    world.run(noise(1.0))
    questions = world.talker.questions
    assert questions.waiting == 2 and questions.forgotten >= 2
    world.link(True)
    world.run(noise(0.5))
    assert all(frames <= 16 for _, frames in world.questions)


def test_a_long_question_with_a_link_is_not_cut_and_with_a_lost_one_keeps_its_beginning() -> None:
    whole = World(make(recording_messages=5))
    whole.link(True)
    whole.run(np.concatenate([noise(0.5), speech(2.0), noise(1.0)]))
    assert whole.questions[0][1] > 100
    cut = World(make(recording_messages=5))
    cut.link(True)
    cut.run(np.concatenate([noise(0.5), speech(2.0)]))
    cut.link(False)
    cut.run(noise(1.0))
    cut.link(True)
    cut.run(noise(0.5))
    assert [frames for _, frames in cut.questions] == [15]


def test_states_that_last_too_long_fail_with_a_reason_and_recover_by_themselves() -> None:
    mute = World(make(processing_s=0.5, error_s=0.2), answer=lambda n: 0)
    mute.link(True)
    mute.serve = lambda piece, final: None  # type: ignore[method-assign]
    mute.run(np.concatenate([noise(0.5), speech(0.5), noise(2.0)]))
    said = [value for kind, value in mute.events if kind == "error"]
    assert mute.states[-2:] == ["ERROR", "IDLE"] and said == ["no answer within 0.5 s; the question is kept"]
    assert mute.talker.questions.waiting == 1
    del mute.serve  # type: ignore[method-assign]  # the next connection has a server that answers
    mute.link(False)
    mute.link(True)
    mute.run(noise(1.0))
    assert mute.talker.questions.waiting == 0 and mute.talker.questions.delivered == 1
    stalled = World(make(stalled_s=0.5, error_s=0.2), answer=lambda n: 100)
    stalled.link(True)
    stalled.run(np.concatenate([noise(0.5), speech(0.5), noise(0.6)]))
    assert stalled.talker.state is TalkState.PLAYING
    stalled.down.clear()
    stalled.run(noise(2.0))
    assert stalled.states[-2:] == ["ERROR", "IDLE"]
    assert any("stopped in the middle" in value for kind, value in stalled.events if kind == "error")


def test_a_loudspeaker_that_takes_nothing_any_more_is_an_error() -> None:
    world = World(make(stalled_s=0.5, error_s=0.2), answer=lambda n: 100)
    world.link(True)
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(0.6)]))
    assert world.talker.state is TalkState.PLAYING
    for _ in range(40):
        world.now_ms += 20.0
        world.talker.tick(world.now_ms)
    said = [event.value for event in world.talker.events() if event.kind == "error"]
    assert said == ["the loudspeaker takes no sound any more (0.5 s)"] and world.talker.state is TalkState.IDLE


@pytest.mark.parametrize("heard_s", [0.2, 0.6, 1.0, 1.4, 1.6])  # a pause, speech, its end, the answer
@pytest.mark.parametrize("device", [MICROPHONE, LOUDSPEAKER])
def test_a_device_that_goes_away_in_any_state_is_an_error_with_its_reason_and_idle_again(
    heard_s: float, device: str
) -> None:
    world = World(make(error_s=0.2))
    world.link(True)
    world.run(np.concatenate([noise(0.5), speech(0.6), noise(1.0)])[: round(heard_s * RATE)])
    world.talker.changed(DeviceChange(device, "unplugged"), world.now_ms)
    assert world.talker.state is TalkState.ERROR
    for _ in range(15):  # no sound comes
        world.now_ms += 20.0
        world.step()
    assert world.states[-2:] == ["ERROR", "IDLE"]
    assert [text for kind, text in world.events if kind == "error"] == [f"{device}: unplugged"]
    world.talker.changed(DeviceChange(device, "", 12.34), world.now_ms)
    answers, asked = world.talker.counts.answers, len(world.questions)
    world.run(np.concatenate([noise(0.5), speech(0.6), noise(2.5)]))
    assert world.talker.counts.answers == answers + 1 and len(world.questions) == asked + 1
    assert [text for kind, text in world.events if kind == "device"] == [f"{device}: back after 12.3 s"]
    assert world.talker.counts.errors == 1 and world.talker.state is TalkState.IDLE


def test_no_sound_from_before_an_outage_is_joined_to_a_question_behind_it() -> None:
    world = World(make(codec="pcm16", activity={"kind": "push", "lead_ms": 200.0}))
    world.link(True)
    world.serve = lambda piece, final: None  # type: ignore[method-assign]
    world.talker.hear(np.full(10 * FRAME + 100, 0.5, np.float32), 200.0)
    world.talker.changed(DeviceChange(MICROPHONE, "unplugged"), 300.0)
    world.talker.tick(1_400.0)
    world.talker.press(1_400.0)  # with no microphone there is nothing to ask
    assert world.talker.state is TalkState.ERROR and not world.talker.questions.asking
    world.talker.tick(2_500.0)
    world.talker.changed(DeviceChange(MICROPHONE, "", 3.0), 3_000.0)
    world.talker.press(3_000.0)
    world.now_ms = 3_000.0
    world.run(np.full(30 * FRAME, 0.25, np.float32))
    heard = np.frombuffer(b"".join(frame for _, piece, _ in world.sent for frame in piece.frames), "<i2")
    assert len(heard) == 30 * FRAME and (np.abs(heard / 32_768 - 0.25) < 1e-3).all()


def test_an_answer_without_a_loudspeaker_is_an_error_the_server_may_stop_and_nothing_was_played() -> None:
    world = World(make(error_s=0.2), answer=lambda n: 100)
    world.link(True)
    world.talker.changed(DeviceChange(LOUDSPEAKER, "unplugged"), 0.0)
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(1.0)]))
    said = [text for kind, text in world.events if kind == "error"]
    assert said == ["loudspeaker: unplugged"] * 2 and world.talker.counts.answers == 0
    assert world.stops == [world.questions[0][0]] and world.talker.questions.waiting == 0
    assert not np.abs(np.concatenate(world.out)).max() and world.talker.state is TalkState.IDLE


def test_a_refusal_of_an_earlier_question_is_told_and_disturbs_no_other() -> None:
    world = World(make(), answer=lambda n: 0)
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(1.0)]))
    (number,) = world.talker.questions.waiting_numbers()
    world.talker.press(world.now_ms)
    world.talker.refused("no such luck", world.now_ms, number)
    assert world.talker.state is TalkState.RECORDING and world.talker.questions.waiting == 0
    assert ("error", "no such luck") in [(event.kind, event.value) for event in world.talker.events()]


@pytest.mark.parametrize("frames_per_message", [1, 3])
def test_as_much_is_kept_whatever_the_messages_on_the_link_hold(frames_per_message: int) -> None:
    world = World(make(frames_per_message=frames_per_message, recording_messages=20))
    world.run(np.concatenate([noise(0.5), speech(3.0)]))
    world.link(True)
    world.run(noise(2.0))
    assert world.questions[0][1] == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"garbage", "expected at least 16"),
        (pack_utterance(Utterance(0, 0, Kind.OPUS, 60.0, (b"\xfc\xff",))), "got frames of 60.0 ms, expected 20.0"),
        (pack_utterance(Utterance(0, 0, Kind.OPUS, 20.0, (b"\x03\xff\xff",) * 4)), "answer: opus"),
        (pack_utterance(Utterance(0, 0, Kind.PCM16, 20.0, (b"\x00\x00",) * 4)), "got 1 samples, expected 320"),
        (pack_utterance(Utterance(0, 0, Kind.TEXT, 0.0, (b"\xff",))), "not UTF-8"),
    ],
)
def test_an_answer_that_cannot_be_played_is_an_error_with_its_reason(payload: bytes, text: str) -> None:
    world = World(make(error_s=0.1))
    world.link(True)
    world.serve = lambda piece, final: None  # type: ignore[method-assign]
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(0.5)]))
    number = world.sent[-1][1].utterance
    if payload != b"garbage":
        payload = pack_utterance(unpack_utterance(payload)._replace(utterance=number))
    world.talker.take(payload, True, world.now_ms)
    world.run(noise(1.0))
    assert world.states[-2:] == ["ERROR", "IDLE"]
    assert any(text in value for kind, value in world.events if kind == "error"), world.events


def test_a_refusal_of_the_server_is_an_error_and_the_question_is_not_asked_again() -> None:
    world = World(make(error_s=0.1))
    world.link(True)
    world.serve = lambda piece, final: None  # type: ignore[method-assign]
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(0.5)]))
    world.talker.refused("the responder raised: no", world.now_ms)
    world.run(noise(0.5))
    assert world.talker.state is TalkState.IDLE and world.talker.questions.waiting == 0


def test_text_is_handed_on_and_an_answer_without_sound_ends_the_dialogue() -> None:
    world = World(make())
    world.link(True)
    world.serve = lambda piece, final: None  # type: ignore[method-assign]
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(0.5)]))
    number = world.sent[-1][1].utterance
    world.talker.take(pack_utterance(Utterance(number, 0, Kind.TEXT, 0.0, (b"a kettle",))), False, world.now_ms)
    assert world.talker.state is TalkState.PROCESSING
    world.talker.take(pack_utterance(Utterance(number, 0, Kind.OPUS, 20.0, ())), True, world.now_ms)
    world.run(noise(0.1))
    assert world.states[-1] == "IDLE" and ("text", "a kettle") in world.events


def test_pcm_works_without_opus(monkeypatch: pytest.MonkeyPatch) -> None:
    import streamsplit.codec.opus as opus
    from streamsplit.errors import AudioError

    def missing() -> None:
        raise AudioError("coding audio with Opus needs libopus: apt-get install libopus0")

    monkeypatch.setattr("streamsplit.codec.opus_stream.libopus", missing)
    assert opus.LARGEST_PACKET
    with pytest.raises(AudioError, match="apt-get install libopus0"):
        make()
    world = World(make(codec="pcm16"), answer=lambda n: 0)
    world.link(True)
    world.serve = lambda piece, final: None  # type: ignore[method-assign]
    world.run(np.concatenate([noise(0.5), speech(0.5), noise(0.5)]))
    piece = world.sent[3][1]
    assert piece.kind is Kind.PCM16 and {len(frame) for frame in piece.frames} == {640}


def test_speech_is_coded_for_the_link_while_it_goes_up_and_a_slow_one_is_waited_for_longer() -> None:
    talker = make(activity={"kind": "push"})

    def known(bps: float, rtt_ms: float = 20.0) -> LinkEstimate:
        return LinkEstimate(bps, 0.0, rtt_ms, 0.0, 0)

    talker.follow(known(20e3), 0.0)
    assert talker.questions.bitrate_bps == 24_000 and talker.questions.bitrates.changes == 0  # nobody speaks
    talker.link(True, 0.0)
    talker.press(0.0)
    for bps, expected in ((20e3, 8_000), (64e3, 16_000), (10e6, 32_000), (float("nan"), 32_000)):
        talker.follow(known(bps), 0.0)
        talker.hear(speech(0.04), 0.0)
        assert talker.questions.bitrate_bps == expected
    assert talker.questions.bitrates == (8_000, (8_000 + 16_000 + 2 * 32_000) / 4, 32_000, 3)
    fixed = make(adapt_bitrate=False, activity={"kind": "push"})
    fixed.link(True, 0.0)
    fixed.press(0.0)
    fixed.follow(known(20e3), 0.0)
    assert fixed.questions.bitrate_bps == 24_000
    talker.follow(known(float("nan"), 150.0), 0.0)
    assert talker.answer.jitter.settings.least_ms == 100.0  # five frames on a slow link
    talker.follow(known(float("nan"), 50.0), 0.0)
    assert talker.answer.jitter.settings.least_ms == 40.0


def test_clipping_and_dead_microphones_are_counted() -> None:
    talker = make()
    talker.hear(np.zeros(FRAME * 5, np.float32), 100.0)
    talker.hear(np.ones(FRAME * 2, np.float32), 140.0)
    assert (talker.counts.frames, talker.counts.silent_frames, talker.counts.clipped_frames) == (7, 5, 2)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 30))
def test_whatever_happens_the_table_is_kept_and_every_question_arrives_once(seed: int) -> None:
    """Speech, pauses and cuts of the link at random. The talker raises where it leaves the table."""
    rng = np.random.default_rng(seed)
    world = World(make(conversations=100, activity={"end_ms": 100.0}), answer=lambda n: int(rng.integers(0, 40)))
    for _ in range(25):
        happens = rng.random()
        if happens < 0.3:
            world.link(not world.up)
        elif happens < 0.65:
            world.run(speech(float(rng.uniform(0.05, 0.6))))
        else:
            world.run(noise(float(rng.uniform(0.05, 0.8))))
    world.run(noise(1.0))
    world.link(False)
    world.link(True)
    world.run(noise(3.0))
    numbers = [number for number, _ in world.questions]
    assert len(set(numbers)) == len(numbers) == world.talker.counts.questions
    assert world.talker.state is TalkState.IDLE and world.talker.questions.waiting == 0
    steps = {(TalkState[a], TalkState[b]) for a, b in pairwise(["IDLE", *world.states])}
    assert steps <= {(before, after) for (before, _), after in TALK_TABLE.items()}


def test_energy_hears_speech_above_a_noise_that_grows_slowly() -> None:
    s = ActivitySettings()
    detector = EnergyDetector(s, 20.0)
    quiet = [detector.speaks(frame, 0.0) for frame in noise(2.0).reshape(-1, FRAME)]
    assert not any(quiet) and detector.speaks(speech(0.02), 0.0) and not detector.speaks(speech(0.02) * 0.001, 0.0)
    assert not detector.speaks(speech(0.02), 60.0)
    louder = noise(20.0, level=0.02)
    judged = [detector.speaks(frame, 0.0) for frame in louder.reshape(-1, FRAME)]
    assert not any(judged[-100:])  # a fan that was switched on is noise after a while


def test_a_gate_opens_and_closes_after_so_much_in_a_row() -> None:
    gate = SpeechGate(ActivitySettings(start_ms=60.0, end_ms=100.0), 20.0)
    said = [1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    changes = [i for i, speaks in enumerate(said) if gate.take(bool(speaks))]
    assert changes == [5, 16] and not gate.open


def test_webrtc_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="got webrtc with frames of 60"):
        Talker(TalkSettings.from_mapping({"activity": {"kind": "webrtc"}, "opus": {"frame_ms": 60.0}}))
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[voice\]'"):
        Talker(TalkSettings.from_mapping({"activity": {"kind": "webrtc"}}))


def test_webrtc_hears_a_voice_and_no_silence_and_begins_a_question() -> None:
    pytest.importorskip("webrtcvad")
    webrtc = ActivitySettings(kind="webrtc")
    time_s = np.arange(RATE) / RATE
    buzz = 0.15 * sum(np.sin(2 * np.pi * 140 * k * time_s) / k for k in range(1, 20))
    voiced = (buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time_s))).astype(np.float32)

    def share(sound: np.ndarray, extra_db: float = 0.0) -> float:
        detector = make_detector(webrtc, 20.0)
        assert detector is not None
        return float(np.mean([detector.speaks(frame, extra_db) for frame in sound.reshape(-1, FRAME)]))

    assert share(voiced) > 0.9 and share(np.zeros(RATE, np.float32)) == 0.0
    assert share(voiced, extra_db=90.0) == 0.0  # an answer's sound counts as much quieter
    talker = Talker(TalkSettings.from_mapping({"codec": "pcm16", "activity": {"kind": "webrtc", "end_ms": 200.0}}))
    for place, frame in enumerate(np.concatenate([voiced, np.zeros(RATE, np.float32)]).reshape(-1, FRAME)):
        talker.hear(frame, 20.0 * place)
    assert talker.counts.questions == talker.questions.waiting == 1
