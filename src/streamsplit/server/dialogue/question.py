"""A question as it comes in: decoded once, for whoever answers and for the encoder."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.jitter import Decision, JitterCounts, Play
from streamsplit.codec.opus_stream import FRAME_MS, OpusDecoderStream, OpusSettings
from streamsplit.codec.pcm import unpack_pcm
from streamsplit.codec.reorder import ReorderBuffer
from streamsplit.errors import CutError, ProtocolError
from streamsplit.wire.dialogue import Kind, Utterance

Floats = NDArray[np.float32]
T = TypeVar("T")
RATE_HZ = 16_000
_MOST_AHEAD_MS = 10_000.0  # by which live sound may be ahead of its time: what was recorded before the link was there


class Coded(NamedTuple):
    """Frames as they came, and when: for an answer that needs no decoding."""

    frames: tuple[bytes, ...]
    arrived_ms: float
    first: int = 0  # place of the first one in the question; those of a live question may come in any order


class Named(NamedTuple):
    """What the server's encoder makes of a whole question."""

    label: str  # the nearest labelled sound, '' without any
    confidence: float  # in 0..1
    windows: int


class Question:
    """One utterance of a device. `pieces` and `sound` give it while it comes; `whole` and `named` when it is over.

    A live one may come with holes and out of order: `pieces` gives it as it comes, `sound` in order, with what is
    missing recovered or concealed.
    """

    def __init__(
        self,
        device: str,
        first: Utterance,
        name: Callable[[Floats], Awaitable[Named]],
        *,
        longest_s: float = 120.0,
        patience_ms: float = 100.0,
    ) -> None:
        """Raises ProtocolError for sound that cannot be decoded, AudioError where it is Opus without libopus."""
        if first.kind not in (Kind.PCM16, Kind.OPUS) or first.frame_ms not in FRAME_MS:
            raise ProtocolError("bad_dialogue", f"got {first.kind.name} in frames of {first.frame_ms} ms")
        self.device, self.number, self.kind, self.frame_ms = device, first.utterance, first.kind, first.frame_ms
        self.frames = 0  # so far; of a live one, up to the newest that has come, or its end
        self.live = first.live
        self.latest_ms = math.inf  # when a piece of it came last; inf: none has
        self.over = asyncio.Event()
        self._samples = OpusSettings(frame_ms=first.frame_ms).frame_samples
        self._decoder = OpusDecoderStream(first.frame_ms) if first.kind is Kind.OPUS else None
        self._most = round(1000.0 * longest_s / first.frame_ms)
        self._sound: list[Floats] = []
        self._coded: list[Coded] = []
        self._changed = asyncio.Event()
        self._name = name
        self._named: asyncio.Task[Named] | None = None
        self._order = ReorderBuffer(patience_ms, fec=first.kind is Kind.OPUS)
        self._began_ms: float | None = None

    @property
    def counts(self) -> JitterCounts:
        """What became of a live question's frames."""
        return self._order.counts

    @property
    def complete(self) -> bool:
        """Whether the end has come, and nothing is missing."""
        return self._order.complete if self.live else self._order.end is not None

    def add(self, piece: Utterance, now_ms: float) -> None:
        """The next frames. Raises ProtocolError for another kind, a hole, too much, or a frame that does not decode."""
        self.latest_ms = now_ms
        if (piece.kind, piece.frame_ms) != (self.kind, self.frame_ms):
            raise ProtocolError("bad_dialogue", f"got {piece.kind.name} in the middle of {self.kind.name}")
        if self.live:
            self._add_live(piece, now_ms)
            return
        if piece.first != self.frames:
            raise ProtocolError("bad_dialogue", f"got frame {piece.first}, expected {self.frames}")
        self._check_length(piece)
        if piece.frames:
            self._sound += self._decoded([Decision(Play.PACKET, frame) for frame in piece.frames])
            self._pass_on(piece, now_ms)
            self.frames += len(piece.frames)

    def finish(self) -> None:
        """It is over; what is still missing of a live one is concealed. Raises ProtocolError as `add`."""
        try:
            if self.live and not self.over.is_set():
                self._sound += self._decoded(self._order.take(0.0, rest=True))
        finally:
            self.over.set()
            self._changed.set()

    def end(self, frames: int) -> None:
        """Its end has come: so many frames in all."""
        self.frames = frames
        self._order.finish(frames)

    def _add_live(self, piece: Utterance, now_ms: float) -> None:
        self._began_ms = now_ms if self._began_ms is None else self._began_ms
        self._check_length(piece)
        ahead_ms = piece.first * self.frame_ms - (now_ms - self._began_ms)
        if ahead_ms > _MOST_AHEAD_MS:
            raise ProtocolError(
                "bad_dialogue", f"got live frame {piece.first}, {ahead_ms / 1000:.0f} s before its time"
            )
        for place, frame in enumerate(piece.frames):
            self._order.push(piece.first + place, frame, now_ms)
        self._sound += self._decoded(self._order.take(now_ms))
        if piece.frames:
            self._pass_on(piece, now_ms)
        if self._order.end is None:
            self.frames = max(self.frames, piece.first + len(piece.frames))

    def _check_length(self, piece: Utterance) -> None:
        if piece.first + len(piece.frames) > self._most:
            raise ProtocolError("bad_dialogue", f"got more than {self._most} frames, which is the longest question")

    def _pass_on(self, piece: Utterance, now_ms: float) -> None:
        self._coded.append(Coded(piece.frames, now_ms, piece.first))
        self._changed.set()

    async def pieces(self) -> AsyncIterator[Coded]:
        """Its messages, as they come."""
        async for coded in self._following(self._coded):
            yield coded

    async def sound(self) -> AsyncIterator[Floats]:
        """Its samples [n], 16 kHz, as they come."""
        async for samples in self._following(self._sound):
            yield samples

    async def _following(self, kept: list[T]) -> AsyncIterator[T]:
        """What is kept and what is added to it, until the question is over."""
        at = 0
        while True:
            while at < len(kept):
                at += 1
                yield kept[at - 1]
            if self.over.is_set():
                return
            self._changed.clear()
            await self._changed.wait()

    async def whole(self) -> Floats:
        """All of its samples [n], once it is over."""
        await self.over.wait()
        return np.concatenate(self._sound) if self._sound else np.zeros(0, np.float32)

    async def named(self) -> Named:
        """What the server's encoder makes of it, once it is over; computed once."""
        sound = await self.whole()
        if self._named is None:
            self._named = asyncio.ensure_future(self._name(sound))
        return await asyncio.shield(self._named)

    def _decoded(self, decisions: list[Decision]) -> list[Floats]:
        try:
            return [self._decode(decision) for decision in decisions]
        except CutError as error:
            raise ProtocolError("bad_dialogue", str(error)) from None

    def _decode(self, decision: Decision) -> Floats:
        if self._decoder is not None:
            if decision.play is Play.PACKET:
                return self._decoder.decode(decision.data)
            return self._decoder.recover(decision.data) if decision.data else self._decoder.conceal()
        if decision.play is not Play.PACKET:  # PCM has no way to conceal
            return np.zeros(self._samples, np.float32)
        samples = unpack_pcm(decision.data)
        if len(samples) != self._samples:
            raise CutError(f"pcm16: got {len(samples)} samples, expected {self._samples}")
        return samples
