"""A device's audio from a microphone, through PortAudio (extra 'mic')."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from streamsplit.audio.resample import StreamingResampler
from streamsplit.edge.blocks import RATE_HZ, AudioBlock, SourceInfo
from streamsplit.edge.portaudio import end_stream, find_device, open_stream, portaudio
from streamsplit.edge.ring import Bell, BlockRing
from streamsplit.errors import AudioError

_log = logging.getLogger(__name__)

_LOOK_S = 0.5  # whether the device is still there, while nothing comes
_STALLED_S = 5.0  # without a block: it is gone, whatever its driver says
_HELD_S = 10.0  # of sound kept for a consumer that falls behind; older sound is lost, and said so


class MicrophoneSource:
    """Records from the default device or one named by number or part of its name, until closed.

    Opens the device at 16 kHz, or at its own rate and resamples. Raises AudioError if there is no PortAudio, no such
    device, or the device fails while recording; MissingExtraError without sounddevice.
    """

    def __init__(self, device: str | None = None, *, block_ms: float = 100.0) -> None:
        chosen, description = find_device(device, "input")
        self.info = SourceInfo("microphone", str(description["name"]), True, ())
        self._lost = self._faults = 0  # blocks that nobody took in time; times the driver said that it lost some
        self._closed = False
        self._bell: Bell | None = None
        self._stream, rate_hz = _open(chosen, float(description["default_samplerate"]), block_ms, self._hear)
        self._size = round(block_ms * rate_hz / 1_000.0)
        self._ring = BlockRing(self._size, max(2, round(_HELD_S * 1_000.0 / block_ms)))
        self._resampler = StreamingResampler(rate_hz, RATE_HZ)

    @property
    def overruns(self) -> int:
        """Blocks that nobody took in time, and times the driver said that it had lost some."""
        return self._lost + self._faults

    def __iter__(self) -> Iterator[AudioBlock]:
        """Blocks as they are heard. Where some were lost the last one fades out, and time goes on behind the gap."""
        told, position = 0, 0.0
        heard, before = np.zeros(self._size, np.float32), np.zeros(self._size, np.float32)
        fade = np.linspace(1.0, 0.0, self._size, dtype=np.float32)
        self._bell = bell = Bell()
        try:
            self._start()
            heard_s = time.monotonic()
            while not self._closed:
                active = self._stream.active
                lost = self._ring.get(heard)
                if self.overruns + max(lost, 0) > told:
                    self._lost += max(lost, 0)
                    _log.warning(
                        "%s: %d blocks lost, the device does not keep up", self.info.name, self.overruns - told
                    )
                    told = self.overruns
                if lost < 0:
                    if not active:
                        raise AudioError(f"{self.info.name}: the device stopped recording (unplugged?)")
                    if time.monotonic() - heard_s > _STALLED_S:
                        raise AudioError(f"{self.info.name}: the device has given nothing for {_STALLED_S:g} s")
                    bell.wait(_LOOK_S)
                    continue
                heard_s = time.monotonic()
                for raw in (before * fade, heard.copy()) if lost else (heard.copy(),):
                    samples = self._resampler.push(raw)
                    if len(samples):
                        yield AudioBlock(samples, position * 1_000.0 / RATE_HZ, None, None)
                        position += len(samples)
                    position += max(lost - 1, 0) * self._size * RATE_HZ / self._resampler.from_hz
                    lost = 0  # the gap lies between the two
                before[:] = heard
        finally:
            self._closed = True
            end_stream(self._stream)
            bell.close()

    def close(self) -> None:
        """Ends the iteration, whose thread gives the device back and is not waited for."""
        self._closed = True
        if self._bell is not None:
            self._bell.ring()
        else:  # it was never listened to
            end_stream(self._stream)

    def _start(self) -> None:
        pa = portaudio()
        try:
            self._stream.start()
        except pa.PortAudioError as error:  # busy, or closed before it began
            if not self._closed:
                raise AudioError(f"{self.info.name}: cannot be recorded from ({error})") from error

    def _hear(self, heard: np.ndarray, frames: int, time_info: Any, status: Any) -> None:
        """PortAudio's callback, in its own thread: copies `heard` [frames, 1], which is only valid during the call."""
        self._faults += bool(status)
        self._ring.put(heard[:, 0])
        if self._bell is not None:
            self._bell.ring()


def _open(device: int | str | None, own_rate_hz: float, block_ms: float, callback: Any) -> tuple[Any, float]:
    """An input stream and its rate: 16 kHz where the device takes it, else its own."""
    pa = portaudio()
    failure: Exception | None = None
    for rate_hz in (float(RATE_HZ), own_rate_hz):
        try:
            size = round(block_ms * rate_hz / 1_000.0)
            return open_stream("input", samplerate=rate_hz, blocksize=size, device=device, callback=callback), rate_hz
        except (ValueError, pa.PortAudioError) as error:
            failure = error
    raise AudioError(f"the microphone cannot be opened ({failure})") from failure
