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
from streamsplit.edge.outages import LOUDSPEAKER, Backoff, Outages, often
from streamsplit.edge.portaudio import end_stream, find_device, look_again, open_stream, portaudio
from streamsplit.edge.ring import Bell, BlockRing
from streamsplit.errors import AudioError, DriverError, StreamSplitError

Floats = NDArray[np.float32]
Pull = Callable[[float], Floats]
"""The next frame [n] for this moment, in ms of `time.monotonic`."""
_log = logging.getLogger(__name__)
_AHEAD_MS = 40.0  # of sound that wait in the ring of a loudspeaker
_LOOK_S = 0.1  # whether it is closed or gone, while nothing is played
_ENDED_S = 5.0  # by then its thread has ended
_STALLED_S = 5.0  # without a frame taken: it is gone, whatever its driver says


class Sink(Protocol):
    """Takes sound."""

    def start(self, pull: Pull, frame: int) -> None:
        """Asks `pull` for frames of `frame` samples from now on, from a thread of its own."""

    def close(self) -> None:
        """Ends it; a second call does nothing."""

    @property
    def underruns(self) -> int: ...

    @property
    def error(self) -> StreamSplitError | None:
        """What ended it for good."""


class PacedSink:
    """Pulls in real time, and hands on what it gets: nothing is played."""

    def __init__(self) -> None:
        self.underruns = 0  # frames that were asked for more than a frame too late
        self.error: StreamSplitError | None = None
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


class _Playback:
    """One opened loudspeaker: PortAudio's callback copies from a ring that `play` keeps a little ahead."""

    def __init__(self, device: str | None, frame: int, underrun: Callable[[], None]) -> None:
        """Opens the device at 16 kHz and plays; raises AudioError where that fails."""
        self._ahead = max(2, round(_AHEAD_MS * RATE_HZ / 1000 / frame))
        self._ring, self._bell = BlockRing(frame, 4 * self._ahead), Bell()
        ring, bell = self._ring, self._bell
        last, fade = np.zeros(frame, np.float32), np.linspace(1.0, 0.0, frame, dtype=np.float32)

        def copy(out: NDArray[np.float32], frames: int, info: Any, status: Any) -> None:
            heard = out[:, 0]
            if ring.get(heard) >= 0:
                last[:] = heard
            else:  # the last frame once more, fading out; then silence
                underrun()
                np.multiply(last, fade, out=heard)
                last.fill(0.0)
            bell.ring()

        pa = portaudio()
        try:
            chosen, _ = find_device(device, "output")
            self._stream = open_stream("output", samplerate=RATE_HZ, blocksize=frame, device=chosen, callback=copy)
        except (ValueError, pa.PortAudioError) as error:
            bell.close()
            raise AudioError(f"the loudspeaker cannot be opened ({error})") from error
        except StreamSplitError:
            bell.close()
            raise
        try:
            self._stream.start()
        except pa.PortAudioError as error:
            self.close()
            raise AudioError(f"the loudspeaker cannot be opened ({error})") from error

    def play(self, pull: Pull, closed: threading.Event) -> str:
        """Until `closed`, or until the device fails: why, or ""."""
        taken_s = time.monotonic()
        while not closed.is_set():
            if self._ring.held < self._ahead:
                self._ring.put(pull(1000.0 * time.monotonic()))
                taken_s = time.monotonic()
            elif not self._stream.active:
                return "the device stopped playing (unplugged?)"
            elif time.monotonic() - taken_s > _STALLED_S:
                return f"the device has taken nothing for {_STALLED_S:g} s"
            else:
                self._bell.wait(_LOOK_S)
        return ""

    def close(self) -> None:
        """Gives the device back."""
        end_stream(self._stream)
        self._bell.close()


class SpeakerSink:
    """A loudspeaker; one that went away is opened again for as long as it takes, and nothing is pulled meanwhile."""

    def __init__(self, device: str | None = None, *, retry_s: float = 0.0) -> None:
        """`retry_s`: the longest wait between two tries; 0: there are none, and `error` says so. Raises AudioError
        without PortAudio or such a device, MissingExtraError without sounddevice."""
        self.underruns = 0
        self.error: StreamSplitError | None = None
        self.outages = Outages(LOUDSPEAKER)
        self._device, self._retry_s = device, retry_s
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        find_device(device, "output")

    def start(self, pull: Pull, frame: int) -> None:
        """Opens the device at 16 kHz and plays; raises AudioError where that fails."""
        playback = _Playback(self._device, frame, self._ran_dry)
        self._thread = threading.Thread(target=self._run, args=(playback, pull, frame), name="speaker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the device back."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_ENDED_S)

    def _run(self, playback: _Playback | None, pull: Pull, frame: int) -> None:
        backoff = Backoff(self._retry_s)
        while playback is not None:
            began_s = time.monotonic()
            reason = playback.play(pull, self._closed)
            if reason and self._retry_s:
                backoff.lost(time.monotonic() - began_s)
                self.outages.begin(f"{reason}; it is tried again {often(self._retry_s)}", time.monotonic())
            elif reason:
                self.error = AudioError(f"loudspeaker: {reason}")
            playback.close()
            playback = self._again(frame, backoff) if reason and self._retry_s else None

    def _again(self, frame: int, backoff: Backoff) -> _Playback | None:
        """The device once more; None when the sink is closed, or there is no use in trying."""
        while not self._closed.wait(backoff.wait_s()):
            try:
                look_again()
                playback = _Playback(self._device, frame, self._ran_dry)
            except AudioError as error:
                _log.debug("not back yet: %s", error)
                continue
            except DriverError as error:
                self.error = error
                return None
            self.outages.end(time.monotonic())
            return playback
        return None

    def _ran_dry(self) -> None:
        self.underruns += 1


def open_sink(spec: str, *, retry_s: float = 0.0) -> Sink:
    """The sink that `spec` names: 'speaker[:device]', 'none', or a WAV file's path. `retry_s`: as `SpeakerSink`.

    Raises AudioError if it cannot be opened, MissingExtraError if it needs an extra.
    """
    kind, _, rest = spec.partition(":")
    if kind == "speaker":
        return SpeakerSink(rest or None, retry_s=retry_s)
    if spec == "none":
        return PacedSink()
    return WavSink(spec)
