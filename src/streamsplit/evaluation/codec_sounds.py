"""The sound that a codec is trained and judged on: any folder of audio, and what of it is held out."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.files import AUDIO_SUFFIXES, read_audio
from streamsplit.config import Settings, setting
from streamsplit.errors import AudioError, ConfigError
from streamsplit.refinement.codec_training import Sounds

FORMS = ("float", "onnx-int8")  # of an encoder, beside the one in whole numbers: as trained, and with 8-bit weights
_ONE_OF = 20  # recordings, where nothing is named to be held out


@dataclass(frozen=True, kw_only=True)
class CodecDataSettings(Settings):
    """Which recordings take part; patterns of paths within the data folder, like 'esc10/*/4-*'."""

    include: tuple[str, ...] = setting(("*",))
    held_out: tuple[str, ...] = setting(())  # never trained on; none named: every twentieth recording


@dataclass(frozen=True, kw_only=True)
class CodecEvaluationSettings(Settings):
    """Which of the held-out recordings a codec is judged on, by patterns as in CodecDataSettings."""

    speech: tuple[str, ...] = setting(())  # judged by ESTOI, PESQ and mel distance
    sounds: tuple[str, ...] = setting(())  # judged by mel distance
    recordings: int = setting(40, low=1)  # of each kind at most, evenly spread
    longest_s: float = setting(6.0, low=1.0, high=60.0)  # of each recording, from its beginning
    lost: tuple[float, ...] = setting(())  # shares of frames, each a row of the table: lost one by one, and concealed
    forms: tuple[str, ...] = setting(())  # other forms of the encoder, each a row: float, onnx-int8
    alone: bool = setting(False)  # without Opus and Codec2
    times: bool = setting(True)  # the encoders' process time too, in torch and ONNX Runtime

    def check(self) -> None:
        """Shares lost are below all; forms are those that there are."""
        wrong = [f"'lost': got {share}, expected above 0 and below 1" for share in self.lost if not 0 < share < 1]
        wrong += [f"'forms': got {form!r}, expected {' or '.join(FORMS)}" for form in self.forms if form not in FORMS]
        if wrong:
            raise ConfigError(wrong[0])


class CodecSounds(NamedTuple):
    """Recordings, in memory."""

    train: Sounds
    held_out: Sounds
    notes: tuple[str, ...]  # what was left out, and why


def hear_for_codec(
    root: Path, settings: CodecDataSettings, sample_rate: int, progress: Callable[[int, int], None] | None = None
) -> CodecSounds:
    """Reads every recording under `root` that the settings name, at the codec's rate.

    Raises AudioError for a folder without usable audio, ConfigError where a pattern matches nothing or all is held out.
    """
    train, held_out = split_recordings(root, settings)
    notes: list[str] = []
    read: list[list[NDArray[np.int16]]] = [[], []]
    paths = [(path, 0) for path in train] + [(path, 1) for path in held_out]
    for done, (path, part) in enumerate(paths):
        try:
            samples = read_audio(path, sample_rate)
        except AudioError as error:
            notes.append(f"left out: {error}")
        else:
            read[part].append((np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16))
        if progress is not None:
            progress(done + 1, len(paths))
    return CodecSounds(Sounds(read[0], sample_rate), Sounds(read[1], sample_rate), tuple(notes))


def split_recordings(root: Path, settings: CodecDataSettings) -> tuple[list[Path], list[Path]]:
    """Paths to train on and paths held out; errors as `hear_for_codec`."""
    if not root.is_dir():
        raise AudioError(f"{root}: there is no such folder; give one with audio files in it")
    chosen = _matching(root, settings.include, "data.include")
    if not chosen:
        raise AudioError(f"{root}: got no audio files, expected recordings ({', '.join(sorted(AUDIO_SUFFIXES))})")
    held_out = set(_matching(root, settings.held_out, "data.held_out")) if settings.held_out else set(chosen[::_ONE_OF])
    train = [path for path in chosen if path not in held_out]
    if not train:
        raise ConfigError(f"{root}: got {len(chosen)} recordings, all of them held out, expected some to train on")
    return train, [path for path in chosen if path in held_out]


def judged_recordings(
    root: Path, data: CodecDataSettings, settings: CodecEvaluationSettings
) -> tuple[list[Path], list[Path]]:
    """Held-out paths of speech and of other sounds.

    Raises ConfigError where nothing is named, a pattern matches nothing, or names what the codec was trained on.
    """
    held_out = set(split_recordings(root, data)[1])
    chosen = []
    for name in ("speech", "sounds"):
        paths = _matching(root, getattr(settings, name), f"evaluation.{name}")
        trained = [path for path in paths if path not in held_out]
        if trained:
            raise ConfigError(
                f"'evaluation.{name}': got {trained[0].relative_to(root)}, which is not held out, expected recordings "
                "that the codec was not trained on (data.held_out)"
            )
        step = max(1, -(-len(paths) // settings.recordings))
        chosen.append(paths[::step])
    if not chosen[0] and not chosen[1]:
        raise ConfigError("got neither 'evaluation.speech' nor 'evaluation.sounds', expected recordings to judge on")
    return chosen[0], chosen[1]


def _matching(root: Path, patterns: Sequence[str], name: str) -> list[Path]:
    """Audio files, in folders behind links too, whose path within `root` has one of the patterns."""
    files = [Path(folder) / file for folder, _, names in os.walk(root, followlinks=True) for file in names]
    audio = {path.relative_to(root).as_posix(): path for path in files if path.suffix.lower() in AUDIO_SUFFIXES}
    found: set[Path] = set()
    for pattern in patterns:
        matches = {path for place, path in audio.items() if fnmatch.fnmatchcase(place, pattern)}
        if not matches and name != "data.include":
            raise ConfigError(f"'{name}': got '{pattern}', which no audio file under {root} has; correct it")
        found |= matches
    return sorted(found)
