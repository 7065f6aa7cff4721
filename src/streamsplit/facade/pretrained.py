"""`load_pretrained` and `save_pretrained`: a published encoder that embeds whole clips, and its model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from streamsplit.audio.logmel import LogMelSettings
from streamsplit.audio.resample import resample
from streamsplit.audio.windows import WindowStream
from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.factory import EncoderSettings
from streamsplit.errors import AudioError, ConfigError, EncoderError
from streamsplit.server.checkpoint import write_atomic
from streamsplit.server.models import torch_device
from streamsplit.weights.pretrained import (
    DEFAULT,
    SUFFIX,
    Pretrained,
    pack_pretrained,
    packaged_names,
    pretrained_encoder,
    read_pretrained,
)
from streamsplit.weights.revision import encoder_weights

Floats = NDArray[np.float32]

_BATCH = 64
_HIGHEST_PEAK = 8.0  # resampling and mixing overshoot 1; what is far above it counts in other units
_PIECE_S = 30  # of a long clip that is turned into windows at once


@dataclass(frozen=True, eq=False)
class PretrainedEncoder:
    """A published encoder, ready to embed sound; `card` says what it was trained on and what it is worth."""

    encoder: SplitEncoder
    card: dict[str, Any]
    settings: EncoderSettings
    revision: str  # hex hash of the weights

    def embed_clip(self, audio: ArrayLike, sample_rate: float) -> Floats:
        """The unit-norm embedding [d] of a whole clip, samples [n] or [channels, n] at `sample_rate` Hz.

        It is the mean over the unit embeddings of the clip's windows (1 s every 0.5 s), normalised. A clip shorter than
        a window is filled up with silence. Samples are floats in [-1, 1], int16 or int32; raises AudioError for
        others, for NaN, and for a clip without samples or without sound. Level and silence count: both are embedded.
        """
        settings = LogMelSettings()
        if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.number)):
            raise AudioError(f"got sample rate {sample_rate!r}, expected a number of Hz")
        mono = resample(_samples(audio).T, sample_rate, settings.sample_rate_hz)
        if not mono.any():
            what = "silence only (every sample is 0)" if len(mono) else "no samples"
            raise AudioError(f"got a clip with {what}, expected sound; leave the clip out")
        total = np.zeros(self.encoder.embedding_dim)
        for features in _windows(mono, settings):
            total += self.embed_windows(features).sum(0, dtype=np.float64)
        return np.asarray(total / np.linalg.norm(total), np.float32)

    def embed_windows(self, features: ArrayLike) -> Floats:
        """Unit-norm embeddings [n, d] of log-mel windows [n, 128, t], or [d] of one [128, t].

        Raises EncoderError for another shape or values that are not finite.
        """
        x = np.asarray(features, np.float32)
        if x.ndim == 2:
            return np.asarray(self.embed_windows(x[None])[0])
        if x.ndim != 3 or x.shape[1] != BANDS:
            raise EncoderError(f"got features of shape {x.shape}, expected [n, {BANDS}, t] or [{BANDS}, t]")
        if not np.isfinite(x).all():
            raise EncoderError("got features with NaN or infinite values, expected finite log-mel windows")
        z = np.empty((len(x), self.encoder.embedding_dim), np.float32)
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            for start in range(0, len(x), _BATCH):
                part = slice(start, start + _BATCH)
                z[part] = self.encoder(torch.from_numpy(x[part]).to(device)).cpu().numpy()
        return z


def load_pretrained(name: str | Path = DEFAULT, device: str = "cpu") -> PretrainedEncoder:
    """A published encoder: a packaged one by name, or a .safetensors file by path.

    `device` is 'cpu', 'cuda' or 'auto'. Raises CheckpointError where the file is missing, damaged, foreign or of an
    architecture that this version does not have.
    """
    found = read_pretrained(name)
    if device not in ("cpu", "cuda", "auto"):
        raise ConfigError(f"'device': got '{device}', allowed cpu, cuda, auto")
    return _ready(found, torch_device(device))


def save_pretrained(
    encoder: SplitEncoder, settings: EncoderSettings, card: Mapping[str, Any], path: str | Path
) -> PretrainedEncoder:
    """Writes a published file, whole or not at all, and gives what `load_pretrained` will: weights in half precision.

    The card says at least what `weights.pretrained.CARD_FIELDS` names. Raises ConfigError for a card that does not,
    RevisionError for weights that are not finite or not of such an encoder, CheckpointError when the disk refuses.
    """
    data, found = pack_pretrained(encoder_weights(encoder), settings, card)
    write_atomic(Path(path), data)
    return _ready(found, "cpu")


def card_markdown(card: Mapping[str, Any]) -> str:
    """The model card as a page of Markdown: what the encoder is, was trained on and is worth, and how to use it."""
    told = {"name", "metrics", "command", "about"}
    facts = [(name, value) for name, value in card.items() if name not in told]
    lines = [f"# {card['name']}", ""]
    if card.get("about"):
        lines += [str(card["about"]), ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts), ""]
    lines += ["Trained with", "", "```sh", str(card["command"]), "```", "", "## Measured", "", "| what | value |"]
    lines += ["|---|---:|", *(f"| {name} | {_cell(value)} |" for name, value in _flat(card["metrics"])), ""]
    name = str(card["name"])
    given = "" if name == DEFAULT else f'"{name if name in packaged_names() else name + SUFFIX}"'
    lines += ["## Use", "", "```python", "import streamsplit", "", f"encoder = streamsplit.load_pretrained({given})"]
    lines += ["vector = encoder.embed_clip(audio, sample_rate)  # unit norm", "```", ""]
    return "\n".join(lines)


def _ready(found: Pretrained, device: str) -> PretrainedEncoder:
    return PretrainedEncoder(pretrained_encoder(found).to(device), found.card, found.settings, found.revision)


def _samples(audio: ArrayLike) -> np.ndarray:
    """The clip as floats [n] or [channels, n]; raises AudioError."""
    samples = np.asarray(audio)
    if samples.dtype in (np.int16, np.int32):
        samples = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"got samples of type {samples.dtype}, expected floats in [-1, 1], int16 or int32")
    if samples.ndim == 2 and samples.size and samples.shape[0] > samples.shape[1]:
        raise AudioError(f"got an array of shape {samples.shape}, expected [channels, n]; transpose it")
    peak = float(np.max(np.abs(samples), initial=0.0))
    if _HIGHEST_PEAK < peak < np.inf:
        raise AudioError(f"got floats up to {peak:.4g}, expected -1..1; divide 16-bit samples by 32768, or pass int16")
    return samples


def _windows(mono: Floats, settings: LogMelSettings) -> Iterator[Floats]:
    """Log-mel windows [n, f, t] of a clip, some at a time, the last one filled up with silence."""
    stream = WindowStream(settings)
    piece = _PIECE_S * settings.sample_rate_hz
    for start in range(0, len(mono), piece):
        windows = stream.push(mono[start : start + piece])
        if start + piece >= len(mono):
            windows += stream.flush()
        if windows:
            yield np.stack([window.features for window in windows])


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}, ")
        else:
            yield f"{prefix}{name}", value


def _cell(value: Any) -> str:
    """One table cell."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_cell(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
