"""The Cut: after which encoder block a window crosses to the server, and how it is written there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from streamsplit.errors import CutError
from streamsplit.wire.media import Encoding

AUDIO_ENCODINGS = (Encoding.PCM16, Encoding.OPUS24, Encoding.TINYSTREAM)
FEATURE_ENCODINGS = (Encoding.LOGMEL_FP16, Encoding.LOGMEL_INT8)
ACTIVATION_ENCODINGS = (Encoding.FP32, Encoding.FP16, Encoding.INT8, Encoding.BOTTLENECK_INT8)
RANKS = (0, 1, 2, 3)  # of `overlap_rank`
BETWEEN_ENCODINGS = (*ACTIVATION_ENCODINGS, Encoding.EXIT_FP16)  # at 0 < k < L
EMBEDDING_ENCODINGS = (Encoding.EMBEDDING_FP16, Encoding.EMBEDDING_INT8, Encoding.NONE)


class Cut(NamedTuple):
    """Block index k in 0..L and the encoding of what crosses: k = 0 audio or features, 0 < k < L activations or the
    early exit's embedding, k = L the embedding or nothing."""

    block: int
    encoding: Encoding

    def __str__(self) -> str:
        return f"{self.block}:{self.encoding.label}"

    @property
    def sends(self) -> bool:
        """False for the cut that keeps everything on the device."""
        return self.encoding is not Encoding.NONE

    @classmethod
    def parse(cls, text: str) -> Cut:
        """Reads '6:int8' or '0:opus24'; raises CutError."""
        block, _, label = text.partition(":")
        by_label = {encoding.label: encoding for encoding in Encoding}
        if not block.isdigit() or label not in by_label:
            raise CutError(f"got cut '{text}', expected BLOCK:ENCODING with one of {', '.join(by_label)}")
        return cls(int(block), by_label[label])

    def check(self, num_blocks: int) -> Cut:
        """Returns itself if it exists for an encoder of `num_blocks` blocks; raises CutError."""
        if not 0 <= self.block <= num_blocks:
            raise CutError(f"got block {self.block}, expected 0..{num_blocks}")
        allowed = (
            AUDIO_ENCODINGS + FEATURE_ENCODINGS
            if self.block == 0
            else EMBEDDING_ENCODINGS
            if self.block == num_blocks
            else BETWEEN_ENCODINGS
        )
        if self.encoding not in allowed:
            names = ", ".join(encoding.label for encoding in allowed)
            raise CutError(f"got {self.encoding.label} at block {self.block}, expected one of {names}")
        return self


def overlap_rank(cut: Cut | None) -> int:
    """What the server keeps of a window for the next one to lean on: 0 nothing, 1 features, 2 sound, 3 codes.

    At block 0 a window that follows one of at least its own rank sends only what is new.
    """
    if cut is None or cut.block:
        return 0
    return 3 if cut.encoding is Encoding.TINYSTREAM else 2 if cut.encoding in AUDIO_ENCODINGS else 1


def all_cuts(num_blocks: int, bottlenecks: Iterable[int] = ()) -> list[Cut]:
    """Every cut of an encoder with `num_blocks` blocks and bottlenecks after some of them, shallow to deep."""
    narrowed = set(bottlenecks)
    cuts = [Cut(0, encoding) for encoding in AUDIO_ENCODINGS + FEATURE_ENCODINGS]
    cuts += [
        Cut(k, encoding)
        for k in range(1, num_blocks)
        for encoding in BETWEEN_ENCODINGS
        if encoding is not Encoding.BOTTLENECK_INT8 or k in narrowed
    ]
    return cuts + [Cut(num_blocks, encoding) for encoding in EMBEDDING_ENCODINGS]
