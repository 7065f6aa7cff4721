"""A question as it comes in: decoded once, for whoever answers and for the encoder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.opus_stream import FRAME_MS, OpusDecoderStream, OpusSettings
from streamsplit.codec.pcm import unpack_pcm
from streamsplit.errors import CutError, ProtocolError
from streamsplit.wire.dialogue import Kind, Utterance

Floats = NDArray[np.float32]
RATE_HZ = 16_000


class Coded(NamedTuple):
    """Frames as they came, and when: for an answer that needs no decoding."""

    frames: tuple[bytes, ...]
    arrived_ms: float


class Named(NamedTuple):
    """What the server's encoder makes of a whole question."""

    label: str  # the nearest labelled sound, '' without any
    confidence: float  # in 0..1
    windows: int


class Question:
    """One utterance of a device. `pieces` and `sound` give it while it comes; `whole` and `named` when it is over."""

    def __init__(
        self, device: str, first: Utterance, name: Callable[[Floats], Awaitable[Named]], *, longest_s: float = 120.0
    ) -> None:
        """Raises ProtocolError for sound that cannot be decoded, AudioError where it is Opus without libopus."""
        if first.kind not in (Kind.PCM16, Kind.OPUS) or first.frame_ms not in FRAME_MS:
            raise ProtocolError("bad_dialogue", f"got {first.kind.name} in frames of {first.frame_ms} ms")
        self.device, self.number, self.kind, self.frame_ms = device, first.utterance, first.kind, first.frame_ms
        self.frames = 0
        self.over = asyncio.Event()
        self._samples = OpusSettings(frame_ms=first.frame_ms).frame_samples
        self._decoder = OpusDecoderStream(first.frame_ms) if first.kind is Kind.OPUS else None
        self._most = round(1000.0 * longest_s / first.frame_ms)
        self._sound: list[Floats] = []
        self._coded: list[Coded] = []
        self._changed = asyncio.Event()
        self._name = name
        self._named: asyncio.Task[Named] | None = None

    def add(self, piece: Utterance, now_ms: float) -> None:
        """The next frames. Raises ProtocolError for another kind, a hole, too much, or a frame that does not decode."""
        if (piece.kind, piece.frame_ms) != (self.kind, self.frame_ms):
            raise ProtocolError("bad_dialogue", f"got {piece.kind.name} in the middle of {self.kind.name}")
        if piece.first != self.frames:
            raise ProtocolError("bad_dialogue", f"got frame {piece.first}, expected {self.frames}")
        if self.frames + len(piece.frames) > self._most:
            raise ProtocolError("bad_dialogue", f"got more than {self._most} frames, which is the longest question")
        if not piece.frames:
            return
        try:
            decoded = [self._decode(frame) for frame in piece.frames]
        except CutError as error:
            raise ProtocolError("bad_dialogue", str(error)) from None
        self._sound += decoded
        self._coded.append(Coded(piece.frames, now_ms))
        self.frames += len(piece.frames)
        self._changed.set()

    def finish(self) -> None:
        """It is over."""
        self.over.set()
        self._changed.set()

    async def pieces(self) -> AsyncIterator[Coded]:
        """Its messages, as they come."""
        at = 0
        while True:
            while at < len(self._coded):
                at += 1
                yield self._coded[at - 1]
            if self.over.is_set():
                return
            self._changed.clear()
            await self._changed.wait()

    async def sound(self) -> AsyncIterator[Floats]:
        """Its samples [n], 16 kHz, as they come."""
        at = 0
        while True:
            while at < len(self._sound):
                at += 1
                yield self._sound[at - 1]
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

    def _decode(self, frame: bytes) -> Floats:
        if self._decoder is not None:
            return self._decoder.decode(frame)
        samples = unpack_pcm(frame)
        if len(samples) != self._samples:
            raise CutError(f"pcm16: got {len(samples)} samples, expected {self._samples}")
        return samples
