"""An echo's latency and its stages in virtual time: a real talker with its codec and jitter buffer, the shaper's own
links, known delays. One real run is in tests/runtime."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from streamsplit.cli.main import main
from streamsplit.codec.opus_stream import OpusDecoderStream, OpusEncoderStream
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.edge.talker import Talker
from streamsplit.evaluation.talk_plot import save_stages
from streamsplit.evaluation.talk_stages import STAGES, FrameWatch, summary
from streamsplit.network.bandwidth import constant_trace
from streamsplit.network.link import LinkDirection
from streamsplit.wire.dialogue import pack_utterance, unpack_utterance

FRAME, FRAMES, SKIPPED = 320, 150, 60
LINK = {"uplink": 20.0, "downlink": 20.0}


class Chain:
    """Microphone, device, link, server and loudspeaker with a delay for each stage, ms.

    Each event has its own time; what takes time within a call, the codec, moves the clock until the next event.
    """

    def __init__(self, delays: dict[str, float], server_ahead_ms: float = 0.0) -> None:
        self.delays = {**dict.fromkeys(STAGES, 0.0), **delays}
        self.server_ahead_ms = server_ahead_ms
        self.now_ms = 0.0
        self.talker = Talker(TalkSettings.from_mapping({"activity": {"kind": "push", "lead_ms": 0.0}}))
        self.watch = FrameWatch(lambda: self.now_ms)
        self.talker.watch(self.watch)
        self.up, self.down = (LinkDirection(constant_trace(10e6, 2 * self.delays[way])) for way in LINK)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()
        frequencies = np.fft.rfftfreq(FRAMES * FRAME, 1 / 16_000)
        noise = np.fft.rfft(np.random.default_rng(1).standard_normal(FRAMES * FRAME))
        self.said = np.fft.irfft(noise * ((frequencies > 200) & (frequencies < 1_500))).astype(np.float32)
        self.played: list[tuple[float, np.ndarray]] = []

    def run(self) -> dict[str, Any]:
        self.talker.link(True, 0.0)
        self.talker.press(0.0)
        for block in range(FRAMES):
            self._at((block + 1) * 20.0 + self.delays["capture"], partial(self._hear, block))
        for part in range(2 * FRAMES + 50):  # the last ones are heard, too
            self._at(part * 10.0 + 1.0, self._speak)
        with pytest.MonkeyPatch.context() as patch:
            self._slow(patch, OpusEncoderStream, "encode")
            self._slow(patch, OpusDecoderStream, "decode")
            while self.events:
                self.now_ms, _, work = heapq.heappop(self.events)
                work()
        moments = self.watch.moments(after=SKIPPED)
        assert len(moments.played) > 50
        return summary(moments, self.talker.questions.lookahead_ms, one_clock=not self.server_ahead_ms)

    def heard_after_ms(self) -> float:
        """By how much the sound that was played is behind what was said."""
        heard = np.zeros(2 * len(self.said), np.float32)
        for at_ms, samples in self.played:
            place = round(16 * at_ms)
            heard[place : place + len(samples)] = samples
        spectrum = np.fft.rfft(heard) * np.conj(np.fft.rfft(self.said, len(heard)))
        return float(np.fft.irfft(spectrum).argmax()) / 16

    def _at(self, time_ms: float, work: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time_ms, next(self.count), work))

    def _slow(self, patch: pytest.MonkeyPatch, kind: type, stage: str) -> None:
        real = getattr(kind, stage)

        def slow(codec: Any, data: Any) -> Any:
            made = real(codec, data)
            self.now_ms += self.delays[stage]
            return made

        patch.setattr(kind, stage, slow)

    def _hear(self, block: int) -> None:
        self.watch.begins(block * 20.0)
        self.talker.hear(self.said[block * FRAME : (block + 1) * FRAME], self.now_ms)
        for out in self.talker.outgoing(self.now_ms):
            arrives_ms = 1000 * self.up.schedule(self.now_ms / 1000, len(out.payload))[1]
            self._at(arrives_ms + self.delays["processing"], partial(self._answer, out.payload))

    def _answer(self, payload: bytes) -> None:
        piece = unpack_utterance(payload)._replace(held_ms=round(self.delays["processing"]), live=True)
        left_ms = int(self.now_ms + self.server_ahead_ms) % 2**32
        arrives_ms = 1000 * self.down.schedule(self.now_ms / 1000, len(payload))[1]
        self._at(arrives_ms, lambda: self.talker.take(pack_utterance(piece), False, self.now_ms, left_ms) and None)

    def _speak(self) -> None:
        part = self.talker.play(self.now_ms, FRAME // 2)
        self.now_ms += self.delays["playout"]
        self.watch.plays()
        self.played.append((self.now_ms, part))


def means(found: dict[str, Any]) -> dict[str, float]:
    return {name: values["mean"] for name, values in found["stages"].items()}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return Chain(LINK).run()


def test_stages_add_up_to_the_total_which_is_that_of_the_sound_itself(tmp_path) -> None:
    """The oracle is the sound: what is played, held against what was said."""
    chain = Chain({**LINK, "capture": 3.0, "encode": 2.0, "processing": 7.0, "playout": 4.0})
    found = chain.run()
    assert tuple(found["stages"]) == STAGES
    assert found["total"]["mean"] == pytest.approx(sum(means(found).values()), abs=0.01 * len(STAGES))
    assert found["total"]["p50"] == pytest.approx(chain.heard_after_ms(), abs=0.2)
    for name, parts in found["parts"].items():
        assert sum(part["mean"] for part in parts.values()) == pytest.approx(means(found)[name], abs=0.03)
    save_stages({**found, "message_ms": 60.0}, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_without_delays_a_stage_is_what_it_cannot_be_without(plain: dict[str, Any]) -> None:
    """A frame has 20 ms, and a message holds its first frame for 40, its last for none; 10 Mbit/s take .2 ms."""
    found = means(plain)
    assert found["capture"] == pytest.approx(20.0 + (40.0 + 20.0 + 0.0) / 3, abs=0.5)
    assert found["encode"] == 6.5 and found["decode"] == 0.0 and found["processing"] == 0.0
    assert found["uplink"] == pytest.approx(20.2, abs=0.6) and found["downlink"] == pytest.approx(20.2, abs=0.6)
    assert 40.0 - 10.0 <= found["playout"] <= 40.0 + 20.0 + 10.0


@pytest.mark.parametrize("stage", STAGES)
def test_a_delay_shows_in_its_own_stage_and_in_no_other(stage: str, plain: dict[str, Any]) -> None:
    """Delays of a multiple of 10 ms, so that the loudspeaker's steps of that hide nothing."""
    slow = Chain({**LINK, stage: LINK.get(stage, 0.0) + 30.0}).run()
    for name, value in means(slow).items():
        assert value - means(plain)[name] == pytest.approx(30.0 if name == stage else 0.0, abs=0.03), name
    assert slow["total"]["mean"] - plain["total"]["mean"] == pytest.approx(30.0, abs=0.03)


def test_a_server_with_another_clock_is_believed_to_be_as_far_up_as_down(plain: dict[str, Any]) -> None:
    found = Chain(LINK, server_ahead_ms=2.0**32 - 1_500.0).run()  # its clock begins anew meanwhile
    assert found["clocks"].startswith("two") and plain["clocks"] == "one"
    for name, value in means(found).items():
        assert value == pytest.approx(means(plain)[name], abs=0.6), name


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code, text in (
        (["--iterations", "3"], 2, "--iterations 3"),
        (["--one-way-ms", "-1"], 2, "--one-way-ms -1"),
        (["--down-ms", "-1"], 2, "--down-ms -1"),
        (["--loss", "5"], 2, "--loss 5 with --transport websocket"),
        (["--loss", "100", "--transport", "quic"], 2, "expected 0 to below 100"),
    ):
        assert main(["measure-latency", *words]) == code
        shown = capsys.readouterr().err
        assert text in shown and shown.count("\n") == 1
