"""A device's questions: coded frame by frame, handed out message by message, kept until the server has answered.

What a lost link swallowed goes up again, whole and under the same number, by which the server knows it. So many
messages of a question are kept, and so many questions; older ones give way.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.opus_stream import OpusEncoderStream
from streamsplit.codec.pcm import pack_pcm
from streamsplit.edge.answer import Trace, untraced
from streamsplit.edge.question_store import KeptQuestion
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.wire.dialogue import Kind, Utterance, pack_utterance

Floats = NDArray[np.float32]
_PCM_BPS = 256_000
_MESSAGE_MS = 60.0  # of sound: what a kept message holds at least, however small those on the link are


class Outgoing(NamedTuple):
    """One DIALOGUE frame to send."""

    payload: bytes
    sequence: int
    final: bool
    captured_ms: float  # when its last sample was heard


class Bitrates(NamedTuple):
    """What speech was coded at so far, over its frames; nan before the first."""

    least_bps: float = math.nan
    mean_bps: float = math.nan
    most_bps: float = math.nan
    changes: int = 0


class _Packet(NamedTuple):
    data: bytes
    captured_ms: float


class _Question:
    def __init__(self, number: int, kind: Kind, frame_ms: float, live: bool) -> None:
        self.number, self.kind, self.frame_ms, self.live = number, kind, frame_ms, live
        self.packets: list[_Packet] = []
        self.over = False
        self.sent = 0  # packets handed to this connection
        self.closed = False  # its end was handed out, too


class Questions:
    """One at a time is being asked; those before it wait for their answers."""

    def __init__(self, settings: TalkSettings, *, live: bool = False) -> None:
        """`live`: what is being said right now may be lost on the way. Raises AudioError where Opus is asked for and
        libopus is missing."""
        self._live = live
        self.delivered = self.forgotten = self.payload_bytes = 0
        self.shortened = 0  # questions of which more had been said than is kept
        self.trace: Trace = untraced
        self._settings = settings
        self._encoder = OpusEncoderStream(settings.opus) if settings.codec == "opus" else None
        self._kind = Kind.OPUS if self._encoder is not None else Kind.PCM16
        self._coded: dict[int, int] = {}  # frames by what they were coded at, bit/s
        self._changes = 0
        message = max(settings.frames_per_message, round(_MESSAGE_MS / settings.opus.frame_ms))
        self._kept = settings.recording_messages * message  # frames
        self._number = secrets.randbits(31)
        self._sequence = 0
        self._present: _Question | None = None
        self._waiting: deque[_Question] = deque()
        self._stops: deque[int] = deque()

    @property
    def asking(self) -> bool:
        """Whether one is being asked."""
        return self._present is not None

    @property
    def waiting(self) -> int:
        """Questions that are kept."""
        return len(self._waiting)

    @property
    def under_way(self) -> bool:
        """Whether some of the present one was handed out."""
        return self._present is not None and self._present.sent > 0

    @property
    def frames(self) -> int:
        """Of the present one."""
        return len(self._present.packets) if self._present is not None else 0

    @property
    def full(self) -> bool:
        """Whether more of the present one could not be kept."""
        return self.frames > self._kept

    @property
    def bitrate_bps(self) -> int:
        """What speech is coded at."""
        return self._encoder.bitrate_bps if self._encoder is not None else _PCM_BPS

    @property
    def adapts(self) -> bool:
        """Whether what speech is coded at follows the link."""
        return self._encoder is not None and self._settings.adapt_bitrate

    @property
    def bitrates(self) -> Bitrates:
        """What speech was coded at so far."""
        frames = sum(self._coded.values())
        if not frames:
            return Bitrates()
        mean_bps = sum(bps * count for bps, count in self._coded.items()) / frames
        return Bitrates(min(self._coded), round(mean_bps, 1), max(self._coded), self._changes)

    @property
    def lookahead_ms(self) -> float:
        """Delay of the encoder itself."""
        return self._encoder.lookahead / 16.0 if self._encoder is not None else 0.0

    def begin(self) -> int:
        """A new question; its number."""
        self._number = (self._number + 1) & 0x7FFF_FFFF
        self._present = _Question(self._number, self._kind, self._settings.opus.frame_ms, self._live)
        if self._encoder is not None:  # the server's decoder begins anew, too
            self._encoder = OpusEncoderStream(self._settings.opus.replace(bitrate_bps=self._encoder.bitrate_bps))
        return self._number

    def record(self, frame: Floats, now_ms: float) -> None:
        """A frame [n] of the present one."""
        if self._present is not None:
            place = len(self._present.packets)
            self.trace("heard", place, now_ms)
            data = self._encoder.encode(frame) if self._encoder is not None else pack_pcm(frame)
            self.trace("coded", place, math.nan)
            self._present.packets.append(_Packet(data, now_ms))
            self._coded[self.bitrate_bps] = self._coded.get(self.bitrate_bps, 0) + 1

    def end(self) -> None:
        """The present one is over, and kept until it is answered."""
        question, self._present = self._present, None
        if question is None:
            return
        question.over = True
        self._waiting.append(question)
        while len(self._waiting) > self._settings.conversations:
            self._waiting.popleft()
            self.forgotten += 1

    def drop(self) -> None:
        """The present one is given up."""
        self._present = None

    def answered(self, number: int) -> None:
        """The server answers a question: if all of it was handed out, it has come."""
        before = len(self._waiting)
        self._waiting = deque(each for each in self._waiting if each.number != number or not each.closed)
        self.delivered += before - len(self._waiting)

    def stop(self, number: int) -> None:
        """No more of the answer to a question is wanted; that it has come is not waited for."""
        self._stops.append(number)
        self._waiting = deque(each for each in self._waiting if each.number != number or not each.closed)

    def refused(self, number: int) -> None:
        """The server will not answer a question, whole or not."""
        self._waiting = deque(each for each in self._waiting if each.number != number)

    def relink(self) -> None:
        """Another connection: everything that is kept goes up once more, whole; what was not kept is cut off."""
        self._stops.clear()
        for question in self._waiting:
            self.shortened += len(question.packets) > self._kept
            del question.packets[self._kept :]
            question.sent, question.closed, question.live = 0, False, False
        if self._present is not None:
            self._present.sent, self._present.live = 0, False

    def waiting_numbers(self) -> list[int]:
        """Of the questions that are kept, oldest first."""
        return [question.number for question in self._waiting]

    def kept(self, known: frozenset[int], now_ms: float, unix_ms: float) -> list[KeptQuestion]:
        """Those that wait and are not `known`, to be stored; both times are of this moment."""
        return [
            KeptQuestion(
                question.number,
                question.kind,
                question.frame_ms,
                round(unix_ms - now_ms + question.packets[-1].captured_ms) if question.packets else round(unix_ms),
                tuple(packet.data for packet in question.packets[: self._kept]),
            )
            for question in self._waiting
            if question.number not in known
        ]

    def restore(self, kept: list[KeptQuestion], now_ms: float, unix_ms: float) -> None:
        """Questions of an earlier run wait again, before any of this one."""
        for old in kept:
            question = _Question(old.number, old.kind, old.frame_ms, live=False)
            ended_ms = now_ms - (unix_ms - old.ended_ms)
            question.packets = [
                _Packet(data, ended_ms - (len(old.packets) - 1 - place) * old.frame_ms)
                for place, data in enumerate(old.packets)
            ]
            question.over = True
            self._waiting.append(question)

    def rate(self, bps: int) -> None:
        """What speech is coded at from now on, where it adapts."""
        if self._encoder is not None and self.adapts and bps != self._encoder.bitrate_bps:
            self._encoder.bitrate_bps = bps
            self._changes += 1

    @property
    def ready(self) -> bool:
        """Whether `outgoing` would give anything."""
        present = self._present
        whole = present is not None and len(present.packets) - present.sent >= self._settings.frames_per_message
        return whole or bool(self._stops) or not all(question.closed for question in self._waiting)

    def outgoing(self, now_ms: float) -> list[Outgoing]:
        """What is to go up now, kept questions first, in order."""
        ready = []
        while self._stops:
            ready.append(self._message(Utterance(self._stops.popleft(), 0, Kind.STOP, 0.0, ()), False, now_ms))
        for question in (*self._waiting, *([self._present] if self._present is not None else [])):
            ready += self._pieces(question, now_ms)
        return ready

    def _pieces(self, question: _Question, now_ms: float) -> list[Outgoing]:
        size = self._settings.frames_per_message
        ready = []
        while not question.closed:
            packets = question.packets[question.sent : question.sent + size]
            if len(packets) < size and not question.over:
                break
            question.closed = question.over and len(packets) < size
            frames = tuple(packet.data for packet in packets)
            piece = Utterance(
                question.number, question.sent, question.kind, question.frame_ms, frames, live=question.live
            )
            for place in range(len(packets)):
                self.trace("sent", question.sent + place, question.sent + len(packets) - 1)
            question.sent += len(packets)
            ready.append(self._message(piece, question.closed, packets[-1].captured_ms if packets else now_ms))
        return ready

    def _message(self, piece: Utterance, final: bool, captured_ms: float) -> Outgoing:
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        payload = pack_utterance(piece)
        self.payload_bytes += len(payload)
        return Outgoing(payload, self._sequence, final, captured_ms)
