"""Where answers are heard: a loudspeaker through PortAudio, a WAV file, or nowhere. Each pulls frames in time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from streamsplit.edge.blocks import RATE_HZ
from streamsplit.edge.microphone import end_stream, portaudio
from streamsplit.edge.ring import Bell, BlockRing
from streamsplit.errors import AudioError

Floats = NDArray[np.float32]
Pull = Callable[[float], Floats]
"""The next frame [n] for this moment, in ms of `time.monotonic`."""
_log = logging.getLogger(__name__)
_AHEAD_MS = 40.0  # of sound that wait in the ring of a loudspeaker
_LOOK_S = 0.1  # whether it is closed, while nothing is played


class Sink(Protocol):
    """Takes sound."""

    def start(self, pull: Pull, frame: int) -> None:
        """Asks `pull` for frames of `frame` samples from now on, from a thread of its own."""

    def close(self) -> None:
        """Ends it; a second call does nothing."""

    @property
    def underruns(self) -> int: ...


class PacedSink:
    """Pulls in real time, and hands on what it gets: nothing is played."""

    def __init__(self) -> None:
        self.underruns = 0  # frames that were asked for more than a frame too late
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pull: Pull, frame: int) -> None:
        """Begins."""
        self._thread = threading.Thread(target=self._run, args=(pull, frame), name="speaker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)

    def take(self, samples: Floats) -> None:
        """A frame [n]."""

    def _run(self, pull: Pull, frame: int) -> None:
        period_s = frame / RATE_HZ
        due_s = time.monotonic()
        while not self._closed.is_set():
            self.take(pull(1000.0 * time.monotonic()))
            due_s += period_s
            wait_s = due_s - time.monotonic()
            if wait_s < -period_s:
                self.underruns += 1
                due_s = time.monotonic()
            self._closed.wait(max(wait_s, 0.0))


class WavSink(PacedSink):
    """Writes everything, silence included, into a 16-bit WAV."""

    def __init__(self, path: str | Path) -> None:
        """Raises AudioError where the file cannot be written."""
        super().__init__()
        try:
            self._file = soundfile.SoundFile(str(path), "w", RATE_HZ, 1, "PCM_16")
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(f"{path}: cannot be written ({error})") from error

    def take(self, samples: Floats) -> None:
        """Into the file."""
        self._file.write(np.clip(samples, -1.0, 1.0))

    def close(self) -> None:
        """Closes the file."""
        super().close()
        self._file.close()


class SpeakerSink:
    """A loudspeaker: PortAudio's callback copies from a ring that a thread keeps a little ahead."""

    def __init__(self, device: str | None = None) -> None:
        """Raises AudioError without PortAudio or such a device, MissingExtraError without sounddevice."""
        self.underruns = 0
        self._portaudio = portaudio()
        self._device: int | str | None = int(device) if device is not None and device.isdigit() else device
        self._closed = threading.Event()
        self._stream: Any = None
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None
        try:
            self._portaudio.query_devices(self._device, "output")
        except (ValueError, self._portaudio.PortAudioError) as error:
            wanted = f"no output device '{device}'" if device else "no output device"
            raise AudioError(f"{wanted} ({error}); `streamsplit devices` lists them") from error

    def start(self, pull: Pull, frame: int) -> None:
        """Opens the device at 16 kHz and plays; raises AudioError where that fails."""
        ahead = max(2, round(_AHEAD_MS * RATE_HZ / 1000 / frame))
        ring, self._bell = BlockRing(frame, 4 * ahead), Bell()
        bell = self._bell
        last, fade = np.zeros(frame, np.float32), np.linspace(1.0, 0.0, frame, dtype=np.float32)

        def copy(out: NDArray[np.float32], frames: int, info: Any, status: Any) -> None:
            heard = out[:, 0]
            if ring.get(heard) >= 0:
                last[:] = heard
            else:  # the last frame once more, fading out; then silence
                self.underruns += 1
                np.multiply(last, fade, out=heard)
                last.fill(0.0)
            bell.ring()

        try:
            self._stream = self._portaudio.OutputStream(
                samplerate=RATE_HZ, blocksize=frame, device=self._device, channels=1, dtype="float32", callback=copy
            )
            self._stream.start()
        except (ValueError, self._portaudio.PortAudioError) as error:
            raise AudioError(f"the loudspeaker cannot be opened ({error})") from error
        self._thread = threading.Thread(target=self._fill, args=(ring, pull, ahead), name="speaker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the device back."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(2.0)
        if self._stream is not None:
            end_stream(self._stream)
        if self._bell is not None:
            self._bell.close()

    def _fill(self, ring: BlockRing, pull: Pull, ahead: int) -> None:
        assert self._bell is not None
        while not self._closed.is_set():
            if ring.held < ahead:
                ring.put(pull(1000.0 * time.monotonic()))
            else:
                self._bell.wait(_LOOK_S)


def open_sink(spec: str) -> Sink:
    """The sink that `spec` names: 'speaker[:device]', 'none', or a WAV file's path.

    Raises AudioError if it cannot be opened, MissingExtraError if it needs an extra.
    """
    kind, _, rest = spec.partition(":")
    if kind == "speaker":
        return SpeakerSink(rest or None)
    if spec == "none":
        return PacedSink()
    return WavSink(spec)
