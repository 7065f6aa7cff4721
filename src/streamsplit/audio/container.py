"""Audio out of any container or network stream that FFmpeg reads, through PyAV (extra 'media')."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import AudioError, MissingExtraError

Floats = NDArray[np.float32]


def iter_container(
    target: str, options: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> Iterator[tuple[Floats, int]]:
    """Chunks [n, channels] of the first audio stream of a file or URL, and their sample rate in Hz.

    `timeout_s` bounds opening and every read. Raises AudioError if nothing can be opened or decoded, MissingExtraError
    without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("reading this kind of audio", "media", str(error)) from error
    try:
        container = av.open(target, options=dict(options or {}), timeout=timeout_s, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"cannot be opened ({_reason(error)})") from error
    with container:
        if not container.streams.audio:
            raise AudioError("it has no audio stream")
        resampler: av.AudioResampler | None = None
        decoded = 0
        try:
            for frame in container.decode(container.streams.audio[0]):
                if resampler is None:  # planar float in the stream's own layout and rate
                    resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
                for part in resampler.resample(frame):
                    decoded += 1
                    yield np.ascontiguousarray(part.to_ndarray().T, np.float32), part.sample_rate
        except (av.FFmpegError, OSError, ValueError) as error:
            raise AudioError(f"it breaks off while being decoded ({_reason(error)})") from error
        if not decoded:
            raise AudioError("it holds no audio")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
