"""A device's audio from a stream URL: RTSP cameras, internet radio, files on a web server (extra 'media')."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from streamsplit.audio.container import iter_container
from streamsplit.audio.resample import StreamingResampler
from streamsplit.edge.blocks import RATE_HZ, AudioBlock, Pacer, SourceInfo
from streamsplit.errors import AudioError

_TIMEOUT_S = 10.0  # for opening and for every read


class UrlSource:
    """Decodes a URL while it plays; RTSP sets its own pace, HTTP is paced like a file (a live stream is slower anyway).

    Raises AudioError when the URL cannot be opened, at the first block, and when it breaks off.
    """

    def __init__(self, url: str, *, speed: float = 1.0, block_ms: float = 100.0, timeout_s: float = _TIMEOUT_S) -> None:
        live = url.lower().startswith("rtsp")
        self.info = SourceInfo("url", url, live, ())
        self._url = url
        self._timeout_s = timeout_s
        self._block_samples = max(1, round(block_ms * RATE_HZ / 1_000.0))
        self._pacer = Pacer(0.0 if live else speed)
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[AudioBlock]:
        position = 0
        for samples in self._blocks():
            start_ms = position * 1_000.0 / RATE_HZ
            position += len(samples)
            if not self._pacer.wait(position * 1_000.0 / RATE_HZ):
                return
            yield AudioBlock(samples, start_ms, None, None)

    def close(self) -> None:
        """Ends the iteration at the next block, or after the time limit of a read under way."""
        self._closed.set()
        self._pacer.close()

    def _blocks(self) -> Iterator[np.ndarray]:
        options = {"rtsp_transport": "tcp"} if self.info.live else {}
        pending = np.zeros(0, np.float32)
        resampler: StreamingResampler | None = None
        try:
            with closing(iter_container(self._url, options, self._timeout_s)) as chunks:  # type: ignore[type-var]
                for chunk, from_hz in chunks:
                    if self._closed.is_set():
                        return
                    if resampler is None or resampler.from_hz != from_hz:  # radio may change its rate between tracks
                        pending = np.concatenate((pending, resampler.flush())) if resampler else pending
                        resampler = StreamingResampler(from_hz, RATE_HZ)
                    pending = np.concatenate((pending, resampler.push(chunk)))
                    while len(pending) >= self._block_samples:
                        yield pending[: self._block_samples]
                        pending = pending[self._block_samples :]
        except AudioError as error:
            if self._closed.is_set():
                return
            raise AudioError(f"{self._url}: {error}") from error
        if resampler is not None:
            pending = np.concatenate((pending, resampler.flush()))
        for at in range(0, len(pending), self._block_samples):
            yield pending[at : at + self._block_samples]
