"""Encoders by name, with the same starting weights for the same seed everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from streamsplit.encoders.base import SplitEncoder

ENCODERS = ("mobilenet", "resnet18", "leo")
NUM_BLOCKS = {"mobilenet": 13, "resnet18": 9, "leo": 19}
DEFAULT_BOTTLENECKS = {"mobilenet": (2, 5, 8, 10), "resnet18": (3, 5, 7), "leo": ()}
"""Blocks that carry a bottleneck unless the settings say otherwise: of each size of map the block where the measured
table lost least by narrowing it; the stem's map is left out, as it takes more bytes than the features even so."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """Which encoder; `width` scales MobileNet's channels and is ignored by the others.

    `bottlenecks` are the blocks whose map can cross narrowed to a quarter of its channels. They are weights like all
    others: a device and a server with other ones have other revisions, and do not take each other's.
    """

    name: str = setting("mobilenet", choices=ENCODERS)
    width: float = setting(0.75, low=0.25, high=2.0)
    embedding_dim: int = setting(128, low=8, high=1024)
    seed: int = setting(0, low=0)
    bottlenecks: tuple[int, ...] | None = setting(None)  # null: DEFAULT_BOTTLENECKS of the encoder

    @property
    def bottleneck_blocks(self) -> tuple[int, ...]:
        """The blocks that carry a bottleneck, in order."""
        chosen = DEFAULT_BOTTLENECKS[self.name] if self.bottlenecks is None else self.bottlenecks
        return tuple(sorted(set(chosen)))

    def check(self) -> None:
        """Only maps between two blocks are narrowed."""
        last = NUM_BLOCKS[self.name] - 1
        for block in self.bottlenecks or ():
            if not 0 < block <= last:
                raise ConfigError(f"'bottlenecks': got block {block}, expected 1..{last} for {self.name}")


def make_encoder(settings: EncoderSettings | None = None) -> SplitEncoder:
    """A new encoder in evaluation mode, its bottlenecks not fitted yet; raises MissingExtraError without torch."""
    settings = settings if settings is not None else EncoderSettings()
    try:
        from streamsplit.encoders.bottleneck import add_bottlenecks
        from streamsplit.encoders.leo import Leo
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
    elif settings.name == "leo":
        encoder = Leo(settings.embedding_dim, rng)
    else:
        encoder = ResNet18(settings.embedding_dim, rng)
    add_bottlenecks(encoder, settings.bottleneck_blocks)
    return encoder.eval()
