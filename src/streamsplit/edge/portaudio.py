"""PortAudio (extra 'mic'): devices by number or part of a name, streams that are ended in order, and looked after."""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
from types import ModuleType
from typing import Any

from streamsplit.errors import AudioError, DriverError, MissingExtraError

_log = logging.getLogger(__name__)
_END_S = 3.0  # that the end of a stream may take
_MOST_STUCK = 3  # streams that never end; more, and only a new process helps


class _Streams:
    """What PortAudio holds for this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: set[Any] = set()  # stuck ones among them
        self.stuck = 0


_streams = _Streams()


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


def find_device(device: str | None, kind: str) -> tuple[int | str | None, dict[str, Any]]:
    """What PortAudio calls a device of `kind` 'input' or 'output', and what it says of it; raises AudioError where
    there is none."""
    pa = portaudio()
    chosen: int | str | None = int(device) if device is not None and device.isdigit() else device
    try:
        with _streams.lock:
            return chosen, pa.query_devices(chosen, kind)
    except (ValueError, pa.PortAudioError) as error:
        wanted = f"no {kind} device '{device}'" if device else f"no {kind} device"
        raise AudioError(f"{wanted} ({error}); `streamsplit devices` lists them") from error


def open_stream(kind: str, **words: Any) -> Any:
    """A stream of one channel of floats, 'input' or 'output', to be given to `end_stream`; raises ValueError and
    PortAudioError as PortAudio does, DriverError where too many streams never ended."""
    pa = portaudio()
    with _streams.lock:
        if _streams.stuck >= _MOST_STUCK:
            raise DriverError(
                f"the sound driver does not let go of {_streams.stuck} streams whose devices are gone; start anew"
            )
        opened = (pa.InputStream if kind == "input" else pa.OutputStream)(channels=1, dtype="float32", **words)
        _streams.open.add(opened)
    return opened


def end_stream(stream: Any) -> None:
    """Ends a stream in order, within 3 s; one that its driver does not let go of is left behind.

    Closing one that runs cancels its thread, in the middle of Python at worst, whose lock nobody gets any more then.
    """
    ended = threading.Event()
    stuck = False

    def end() -> None:
        try:
            stream.stop()
            stream.close()
        finally:
            with _streams.lock:
                _streams.open.discard(stream)
                _streams.stuck -= stuck
                ended.set()

    threading.Thread(target=end, name="portaudio-end", daemon=True).start()
    if ended.wait(_END_S):
        return
    with _streams.lock:
        if ended.is_set():
            return
        stuck = True
        _streams.stuck += 1
    pa = portaudio()
    atexit.unregister(pa._exit_handler)  # it would wait for the stream
    ctypes.CDLL(pa._libname)  # its thread is inside the library, which the binding's end would unload
    _log.warning("the sound driver does not let go of a stream whose device is gone; it is left behind")


def look_again() -> None:
    """Has PortAudio look for devices anew: by itself it does so only once. Left out while a stream is open, which that
    would close. Raises AudioError where it fails."""
    pa = portaudio()
    with _streams.lock:
        if _streams.open:
            return
        try:
            if pa._initialized:
                pa._terminate()
            pa._initialize()
        except pa.PortAudioError as error:
            raise AudioError(f"PortAudio does not start ({error})") from error
