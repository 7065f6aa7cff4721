"""Learning an encoder from recordings alone, before any device is heard: what is published starts from here.

Two kinds of recordings teach two things. Clips of one sound each: two windows of a clip attract, other clips repel,
under views that change voice, room and loudness. Speech of many speakers: a window says what its content would be if
every speaker's voice and microphone were the same. That target is fixed statistics of the window with each band's mean
and deviation over everything that this speaker (or device) said taken out, which a server can know and one window
cannot: learning it from many speakers is what carries over to unheard ones. (Not in the papers; docs/design.md has what
was measured, and what else was tried.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamsplit.config import Settings, section, setting
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.bottleneck import fit_bottlenecks
from streamsplit.encoders.fixed import COURSE_BANDS, SEGMENTS, course, scaled_to_norm
from streamsplit.encoders.pca import HalfWhitenedPca, fit_pca
from streamsplit.encoders.projection import collect_readouts, fit_exits, fit_projection_to, fit_reduced
from streamsplit.errors import EncoderError
from streamsplit.learning.rank import effective_rank
from streamsplit.refinement.batch import frozen_copy
from streamsplit.refinement.views import ViewSettings, another_view, isolated

CLIPS = -1  # the voice of all clips
_LEAST_DEVIATION = 0.1  # nepers, added to a voice's deviation per band


class Recordings(NamedTuple):
    """Windows [n, f, t] of log-mel, in the order of time within each recording."""

    windows: np.ndarray  # any float type
    recordings: np.ndarray  # [n] number of the recording that each was cut from
    voices: np.ndarray  # [n] number of the speaker or device heard


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings(Settings):
    """How an encoder is learned from recordings."""

    steps: int = setting(1500, low=1, high=1_000_000)
    batch_windows: int = setting(64, low=8, high=4096)  # speech; of clips as many pairs
    speech_share: float = setting(0.6, low=0.0, high=1.0)  # of the steps, where there are both kinds
    speech_recordings: int = setting(4, low=1)  # that a batch of speech is drawn from
    isolated_share: float = setting(0.6, low=0.0, high=1.0)  # of the batches of speech: silence around a short stretch
    start_windows: int = setting(1400, low=32, high=20_000)  # for the projection's start, half of each kind
    ridge: float = setting(0.3, low=1e-4, high=100.0)  # of that start, see encoders.projection
    temperature: float = setting(0.1, low=0.01, high=2.0)
    contrast_weight: float = setting(1.0, low=0.0)  # clips of one sound only
    target_weight: float = setting(4.0, low=0.0)
    learning_rate: float = setting(5e-4, low=1e-7, high=1.0)  # Adam, of the convolutions; cosine decay to 0
    readout_rate: float = setting(15.0, low=0.0, high=1000.0)  # x learning_rate x RMS of the projections' weights
    warm_up_steps: int = setting(30, low=0)
    gradient_norm: float = setting(1.0, low=1e-3)
    views: ViewSettings = section(ViewSettings)


class PretrainingStep(NamedTuple):
    """What one step gave."""

    step: int
    contrast: float  # nan for a batch of speech
    target: float  # mean 1 - cosine to the fixed target
    effective_rank: float  # of the batch's embeddings


class GroupWeights(NamedTuple):
    """Norms of a window's three groups of statistics in the target."""

    levels: float  # the input's five statistics
    course: float
    maps: float  # each map of the untrained network


CLIP_WEIGHTS = GroupWeights(2.0, 0.5, 0.7)  # what makes a sound its kind seldom depends on the order within a second
SPEECH_WEIGHTS = GroupWeights(2.0, 1.5, 0.15)


class VoicelessTarget:
    """Frozen unit-norm target [n, d]: statistics of the untrained network, the course without what is the voice's own.

    The course's bands are centred and scaled by their mean and deviation over all windows of the same voice; clips of
    single sounds count as one voice, CLIPS, together. What matters is not the same in both kinds: see the weights.
    A half-whitened PCA of both brings the statistics to d numbers.
    """

    def __init__(self, untrained: SplitEncoder) -> None:
        """Keeps a copy of the encoder as it is now."""
        self._untrained = frozen_copy(untrained)
        self._voices: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._pca: HalfWhitenedPca | None = None

    def hear(self, windows: np.ndarray, voices: np.ndarray) -> None:
        """Takes each voice's mean and deviation per band [32] from its windows."""
        segments = _segments(windows)
        for voice in np.unique(voices):
            own = segments[voices == voice]
            self._voices[int(voice)] = (own.mean((0, 1)), own.std((0, 1)) + _LEAST_DEVIATION)

    def fit(self, windows: np.ndarray, voices: np.ndarray, seed: int) -> None:
        """Freezes the projection from windows [n, f, t] of voices that were heard."""
        self._pca = fit_pca(self._vectors(windows, voices), self._untrained.embedding_dim, seed)

    def __call__(self, windows: np.ndarray, voices: np.ndarray) -> np.ndarray:
        """Targets [n, d] of windows [n, f, t]; raises EncoderError before `fit`."""
        if self._pca is None:
            raise EncoderError("got no fitted target, expected `fit` first")
        projected = self._pca(self._vectors(windows, voices))
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        return (projected / np.maximum(norms, 1e-9)).astype(np.float32)

    def _vectors(self, windows: np.ndarray, voices: np.ndarray) -> np.ndarray:
        means, deviations = (np.stack([self._voices[int(voice)][part] for voice in voices]) for part in (0, 1))
        content = (_segments(windows) - means[:, None]) / deviations[:, None]
        readouts = collect_readouts(self._untrained, windows)
        first = self._untrained.sites[0]
        levels, maps = np.split(readouts, [5 * first.rows, first.features], axis=1)[::2]
        groups = [levels, content.reshape(len(content), -1)]
        groups += np.split(maps, np.cumsum([site.features for site in self._untrained.sites[1:-1]]), axis=1)
        weights = np.where((voices == CLIPS)[:, None], CLIP_WEIGHTS, SPEECH_WEIGHTS)  # [n, 3]
        scaled = [scaled_to_norm(g, 1.0) * weights[:, min(number, 2), None] for number, g in enumerate(groups)]
        return np.concatenate(scaled, axis=1).astype(np.float32)


class Pretraining:
    """A run over clips of single sounds, speech, or both; `encoder` is changed in place.

    Raises EncoderError for recordings with too little in them.
    """

    def __init__(
        self,
        encoder: SplitEncoder,
        clips: Recordings | None,
        speech: Recordings | None,
        settings: PretrainingSettings | None = None,
        seed: int = 0,
    ) -> None:
        """Fits the target, then the projection to it."""
        self.settings = settings or PretrainingSettings()
        self.encoder, self.seed = encoder.eval(), seed
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        self._kinds = [_Kind(part, alone) for part, alone in ((clips, True), (speech, False)) if part is not None]
        if not self._kinds:
            raise EncoderError("got neither clips nor speech, expected recordings to learn from")
        self.target = VoicelessTarget(encoder)
        for kind in self._kinds:
            self.target.hear(kind.windows(slice(None)), kind.voices)
        self._start()

    def _start(self) -> None:
        share = self.settings.start_windows // len(self._kinds)
        windows, voices = [], []
        for kind in self._kinds:
            rows = np.sort(self.random.choice(len(kind), min(share, len(kind)), replace=False))
            x = torch.from_numpy(kind.windows(rows))
            if not kind.clips:
                x[: len(x) // 2] = isolated(x[: len(x) // 2], self.generator)
            windows.append(x.numpy())
            voices.append(kind.voices[rows])
        self._windows = np.concatenate(windows)
        voice = np.concatenate(voices)
        self.target.fit(self._windows, voice, self.seed)
        targets = self.target(self._windows, voice)
        self.start_agreement = fit_projection_to(self.encoder, self._windows, targets, self.settings.ridge)
        projections = self.encoder.readout_projections()
        self._readouts = [parameter for project in projections for parameter in project.parameters()]
        weights = torch.cat([project.weight.detach().flatten() for project in projections])
        self._rates = (
            self.settings.learning_rate,
            self.settings.learning_rate * self.settings.readout_rate * float(weights.square().mean().sqrt()),
        )
        self._blocks = list(self.encoder.blocks.parameters())
        self._optimiser = torch.optim.Adam(
            [{"params": self._blocks, "lr": self._rates[0]}, {"params": self._readouts, "lr": self._rates[1]}]
        )

    def run(self, progress: Callable[[PretrainingStep], None] = lambda step: None) -> SplitEncoder:
        """All steps, then `finish`; gives the encoder."""
        while self.step < self.settings.steps:
            progress(self.advance())
        return self.finish()

    def advance(self) -> PretrainingStep:
        """One optimiser step; raises EncoderError where the loss is no number."""
        s = self.settings
        speech = self._kinds[-1] if not self._kinds[-1].clips else None
        kind = self._kinds[0]
        if speech is not None and (len(self._kinds) == 1 or self.random.random() < s.speech_share):
            kind = speech
        loss, contrast, target, z = self._of_clips(kind) if kind.clips else self._of_speech(kind)
        if not bool(torch.isfinite(loss)):
            raise EncoderError(f"got a loss of {loss.item()} at step {self.step}, expected a finite number")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self._blocks, *self._readouts], s.gradient_norm)
        factor = min(1.0, (self.step + 1) / max(1, s.warm_up_steps))
        factor *= 0.5 * (1 + math.cos(math.pi * self.step / s.steps))
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimiser.step()
        self.step += 1
        return PretrainingStep(self.step, contrast, target, effective_rank(z.detach().numpy()))

    def finish(self) -> SplitEncoder:
        """Fits exits, the resolution's correction and the bottlenecks to what was learned."""
        fit_exits(self.encoder, self._windows)
        fit_reduced(self.encoder, self._windows)
        fit_bottlenecks(self.encoder, self._windows)
        return self.encoder

    def _of_clips(self, kind: _Kind) -> tuple[Tensor, float, float, Tensor]:
        s = self.settings
        rows = kind.pairs(self.random, s.batch_windows)
        count = len(rows) // 2
        heard = kind.windows(rows)
        z = self.encoder(another_view(torch.from_numpy(heard), s.views, self.generator))
        own = torch.from_numpy(self.target(heard, kind.voices[rows]))
        other = own.roll(count, 0)
        logits = (z @ z.T / s.temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        contrast = functional.cross_entropy(logits, (torch.arange(len(z)) + count) % len(z))
        target = 1.0 - ((z * own).sum(1).mean() + (z * other).sum(1).mean()) / 2
        return s.contrast_weight * contrast + s.target_weight * target, contrast.item(), target.item(), z

    def _of_speech(self, kind: _Kind) -> tuple[Tensor, float, float, Tensor]:
        s = self.settings
        rows = kind.stretches(self.random, s.speech_recordings, max(1, s.batch_windows // s.speech_recordings))
        x = torch.from_numpy(kind.windows(rows))
        if self.random.random() < s.isolated_share:
            x = isolated(x, self.generator)
        z = self.encoder(x)
        own = torch.from_numpy(self.target(x.numpy(), kind.voices[rows]))
        target = 1.0 - (z * own).sum(1).mean()
        return s.target_weight * target, math.nan, target.item(), z


class _Kind:
    """One kind of recordings, and what batches are drawn from it."""

    def __init__(self, part: Recordings, clips: bool) -> None:
        what = "clips" if clips else "speech"
        rows = len(part.windows)
        if rows < 32 or not len(part.recordings) == len(part.voices) == rows:
            raise EncoderError(f"got {rows} windows of {what}, expected at least 32, each with recording and voice")
        self.clips, self._part = clips, part
        self.voices = np.full(rows, CLIPS) if clips else part.voices
        order = np.argsort(part.recordings, kind="stable")
        borders = np.flatnonzero(np.diff(part.recordings[order])) + 1
        self._recordings = [rows for rows in np.split(order, borders) if len(rows) >= (2 if clips else 1)]
        if len(self._recordings) < 2:
            raise EncoderError(
                f"got {len(self._recordings)} recordings of {what} with enough windows, expected at least 2"
            )

    def __len__(self) -> int:
        return len(self._part.windows)

    def windows(self, rows: np.ndarray | slice) -> np.ndarray:
        """[n, f, t] float32, a copy."""
        return self._part.windows[rows].astype(np.float32)

    def pairs(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Rows [2 n] of up to `count` clips, first windows then second ones."""
        chosen = random.choice(len(self._recordings), min(count, len(self._recordings)), replace=False)
        drawn = [random.choice(self._recordings[number], 2, replace=False) for number in chosen]
        return np.concatenate([np.array(drawn)[:, 0], np.array(drawn)[:, 1]])

    def stretches(self, random: np.random.Generator, recordings: int, each: int) -> np.ndarray:
        """Up to `each` rows of a few recordings, no two of them neighbours: windows overlap by half."""
        chosen = random.choice(len(self._recordings), min(recordings, len(self._recordings)), replace=False)
        drawn = []
        for number in chosen:
            held = self._recordings[number]
            apart = held[random.integers(min(2, len(held))) :: 2]
            drawn.append(random.choice(apart, min(each, len(apart)), replace=False))
        return np.concatenate(drawn)


def _segments(windows: np.ndarray) -> np.ndarray:
    return course(windows).reshape(len(windows), SEGMENTS, COURSE_BANDS)
