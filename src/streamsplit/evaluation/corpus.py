"""Corpora to learn from and to be judged on: windows in memory, and each device's stream through them by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamsplit.audio.files import read_audio
from streamsplit.audio.logmel import LogMelSettings
from streamsplit.audio.synth import LABELS, Soundscape, render_scene
from streamsplit.audio.windows import Window, cut_windows
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.datasets import Clip, load_labelled_folder, split_clips
from streamsplit.wire.media import Resolution

WINDOW_FRAMES, STRIDE_FRAMES = 100, 50
SHORT_STRIDE_FRAMES = 20  # between the two windows of a clip that fits into one
FRAME_S = 0.01
SCENE_S = 4.0
_PCM_SCALE = 32_767.0


class Part(NamedTuple):
    """Labelled pieces of sound (clips, scenes), cut into windows."""

    windows: np.ndarray  # [n, 128, 100] float16, log-mel
    owners: np.ndarray  # [n] piece of each window, ascending
    places: np.ndarray  # [n] position of each window in its piece: 0, 1, ...
    labels: tuple[str, ...]  # of each piece
    sources: tuple[str, ...]  # recording of each piece
    sounds: tuple[np.ndarray, ...]  # int16 samples of each piece
    stride_frames: int = STRIDE_FRAMES

    @property
    def seconds(self) -> np.ndarray:
        """New sound that each window holds, in seconds [n]."""
        return np.where(self.places == 0, WINDOW_FRAMES, self.stride_frames) * FRAME_S

    def window(self, row: int) -> Window:
        """Window `row` with the samples under it, as a device has it."""
        place = int(self.places[row])
        new_frames = WINDOW_FRAMES if place == 0 else self.stride_frames
        features = self.windows[row].astype(np.float32)
        return Window(row, features, self.audio(row), Resolution.FULL, 0.0, new_frames)

    def audio(self, row: int) -> np.ndarray:
        """The samples under window `row`, zero-padded where the piece ends."""
        analysis = LogMelSettings()
        start = int(self.places[row]) * self.stride_frames * analysis.hop_samples
        held = self.sounds[int(self.owners[row])][start : start + analysis.span(WINDOW_FRAMES)]
        audio = np.zeros(analysis.span(WINDOW_FRAMES), np.float32)
        audio[: len(held)] = held / np.float32(_PCM_SCALE)
        return audio

    def batch(self, rows: np.ndarray | slice) -> np.ndarray:
        """Windows [b, 128, 100] float32."""
        return self.windows[rows].astype(np.float32)


@dataclass(frozen=True)
class Corpus:
    """What methods learn from (`learn`, whose labels nobody sees) and what they are judged on (`train`, `test`)."""

    name: str
    learn: Part
    train: Part
    test: Part
    held_out: str  # for people: what the test part is
    run_pieces: int = 3  # pieces of one class that follow each other in a stream

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels, sorted."""
        return tuple(sorted({*self.train.labels, *self.test.labels}))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of windows and labels: equal for equal corpora."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.learn, self.train, self.test):
            digest.update(np.ascontiguousarray(part.windows).data)
            digest.update("\0".join((*part.labels, *part.sources)).encode())
        return digest.hexdigest()

    def order(self, seed: int, devices: int = 1) -> list[list[int]]:
        """Pieces of `learn` in one pass, a list a device: runs of one class, dealt to the devices in turn.

        The runs of all devices together are those of a single device, so fewer devices hear the same sound.
        """
        if devices < 1:
            raise ConfigError(f"got {devices} devices, expected at least 1")
        rng = np.random.default_rng([seed, 71])
        labels = np.array(self.learn.labels)
        runs: list[list[int]] = []
        for label in sorted(set(self.learn.labels)):
            held = rng.permutation(np.flatnonzero(labels == label)).tolist()
            runs += [held[start : start + self.run_pieces] for start in range(0, len(held), self.run_pieces)]
        dealt = [runs[row] for row in rng.permutation(len(runs))]
        return [[piece for run in dealt[device::devices] for piece in run] for device in range(devices)]

    def stream(self, seed: int, devices: int = 1, device: int = 0) -> Iterator[tuple[int, bool]]:
        """Endless (row of `learn.windows`, follows the one before), pass after pass, every pass in another order."""
        starts = np.searchsorted(self.learn.owners, np.arange(len(self.learn.labels) + 1))
        passes = 0
        while True:
            for piece in self.order(seed + 1_000_003 * passes, devices)[device]:
                for row in range(int(starts[piece]), int(starts[piece + 1])):
                    yield row, row > starts[piece]
            passes += 1


def esc10_corpus(root: Path, learn_folds: Sequence[int] = (1, 2, 3), test_fold: int = 4) -> Corpus:
    """ESC-10 by folds: learning and the probe's training on `learn_folds`, the test on `test_fold`; ConfigError."""
    clips = load_labelled_folder(root)
    known = sorted({clip.fold for clip in clips if clip.fold is not None})
    missing = [fold for fold in (*learn_folds, test_fold) if fold not in known]
    if missing or test_fold in learn_folds:
        raise ConfigError(f"{root}: got folds {list(learn_folds)} and {test_fold}, expected different ones of {known}")
    train = _clips_part([clip for clip in clips if clip.fold in learn_folds])
    test = _clips_part([clip for clip in clips if clip.fold == test_fold])
    return Corpus("esc10", train, train, test, f"fold {test_fold}")


def digits_corpus(root: Path, test_speaker: str | None = None) -> Corpus:
    """Spoken digits `<digit>_<speaker>_<take>.wav`: one speaker (default: the last by name) is only ever tested on.

    A digit is shorter than a window. A device with a stride of 200 ms hears it twice, which is what is learned from;
    the probe sees it once, from the window's start. Raises AudioError or ConfigError.
    """
    paths = sorted(path for path in root.glob("*_*_*.wav") if path.name[0].isdigit())
    if not paths:
        raise AudioError(f"{root}: got no <digit>_<speaker>_<take>.wav, expected recordings of spoken digits")
    clips = [Clip(path, path.stem.split("_")[0], None, path.stem.split("_")[1]) for path in paths]
    speakers = sorted({clip.source for clip in clips})
    held_out = speakers[-1] if test_speaker is None else test_speaker
    if held_out not in speakers or len(speakers) < 2:
        raise ConfigError(f"got speaker '{held_out}', expected one of at least two: {', '.join(speakers)}")
    train = [clip for clip in clips if clip.source != held_out]
    test = _clips_part([clip for clip in clips if clip.source == held_out])
    sounds = [(read_audio(clip.path), clip.label, clip.source) for clip in train]
    learn = _part([(_heard_twice(audio), label, source) for audio, label, source in sounds], SHORT_STRIDE_FRAMES)
    return Corpus("digits", learn, _part(sounds), test, f"speaker {held_out}")


def folder_corpus(root: Path, seed: int = 0) -> Corpus:
    """Any folder `<root>/<label>/*`, split so that no source recording is on both sides; raises AudioError."""
    split = split_clips(load_labelled_folder(root), seed=seed)
    train = _clips_part(split.train)
    return Corpus(root.resolve().name, train, train, _clips_part(split.test), split.held_out)


def synthetic_corpus(scenes: int = 120, stream_s: float = 600.0, seed: int = 0) -> Corpus:
    """A soundscape to learn from, and scenes made from other seeds to be judged on; as many to train as to test."""
    soundscape = Soundscape(seed)
    pieces: list[tuple[np.ndarray, str, str]] = []
    for number in range(max(2, round(stream_s / 10.0))):
        audio = soundscape.read(160_000)
        label = soundscape.label_at(10.0 * number, 10.0 * (number + 1)) or LABELS[0]
        pieces.append((audio, label, f"stream{number}"))
    train, test = (_scenes(seed + base, scenes) for base in (100_001, 200_002))
    return Corpus("synthetic", _part(pieces), train, test, f"{scenes} scenes of {SCENE_S:g} s from other seeds")


def piece_vectors(vectors: np.ndarray, part: Part) -> np.ndarray:
    """One vector a piece [m, d]: the mean of its windows' vectors [n, d]."""
    starts = np.searchsorted(part.owners, np.arange(len(part.labels)))
    counts = np.bincount(part.owners, minlength=len(part.labels))
    sums: np.ndarray = np.add.reduceat(np.asarray(vectors, np.float64), starts, axis=0) / counts[:, None]
    return sums


def _scenes(seed: int, scenes: int) -> Part:
    rng = np.random.default_rng(seed)
    names = [LABELS[row % len(LABELS)] for row in range(scenes)]
    return _part([(render_scene(name, SCENE_S, rng), name, f"{seed}-{row}") for row, name in enumerate(names)])


def _clips_part(clips: Sequence[Clip]) -> Part:
    return _part([(read_audio(clip.path), clip.label, clip.source) for clip in clips])


def _part(pieces: Sequence[tuple[np.ndarray, str, str]], stride_frames: int = STRIDE_FRAMES) -> Part:
    """Cuts each piece; what is learned from are the samples as 16-bit audio has them."""
    windows: list[np.ndarray] = []
    owners: list[int] = []
    places: list[int] = []
    sounds: list[np.ndarray] = []
    for piece, (audio, _, _) in enumerate(pieces):
        sound = np.rint(np.clip(audio, -1.0, 1.0) * _PCM_SCALE).astype(np.int16)
        cut = cut_windows(sound / np.float32(_PCM_SCALE), None, WINDOW_FRAMES, stride_frames)
        windows.append(np.stack([window.features for window in cut]).astype(np.float16))
        owners += [piece] * len(cut)
        places += range(len(cut))
        sounds.append(sound)
    labels, sources = tuple(label for _, label, _ in pieces), tuple(source for _, _, source in pieces)
    return Part(
        np.concatenate(windows), np.array(owners), np.array(places), labels, sources, tuple(sounds), stride_frames
    )


def _heard_twice(audio: np.ndarray) -> np.ndarray:
    """Silence of one short stride before the sound, and after it up to the end of a second window."""
    analysis = LogMelSettings()
    lead = SHORT_STRIDE_FRAMES * analysis.hop_samples
    heard = np.zeros(max(lead + len(audio), analysis.span(WINDOW_FRAMES + SHORT_STRIDE_FRAMES)), np.float32)
    heard[lead : lead + len(audio)] = audio
    return heard
