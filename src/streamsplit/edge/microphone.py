"""A device's audio from a microphone, through PortAudio (extra 'mic')."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from streamsplit.audio.resample import StreamingResampler
from streamsplit.edge.blocks import RATE_HZ, AudioBlock, SourceInfo
from streamsplit.edge.ring import Bell, BlockRing
from streamsplit.errors import AudioError, MissingExtraError

_log = logging.getLogger(__name__)

_LOOK_S = 0.5  # whether the device is still there, while nothing comes
_HELD_S = 10.0  # of sound kept for a consumer that falls behind; older sound is lost, and said so


class MicrophoneSource:
    """Records from the default device or one named by number or part of its name, until closed.

    Opens the device at 16 kHz, or at its own rate and resamples. Raises AudioError if there is no PortAudio, no such
    device, or the device fails while recording; MissingExtraError without sounddevice.
    """

    def __init__(self, device: str | None = None, *, block_ms: float = 100.0) -> None:
        pa = portaudio()
        chosen: int | str | None = int(device) if device is not None and device.isdigit() else device
        try:
            description = pa.query_devices(chosen, "input")
        except (ValueError, pa.PortAudioError) as error:
            wanted = f"no input device '{device}'" if device else "no input device"
            raise AudioError(f"{wanted} ({error}); `streamsplit devices` lists them") from error
        self.info = SourceInfo("microphone", str(description["name"]), True, ())
        self._lost = self._faults = 0  # blocks that nobody took in time; times the driver said that it lost some
        self._closed = False
        self._bell: Bell | None = None
        self._stream, rate_hz = _open(pa, chosen, float(description["default_samplerate"]), block_ms, self._hear)
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
                        raise AudioError(f"{self.info.name}: the device stopped recording; is it still plugged in?")
                    bell.wait(_LOOK_S)
                    continue
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
        """Ends the iteration, whose thread gives the device back; never waits."""
        self._closed = True
        if self._bell is not None:
            self._bell.ring()
        else:  # it was never listened to
            self._stream.close()

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


def portaudio() -> ModuleType:
    """The binding; raises MissingExtraError without it, AudioError without the library, saying what to install."""
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("the microphone", "mic", str(error)) from error
    except OSError as error:
        raise AudioError(f"the microphone needs PortAudio ({error}): apt-get install libportaudio2") from error
    module: ModuleType = sounddevice
    return module


def end_stream(stream: Any) -> None:
    """Ends a stream of PortAudio in order. Closing one that runs cancels its thread, in the middle of Python at worst,
    whose lock nobody gets any more then."""
    stream.stop()
    stream.close()


def _open(
    pa: ModuleType, device: int | str | None, own_rate_hz: float, block_ms: float, callback: Any
) -> tuple[Any, float]:
    """An input stream and its rate: 16 kHz where the device takes it, else its own."""
    failure: Exception | None = None
    for rate_hz in (float(RATE_HZ), own_rate_hz):
        try:
            stream = pa.InputStream(
                samplerate=rate_hz, blocksize=round(block_ms * rate_hz / 1_000.0), device=device, channels=1,
                dtype="float32", callback=callback,
            )  # fmt: skip
            return stream, rate_hz
        except (ValueError, pa.PortAudioError) as error:
            failure = error
    raise AudioError(f"the microphone cannot be opened ({failure})") from failure
