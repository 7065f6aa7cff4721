"""Corpora to learn from and to be judged on: windows in memory, and each device's stream through them by a seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamsplit.audio.logmel import LogMelSettings
from streamsplit.audio.synth import LABELS, Soundscape, render_scene
from streamsplit.audio.windows import Window, cut_windows
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.folder import empty_labels
from streamsplit.evaluation.data.inspect import WINDOW_S, inspect_clips
from streamsplit.evaluation.data.manifest import load_card, load_prepared, read_clip
from streamsplit.evaluation.data.stream import StreamSettings, directly_follows
from streamsplit.evaluation.datasets import ESC_NAME, Clip, load_labelled_folder, split_clips
from streamsplit.evaluation.hearing import FleetStream, HearingSettings
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

    @property
    def recordings(self) -> tuple[str, ...]:
        """The recording of each piece; the piece itself where one speaker, or two, made them all."""
        few = len(set(self.sources)) < 3
        return tuple(str(piece) for piece in range(len(self.sources))) if few else self.sources

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
    follows: tuple[int, ...] = ()  # of each piece of `learn`, the one that it goes on from, -1 for none; () = none do
    notes: tuple[str, ...] = ()  # for people: what was left out, and why
    hearing: StreamSettings = HearingSettings()
    fleet: int = 3  # devices whose sound a single device hears in their place

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

    def order(self, seed: int, devices: int = 1, number: int = 0) -> list[list[int]]:
        """Pieces of `learn` in pass `number`, a list a device; every piece comes once a pass.

        A single device hears the runs of a whole fleet's pass, so that fewer devices hear the same sound. Raises
        ConfigError for more devices than pieces, and fewer than two classes.
        """
        return self._pass(self._heard_by(seed, devices), devices, number)

    def stream(self, seed: int, devices: int = 1, device: int = 0) -> Iterator[tuple[int, bool]]:
        """Endless (row of `learn.windows`, follows the one before), pass after pass, every pass in another order."""
        starts = np.searchsorted(self.learn.owners, np.arange(len(self.learn.labels) + 1))
        heard, before, number = self._heard_by(seed, devices), -1, 0
        while True:
            for piece in self._pass(heard, devices, number)[device]:
                goes_on = before >= 0 and bool(self.follows) and self.follows[piece] == before
                for row in range(int(starts[piece]), int(starts[piece + 1])):
                    yield row, row > starts[piece] or goes_on
                before = piece
            number += 1

    def _heard_by(self, seed: int, devices: int) -> FleetStream:
        if devices < 1:
            raise ConfigError(f"got {devices} devices, expected at least 1")
        ears = min(self.fleet, len(self.learn.labels)) if devices == 1 else devices
        settings = self.hearing.replace(seed=self.hearing.seed + seed)
        return FleetStream(self.learn.labels, ears, settings, follows=self.follows or None)

    @staticmethod
    def _pass(heard: FleetStream, devices: int, number: int) -> list[list[int]]:
        return [heard.one_listener(number)] if devices == 1 else heard.one_pass(number)


def esc10_corpus(root: Path, learn_folds: Sequence[int] = (1, 2, 3), test_fold: int = 4) -> Corpus:
    """ESC-10 by folds: learning and the probe's training on `learn_folds`, the test on `test_fold`; ConfigError."""
    clips = load_labelled_folder(root)
    known = sorted({clip.fold for clip in clips if clip.fold is not None})
    missing = [fold for fold in (*learn_folds, test_fold) if fold not in known]
    if missing or test_fold in learn_folds:
        raise ConfigError(f"{root}: got folds {list(learn_folds)} and {test_fold}, expected different ones of {known}")
    clips, notes = usable(clips)
    train = [clip for clip in clips if clip.fold in learn_folds]
    test = [clip for clip in clips if clip.fold == test_fold]
    check_classes(train, test, str(root))
    part = _clips_part(train)
    return Corpus("esc10", part, part, _clips_part(test), f"fold {test_fold}", notes=notes)


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
    clips, notes = usable(clips, keep_short=True)
    train = [clip for clip in clips if clip.source != held_out]
    test = [clip for clip in clips if clip.source == held_out]
    check_classes(train, test, str(root))
    return Corpus("digits", *_short_parts(train), _clips_part(test), f"speaker {held_out}", notes=notes)


def folder_corpus(root: Path, seed: int = 0) -> Corpus:
    """Any folder `<root>/<label>/*`, split so that no source recording is on both sides; raises AudioError."""
    clips, notes = usable(load_labelled_folder(root))
    notes += _left_out_note(Counter(each.reason for each in empty_labels(root)), "as they are")
    notes += _rates_note(clips)
    split = split_clips(clips, seed=seed)
    check_classes(split.train, split.test, str(root))
    check_tested(split.test, str(root))
    train = _clips_part(split.train)
    return Corpus(root.resolve().name, train, train, _clips_part(split.test), split.held_out, notes=notes)


def prepared_corpus(folder: Path, test_fold: int | None = None) -> Corpus:
    """A data set made by `streamsplit data prepare`, split as it says: a fold (the last) or the test part is held out.

    Pieces of one recording that follow each other do so in the streams. Where most clips are shorter than a window,
    they are learned from as spoken digits are. Raises ConfigError or AudioError.
    """
    split = split_clips([_named_by_fold(clip) for clip in load_prepared(folder)], test_fold=test_fold)
    check_classes(split.train, split.test, str(folder))
    check_tested(split.test, str(folder))
    left_out = load_card(folder).get("left_out") or {}
    notes = _left_out_note({reason: int(held["count"]) for reason, held in left_out.items()}, "when it was prepared")
    test, name = _clips_part(split.test), folder.resolve().name
    if np.median([clip.duration_s or WINDOW_S for clip in split.train]) < WINDOW_S:
        notes += (f"most clips are shorter than a window: each is heard twice, {SHORT_STRIDE_FRAMES * FRAME_S:g} s on",)
        return Corpus(name, *_short_parts(split.train), test, split.held_out, notes=notes)
    follows, train = tuple(directly_follows(split.train)), _clips_part(split.train)
    return Corpus(name, train, train, test, split.held_out, follows, notes)


def _named_by_fold(clip: Clip) -> Clip:
    """Sources as `load_labelled_folder` names them: the probe's folds are drawn over names in their order."""
    named = ESC_NAME.match(clip.path.stem) is not None and clip.fold is not None
    return clip._replace(source=f"{clip.fold}-{clip.source}") if named else clip


def usable(clips: Sequence[Clip], *, keep_short: bool = False) -> tuple[list[Clip], tuple[str, ...]]:
    """The clips that hold a signal, and a note that counts the others by reason; AudioError where none does."""
    kept, left_out = inspect_clips(clips, keep_short=keep_short)
    notes = _left_out_note(Counter(each.reason for each in left_out), f"of {len(clips)}")
    if not kept:
        raise AudioError(f"got no usable clip of {len(clips)} ({notes[0]}), expected at least one of every class")
    return kept, notes


def check_classes(train: Sequence[Clip], test: Sequence[Clip], where: str) -> None:
    """Raises AudioError for fewer than two classes, and for one that is missing on a side of the split."""
    sides = [{clip.label for clip in side} for side in (train, test)]
    labels = sorted(sides[0] | sides[1])
    if len(labels) < 2:
        raise AudioError(f"{where}: got {len(labels)} class with usable clips, expected at least 2")
    for name, held in zip(("training", "test"), sides, strict=True):
        missing = [label for label in labels if label not in held]
        if missing:
            raise AudioError(f"{where}: got no usable clip of class '{missing[0]}' in the {name} part, expected some")


def check_tested(test: Sequence[Clip], where: str) -> None:
    """Raises AudioError for a test part of one clip a class: there is nothing to find, and there are no clusters."""
    labels = {clip.label for clip in test}
    if len(test) == len(labels):
        raise AudioError(
            f"{where}: got {len(test)} test clips of {len(labels)} classes, expected two or more of some class; more "
            "clips of every class make the test part larger"
        )


def synthetic_corpus(scenes: int = 120, stream_s: float = 600.0, seed: int = 0) -> Corpus:
    """A soundscape to learn from, and scenes made from other seeds to be judged on; as many to train as to test."""
    soundscape = Soundscape(seed)
    pieces: list[tuple[np.ndarray, str, str]] = []
    for number in range(max(2, round(stream_s / 10.0))):
        audio = soundscape.read(160_000)
        label = soundscape.label_at(10.0 * number, 10.0 * (number + 1)) or LABELS[0]
        pieces.append((audio, label, f"stream{number}"))
    train, test = (_scenes(seed + base, scenes) for base in (100_001, 200_002))
    return Corpus("synthetic", pieces_part(pieces), train, test, f"{scenes} scenes of {SCENE_S:g} s from other seeds")


def piece_vectors(vectors: np.ndarray, part: Part) -> np.ndarray:
    """One vector a piece [m, d]: the mean of its windows' vectors [n, d]."""
    starts = np.searchsorted(part.owners, np.arange(len(part.labels)))
    counts = np.bincount(part.owners, minlength=len(part.labels))
    sums: np.ndarray = np.add.reduceat(np.asarray(vectors, np.float64), starts, axis=0) / counts[:, None]
    return sums


def _scenes(seed: int, scenes: int) -> Part:
    rng = np.random.default_rng(seed)
    names = [LABELS[row % len(LABELS)] for row in range(scenes)]
    return pieces_part([(render_scene(name, SCENE_S, rng), name, f"{seed}-{row}") for row, name in enumerate(names)])


def _left_out_note(counts: Mapping[str, int], of_what: str) -> tuple[str, ...]:
    if not counts:
        return ()
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return (f"{sum(counts.values())} left out {of_what}: {reasons}",)


def _rates_note(clips: Sequence[Clip]) -> tuple[str, ...]:
    rates = Counter(clip.rate_hz for clip in clips if clip.rate_hz)
    if len(rates) < 2:
        return ()
    counts = ", ".join(f"{count} of {rate} Hz" for rate, count in sorted(rates.items()))
    return (f"mixed sample rates, resampled when they are read: {counts}",)


def _clips_part(clips: Sequence[Clip]) -> Part:
    return pieces_part([(read_clip(clip), clip.label, clip.source) for clip in clips])


def _short_parts(clips: Sequence[Clip]) -> tuple[Part, Part]:
    """What is learned from clips that are shorter than a window, and what the probe is trained on."""
    sounds = [(read_clip(clip), clip.label, clip.source) for clip in clips]
    twice = [(_heard_twice(audio), label, source) for audio, label, source in sounds]
    return pieces_part(twice, SHORT_STRIDE_FRAMES), pieces_part(sounds)


def pieces_part(pieces: Sequence[tuple[np.ndarray, str, str]], stride_frames: int = STRIDE_FRAMES) -> Part:
    """Windows of (samples [n] at 16 kHz, label, source) each; what is learned from are the samples as 16-bit audio."""
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
