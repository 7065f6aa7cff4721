"""A device's audio from a microphone, through PortAudio (extra 'mic')."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from streamsplit.audio.resample import StreamingResampler, to_mono
from streamsplit.edge.blocks import RATE_HZ, AudioBlock, SourceInfo
from streamsplit.errors import AudioError, MissingExtraError

_log = logging.getLogger(__name__)

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
        self._blocks: queue.Queue[np.ndarray | None] = queue.Queue(max(2, round(_HELD_S * 1_000.0 / block_ms)))
        self._lost = 0
        self._closed = False
        self._stream, rate_hz = _open(pa, chosen, float(description["default_samplerate"]), block_ms, self._hear)
        self._resampler = StreamingResampler(rate_hz, RATE_HZ)

    def __iter__(self) -> Iterator[AudioBlock]:
        position = 0
        try:
            self._stream.start()
            while not self._closed:
                try:
                    heard = self._blocks.get(timeout=0.5)
                except queue.Empty:
                    if not self._closed and not self._stream.active:
                        raise AudioError(
                            f"{self.info.name}: the device stopped recording; is it still plugged in?"
                        ) from None
                    continue
                if heard is None:
                    return
                if self._lost:
                    _log.warning("%s: %d blocks lost, the device does not keep up", self.info.name, self._lost)
                    self._lost = 0
                samples = self._resampler.push(heard)
                if len(samples):
                    yield AudioBlock(samples, position * 1_000.0 / RATE_HZ, None, None)
                    position += len(samples)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the iteration and gives the device back."""
        self._closed = True
        self._put(None)
        self._stream.close()

    def _hear(self, heard: np.ndarray, frames: int, time_info: Any, status: Any) -> None:
        """PortAudio's callback, in its own thread: `heard` [frames, channels] is only valid during the call."""
        if status:
            self._lost += 1
        self._put(to_mono(heard.copy()))

    def _put(self, item: np.ndarray | None) -> None:
        while True:
            try:
                self._blocks.put_nowait(item)
                return
            except queue.Full:
                try:
                    self._blocks.get_nowait()
                    self._lost += 1
                except queue.Empty:
                    continue


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
