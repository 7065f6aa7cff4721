"""The encoders that a learner holds: one that learns, its moving average, and what both stand on."""

from __future__ import annotations

import numpy as np

from streamsplit.encoders.base import SplitEncoder
from streamsplit.learning import snapshot
from streamsplit.learning.momentum import follow, make_key
from streamsplit.weights.revision import Weights, check_same_layout, encoder_weights, load_weights

_BLOCKS = "blocks."


class EncoderCopies:
    """Query encoder (the given one, moved by learning) and key encoder (inference and everything uplinked).

    `anchor` is what learning must not lose: the encoder as the last revision, or its own start, left it. Blocks that do
    not learn are held once, for all encoders and the base.
    """

    def __init__(self, encoder: SplitEncoder, *, blocks_learn: bool) -> None:
        self.query, self.key, self.anchor = encoder, make_key(encoder), make_key(encoder)
        self.changed = False  # by learning, since `base`
        self._shared = not blocks_learn
        if self._shared:
            self.key.blocks = self.anchor.blocks = encoder.blocks
        self.base: Weights = self._held(encoder_weights(encoder))

    def follow(self, momentum: float) -> None:
        """The key moves after the query; see `momentum.follow`."""
        follow(self.key, self.query, momentum)
        self.changed = True

    def start(self) -> None:
        """The query was started anew: so are key and anchor."""
        for encoder in (self.key, self.anchor):
            load_weights(encoder, encoder_weights(self.query))
        self.changed = True

    def check(self, weights: Weights) -> None:
        """Raises RevisionError unless these are weights of this encoder."""
        check_same_layout(weights, {name: array.shape for name, array in self.base.items()})

    def adopt(self, weights: Weights, base: Weights | None = None, *, breaks_space: bool = False) -> None:
        """Takes over a revision that fits, with what was learned since `base` (default: the last) on top of it.

        A revision that breaks the space is taken as it is.
        """
        base = self.base if base is None else base
        encoders = (self.query, self.key)
        if breaks_space or not self.changed:
            moved = [weights, weights]
        else:  # of both before either changes: they may share blocks
            owns = [encoder_weights(encoder) for encoder in encoders]
            moved = [{name: array + (own[name] - base[name]) for name, array in weights.items()} for own in owns]
        for encoder, new in zip((*encoders, self.anchor), (*moved, weights), strict=True):
            load_weights(encoder, new)
        self.base = self._held(weights)
        self.changed = self.changed and not breaks_space

    def difference(self) -> Weights | None:
        """What learning changed in the query since the base; None when nothing did."""
        if not self.changed:
            return None
        own = encoder_weights(self.query)
        return {name: own[name] - self.base[name] for name in own}

    def arrays(self) -> dict[str, np.ndarray]:
        """All weights, for `load`."""
        return {
            **snapshot.nest("query", encoder_weights(self.query)),
            **snapshot.nest("key", encoder_weights(self.key)),
            **snapshot.nest("anchor", encoder_weights(self.anchor)),
            **snapshot.nest("base", self.base),
        }

    def load(self, arrays: dict[str, np.ndarray], changed: bool) -> None:
        """Goes on from `arrays()`; RevisionError, before any change, where they are of another encoder."""
        query, key, anchor, base = (snapshot.under(part, arrays) for part in ("query", "key", "anchor", "base"))
        for part in (query, key, anchor, base):
            self.check(part)
        for encoder, part in ((self.query, query), (self.key, key), (self.anchor, anchor)):
            load_weights(encoder, part)
        self.base, self.changed = self._held(base), changed

    def state_bytes(self) -> int:
        """Bytes of all."""
        encoders = (self.query, self.key, self.anchor)
        modules = {id(p): 4 * p.numel() for encoder in encoders for p in encoder.parameters()}
        own = [array.nbytes for name, array in self.base.items() if not (self._shared and name.startswith(_BLOCKS))]
        return sum(modules.values()) + sum(own)

    def _held(self, weights: Weights) -> Weights:
        """Copies of a revision's weights, but the query's own blocks, which hold the same, where they do not learn."""
        blocks: Weights = {}
        if self._shared:
            named = self.query.blocks.named_parameters()
            blocks = {f"{_BLOCKS}{name}": parameter.detach().numpy() for name, parameter in named}
        return {name: blocks[name] if name in blocks else np.array(a, np.float32) for name, a in weights.items()}
