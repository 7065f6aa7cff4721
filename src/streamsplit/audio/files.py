"""Audio files as mono float32 at one rate: WAV, FLAC, OGG, MP3 and Opus by libsndfile, anything else by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from streamsplit.audio.container import iter_container
from streamsplit.audio.resample import StreamingResampler
from streamsplit.errors import AudioError, MissingExtraError

Floats = NDArray[np.float32]

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aif", ".aiff", ".au", ".w64", ".m4a", ".aac", ".webm", ".mp4"}
)
_READ_FRAMES = 65_536  # decoded at a time, whatever the file's length


def read_audio(path: str | Path, rate_hz: int = 16_000) -> Floats:
    """The whole file as mono samples [n] at `rate_hz`.

    Raises AudioError if the file is missing, unreadable, empty or holds NaN.
    """
    return np.concatenate(list(iter_audio(path, _READ_FRAMES, rate_hz)))


def iter_audio(path: str | Path, block_samples: int, rate_hz: int = 16_000) -> Iterator[Floats]:
    """A file of any length as mono blocks [block_samples] at `rate_hz`, the last shorter; errors as `read_audio`."""
    path = Path(path)
    pending = np.zeros(0, np.float32)
    resampler: StreamingResampler | None = None
    total = 0
    try:
        for chunk, from_hz in _decode(path):
            if resampler is None:
                resampler = StreamingResampler(from_hz, rate_hz)
            elif resampler.from_hz != from_hz:
                raise AudioError(f"the sample rate changes from {resampler.from_hz} to {from_hz} Hz in mid-file")
            total += len(chunk)
            pending = np.concatenate((pending, resampler.push(chunk)))
            whole = len(pending) // block_samples * block_samples
            for at in range(0, whole, block_samples):
                yield pending[at : at + block_samples]
            pending = pending[whole:]
        if resampler is None or total == 0:
            raise AudioError("it holds no audio")
        pending = np.concatenate((pending, resampler.flush()))
        for at in range(0, len(pending), block_samples):
            yield pending[at : at + block_samples]
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error


def _decode(path: Path) -> Iterator[tuple[Floats, int]]:
    """Chunks [n, channels] and their rate, by the first decoder that can open the file."""
    if not path.is_file():
        raise AudioError("there is no such file" if not path.exists() else "it is not a file")
    if path.stat().st_size == 0:
        raise AudioError("the file is empty")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        yield from _decode_container(path, str(error))
        return
    with file:
        while True:
            try:
                chunk = file.read(_READ_FRAMES, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise AudioError(f"it breaks off while being decoded ({error})") from error
            if not len(chunk):
                return
            yield chunk, file.samplerate


def _decode_container(path: Path, reason: str) -> Iterator[tuple[Floats, int]]:
    try:
        yield from iter_container(str(path))
    except MissingExtraError as error:
        raise AudioError(f"libsndfile cannot read it ({reason}), and {error}") from error
