"""Where a device's audio comes from: a file, a folder of clips, a synthetic soundscape, a microphone, a stream URL."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.files import AUDIO_SUFFIXES, iter_audio
from streamsplit.audio.synth import Soundscape
from streamsplit.edge.blocks import RATE_HZ, AudioBlock, Pacer, Source, SourceInfo
from streamsplit.edge.reconnecting import ReconnectingSource
from streamsplit.errors import AudioError

_log = logging.getLogger(__name__)


class LabelledClip(NamedTuple):
    """A file and what is heard in it."""

    path: Path
    label: str | None


class _PacedSource:
    """A source whose blocks exist before their time: subclasses give them, this class paces them."""

    info: SourceInfo

    def __init__(self, speed: float, block_ms: float) -> None:
        if not 1.0 <= block_ms <= 60_000.0:
            raise AudioError(f"got blocks of {block_ms} ms, expected 1..60000")
        self._block_samples = max(1, round(block_ms * RATE_HZ / 1_000.0))
        self._pacer = Pacer(speed)

    def _pieces(self) -> Iterator[tuple[NDArray[np.float32], str | None, str | None]]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[AudioBlock]:
        position = 0
        for samples, label, clip in self._pieces():
            start_ms = position * 1_000.0 / RATE_HZ
            position += len(samples)
            if not self._pacer.wait(position * 1_000.0 / RATE_HZ):
                return
            yield AudioBlock(samples, start_ms, label, clip)

    def close(self) -> None:
        self._pacer.close()


class SyntheticSource(_PacedSource):
    """A soundscape, endless or of `seconds` seconds, with its ground truth."""

    def __init__(
        self, seconds: float | None = None, *, speed: float = 1.0, seed: int = 0, block_ms: float = 100.0
    ) -> None:
        super().__init__(speed, block_ms)
        self.soundscape = Soundscape(seed)
        self._samples = None if seconds is None else round(seconds * RATE_HZ)
        self.info = SourceInfo("synthetic", f"soundscape {seed}", False, self.soundscape.classes)

    def _pieces(self) -> Iterator[tuple[NDArray[np.float32], str | None, str | None]]:
        left = self._samples
        for samples, label in self.soundscape.blocks(self._block_samples):
            if left is not None:
                if left <= 0:
                    return
                samples = samples[:left]
                left -= len(samples)
            yield samples, label, None


class ClipSource(_PacedSource):
    """Clips one after the other, in the given order; a clip that cannot be read is logged and left out.

    With `loop`, the round starts again, and names get the round's number so that a repeated clip is a new one.
    Raises AudioError if a whole round has nothing readable in it.
    """

    def __init__(
        self, clips: Sequence[LabelledClip], info: SourceInfo, *, speed: float = 1.0, loop: bool = False,
        block_ms: float = 100.0, strict: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(speed, block_ms)
        if not clips:
            raise AudioError(f"{info.name}: got no audio files, expected at least one ({_known_suffixes()})")
        self.clips = tuple(clips)
        self.info = info
        self.unreadable: list[str] = []
        self._loop = loop
        self._strict = strict

    def _pieces(self) -> Iterator[tuple[NDArray[np.float32], str | None, str | None]]:
        for number in itertools.count(1):
            self.unreadable = []
            for clip in self.clips:
                name = clip.path.name if number == 1 else f"{clip.path.name}#{number}"
                try:
                    for samples in iter_audio(clip.path, self._block_samples, RATE_HZ):
                        yield samples, clip.label, name
                except AudioError as error:
                    if self._strict:
                        raise
                    self.unreadable.append(str(error))
                    _log.warning("left out: %s", error)
            if len(self.unreadable) == len(self.clips):
                raise AudioError(f"{self.info.name}: none of {len(self.clips)} files can be read; {self.unreadable[0]}")
            if not self._loop:
                return


def find_clips(root: str | Path) -> list[LabelledClip]:
    """All audio files under `root`, sorted; the label is the name of the file's own folder, None for files in `root`
    itself. Raises AudioError if there are none."""
    root = Path(root)
    if not root.is_dir():
        raise AudioError(f"{root}: there is no such folder")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
    if not paths:
        raise AudioError(f"{root}: got no audio files, expected <label>/*.wav or similar ({_known_suffixes()})")
    return [LabelledClip(path, None if path.parent == root else path.parent.name) for path in paths]


def open_source(
    spec: str, *, speed: float = 1.0, seed: int = 0, loop: bool = False, block_ms: float = 100.0, retry_s: float = 0.0
) -> Source:
    """The source that `spec` names: 'synthetic[:seconds]', 'mic[:device]', a file, a folder of <label>/*.ext (played in
    an order drawn from `seed`), or an rtsp://, http:// or https:// URL. A microphone that goes away is opened again,
    with waits of at most `retry_s` between the tries; 0: its error ends the source.

    Raises AudioError if it does not exist or cannot be opened, MissingExtraError if it needs an extra.
    """
    kind, _, rest = spec.partition(":")
    if kind == "synthetic":
        return SyntheticSource(_seconds(rest), speed=speed, seed=seed, block_ms=block_ms)
    if kind == "mic":
        return _microphone(rest or None, block_ms, retry_s)
    if kind.lower() in ("rtsp", "rtsps", "http", "https") and rest.startswith("//"):
        from streamsplit.edge.media_url import UrlSource

        return UrlSource(spec, speed=speed, block_ms=block_ms)
    path = Path(spec).expanduser()
    if path.is_dir():
        clips = find_clips(path)
        order = np.random.default_rng([seed, 2]).permutation(len(clips))
        labels = tuple(sorted({clip.label for clip in clips if clip.label is not None}))
        info = SourceInfo("folder", str(path), False, labels)
        return ClipSource([clips[i] for i in order], info, speed=speed, loop=loop, block_ms=block_ms)
    if path.is_file():
        info = SourceInfo("file", str(path), False, ())
        return ClipSource(
            [LabelledClip(path, None)], info, speed=speed, loop=loop, block_ms=block_ms, strict=True
        )  # fmt: skip
    raise AudioError(
        f"got source '{spec}': no such file or folder; expected a path, 'synthetic[:seconds]', 'mic[:device]' or a URL"
    )


def _microphone(device: str | None, block_ms: float, retry_s: float) -> Source:
    from streamsplit.edge.microphone import MicrophoneSource
    from streamsplit.edge.portaudio import look_again

    def reopened() -> Source:
        look_again()
        return MicrophoneSource(device, block_ms=block_ms)

    if not retry_s:
        return MicrophoneSource(device, block_ms=block_ms)
    return ReconnectingSource(lambda: MicrophoneSource(device, block_ms=block_ms), reopened, longest_s=retry_s)


def _seconds(text: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 < seconds < 1e9:
        raise AudioError(f"got 'synthetic:{text}', expected 'synthetic' or 'synthetic:SECONDS'")
    return seconds


def _known_suffixes() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in AUDIO_SUFFIXES))
