"""The answer that is listened to: its frames through the jitter buffer and the decoder, or sound from this device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.jitter import JitterBuffer, Play
from streamsplit.codec.opus_stream import OpusDecoderStream
from streamsplit.codec.pcm import unpack_pcm
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.errors import CutError
from streamsplit.wire.dialogue import Kind, Utterance

Floats = NDArray[np.float32]
_SLOW_RTT_MS = 100.0
_SLOW_FRAMES = 5  # that an answer waits for on a slow link, at least

Trace = Callable[[str, int, float], None]
"""Told what happens to a frame of a question and of its echo, when it does: what, which frame, and a number.

'heard' (when its last sample was, ms), 'coded', 'sent' (the last frame of its message), 'received', 'held' (by the
server, ms), 'left' (the server, on its clock, ms modulo 2^32), 'pulled', 'decoded'; without a number, nan.
"""


def untraced(what: str, index: int, number: float) -> None:
    """Nobody watches."""


class Heard(Enum):
    """What the next frame for the speaker is."""

    NOTHING = "no answer, or too little of it yet"
    SOUND = "a frame of it"
    END = "it is over"


class Answer:
    """Of one question; `expect` begins another."""

    def __init__(self, settings: TalkSettings) -> None:
        self.frame_ms, self.frame = settings.opus.frame_ms, settings.opus.frame_samples
        self.jitter = JitterBuffer(settings.jitter, frame_ms=self.frame_ms, fec=settings.opus.fec)
        self.number = -1  # of the question; -1: none is waited for
        self._fec = settings.opus.fec
        self._least_ms = settings.jitter.least_ms
        self._most_ms = settings.jitter.most_ms
        self._local: deque[Floats] = deque()
        self._kind = Kind.OPUS
        self._decoder: OpusDecoderStream | None = None
        self.trace: Trace = untraced

    @property
    def local(self) -> bool:
        """Whether it comes from this device."""
        return bool(self._local)

    @property
    def dry(self) -> bool:
        """Whether nothing is there to play."""
        return not self._local and not self.jitter.held_ms

    def expect(self, number: int) -> None:
        """The answer to this question is waited for from now on; -1: none."""
        self.number = number
        self.jitter.restart()
        self._local.clear()
        self._decoder = None

    def offline(self, frames: list[Floats]) -> None:
        """Frames [n] from this device in place of an answer."""
        self.expect(-1)
        self._local.extend(frames)

    def rate(self, rtt_ms: float) -> None:
        """A slow link is waited for a little longer."""
        slow_ms = _SLOW_FRAMES * self.frame_ms if rtt_ms > _SLOW_RTT_MS else 0.0
        least_ms = min(max(self._least_ms, slow_ms), self._most_ms)
        if least_ms != self.jitter.settings.least_ms:
            self.jitter.settings = self.jitter.settings.replace(least_ms=least_ms)

    def take(self, piece: Utterance, final: bool, now_ms: float, left_ms: float = math.nan) -> bool:
        """Frames of it, which left the server at `left_ms` of its clock; whether there is sound in it at all. Raises
        CutError for frames of another length."""
        if piece.frames and piece.frame_ms != self.frame_ms:
            raise CutError(f"got frames of {piece.frame_ms} ms, expected {self.frame_ms}")
        self.jitter.live = piece.live
        self.jitter.fec = self._fec and piece.kind is Kind.OPUS
        for place, frame in enumerate(piece.frames):
            self.jitter.push(piece.first + place, frame, now_ms)
            self.trace("received", piece.first + place, math.nan)
            self.trace("held", piece.first + place, float(piece.held_ms))
            self.trace("left", piece.first + place, left_ms)
        if piece.frames and self._decoder is None and piece.kind is Kind.OPUS:
            self._decoder = OpusDecoderStream(self.frame_ms)
        if piece.frames:
            self._kind = piece.kind
        if final:
            self.jitter.finish(piece.first + len(piece.frames))
        return bool(piece.first or piece.frames or self.jitter.known_frames)

    def cut_off(self) -> None:
        """No more of it will come: what is there is all of it."""
        self.jitter.finish(self.jitter.known_frames)

    def play(self, now_ms: float) -> tuple[Heard, Floats]:
        """The next frame [n]. Raises CutError for a packet that does not decode."""
        silence = np.zeros(self.frame, np.float32)
        if self._local:
            frame = self._local.popleft()
            if not self._local:
                self.jitter.finish(0)
            return Heard.SOUND, frame
        decision = self.jitter.pull(now_ms)
        if decision.play in (Play.NOTHING, Play.END):
            return Heard.NOTHING if decision.play is Play.NOTHING else Heard.END, silence
        if decision.place < 0:
            return Heard.SOUND, self._decoded(decision.play, decision.data)
        self.trace("pulled", decision.place, math.nan)
        frame = self._decoded(decision.play, decision.data)
        self.trace("decoded", decision.place, math.nan)
        return Heard.SOUND, frame

    def _decoded(self, play: Play, data: bytes) -> Floats:
        if self._kind is Kind.PCM16 and play is Play.PACKET:
            frame = unpack_pcm(data)
            if len(frame) != self.frame:
                raise CutError(f"got {len(frame)} samples, expected {self.frame}")
            return frame
        if self._decoder is None or play is Play.COMFORT:
            return np.zeros(self.frame, np.float32)
        if play is Play.CONCEAL:
            return self._decoder.conceal()
        return self._decoder.decode(data) if play is Play.PACKET else self._decoder.recover(data)
