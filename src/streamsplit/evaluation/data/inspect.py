"""Every clip opened once before it is used: how long, at which rate, and whether it holds a signal at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from streamsplit.audio.container import iter_container
from streamsplit.audio.files import iter_audio
from streamsplit.audio.resample import to_mono
from streamsplit.errors import AudioError, MissingExtraError
from streamsplit.evaluation.data.settings import LeftOut
from streamsplit.evaluation.datasets import Clip

WINDOW_S = 1.0  # what a window of the encoders' default settings holds
SILENT_PEAK = 1e-4  # -80 dB of full scale
_BLOCK = 65_536
_TOLERANCE_S = 0.001  # rounding of times in lists


class BeyondEndError(AudioError):
    """A segment that its recording does not hold."""


class Signal(NamedTuple):
    """What a clip holds."""

    duration_s: float
    rate_hz: int
    peak: float


def file_rate_hz(path: Path) -> int:
    """The sample rate of an audio file; raises AudioError, for a missing decoder too: other files may do without."""
    try:
        return int(soundfile.info(str(path)).samplerate)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        try:
            return next(iter_container(str(path)))[1]
        except (AudioError, MissingExtraError) as second:
            raise AudioError(f"{path}: libsndfile cannot read it ({error}), and {second}") from second


def file_duration_s(path: Path) -> float:
    """The length that a file's header says; 0 where there is none that libsndfile can read."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return 0.0


def pieces(clip: Clip, rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """The clip's mono samples at `rate_hz`, block by block: a piece of a long file never loads the file.

    The rate is that of the file for a piece. Raises AudioError for what cannot be read, breaks off early, or holds NaN.
    """
    if clip.start_s is None or clip.duration_s is None:
        yield from iter_audio(clip.path, _BLOCK, rate_hz)
        return
    try:
        with soundfile.SoundFile(clip.path) as file:
            first, left = round(clip.start_s * rate_hz), round(clip.duration_s * rate_hz)
            if first + left > file.frames + round(_TOLERANCE_S * rate_hz):
                raise BeyondEndError(
                    f"{clip.path}: it ends at {file.frames / rate_hz:.2f} s, "
                    f"before the {clip.duration_s:g} s from {clip.start_s:g} s do"
                )
            file.seek(first)
            while left > 0:
                block = file.read(min(left, _BLOCK), dtype="float32", always_2d=True)
                if not len(block):
                    return
                left -= len(block)
                try:
                    mono = to_mono(block)
                except AudioError as error:
                    raise AudioError(f"{clip.path}: {error}") from error
                yield mono
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(f"{clip.path}: it cannot be read ({error})") from error


def measure(clip: Clip) -> Signal:
    """Length, rate and peak of a clip, all of it decoded; raises AudioError where unreadable, empty or not finite."""
    rate_hz = file_rate_hz(clip.path)
    samples, peak = 0, 0.0
    for block in pieces(clip, rate_hz):
        samples += len(block)
        peak = max(peak, float(np.max(np.abs(block), initial=0.0)))
    return Signal(samples / rate_hz, rate_hz, peak)


def inspect_clips(
    clips: Sequence[Clip], *, keep_short: bool, progress: Callable[[int, int, str], None] | None = None
) -> tuple[list[Clip], list[LeftOut]]:
    """Clips that hold a signal, with their length and rate, and those that do not: unreadable, short, or silent."""
    kept, left_out = [], []
    for number, clip in enumerate(clips):
        name = clip.path.name if clip.start_s is None else f"{clip.path.name} at {clip.start_s:g} s"
        try:
            signal = measure(clip)
        except BeyondEndError as error:
            left_out.append(LeftOut(name, "the recording ends before the segment does", str(error)))
        except AudioError as error:
            left_out.append(LeftOut(name, "unreadable, or not finite (NaN)", str(error)))
        else:
            if signal.peak < SILENT_PEAK:
                left_out.append(LeftOut(name, f"silent (peak below {SILENT_PEAK:g})"))
            elif signal.duration_s < WINDOW_S and not keep_short:
                left_out.append(LeftOut(name, f"shorter than a window of {WINDOW_S:g} s"))
            else:
                kept.append(clip._replace(duration_s=signal.duration_s, rate_hz=signal.rate_hz))
        if progress is not None:
            progress(number + 1, len(clips), name)
    return kept, left_out
