"""Encoders by name, with the same starting weights for the same seed everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.errors import MissingExtraError

if TYPE_CHECKING:
    from streamsplit.encoders.base import SplitEncoder

ENCODERS = ("mobilenet", "resnet18")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """Which encoder; `width` scales MobileNet's channels and is ignored by ResNet-18."""

    name: str = setting("mobilenet", choices=ENCODERS)
    width: float = setting(0.75, low=0.25, high=2.0)
    embedding_dim: int = setting(128, low=8, high=1024)
    seed: int = setting(0, low=0)


def make_encoder(settings: EncoderSettings | None = None) -> SplitEncoder:
    """A new encoder in evaluation mode; raises MissingExtraError without torch."""
    settings = settings if settings is not None else EncoderSettings()
    try:
        from streamsplit.encoders.mobilenet import MobileNetV3Small
        from streamsplit.encoders.resnet import ResNet18
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("running an encoder", "learn", str(error)) from error
    rng = np.random.default_rng(settings.seed)
    encoder: SplitEncoder
    if settings.name == "mobilenet":
        encoder = MobileNetV3Small(settings.width, settings.embedding_dim, rng)
    else:
        encoder = ResNet18(settings.embedding_dim, rng)
    return encoder.eval()
