"""Lineage: the encoder revisions that the server still knows, newest last."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamsplit.errors import RevisionError
from streamsplit.weights.revision import revision_prefix

Weights = dict[str, np.ndarray]


class Known(NamedTuple):
    """One revision: its hash, its weights, and the number of the embedding space it belongs to."""

    revision: str
    weights: Weights
    space: int


class Lineage:
    """The last `keep` revisions; features of any of them can still be completed, others are refused."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._known: dict[str, Known] = {}

    def add(self, known: Known) -> None:
        """Makes `known` the newest; the oldest goes when there are more than `keep`."""
        self._known.pop(known.revision, None)
        self._known[known.revision] = known
        while len(self._known) > self.keep:
            del self._known[next(iter(self._known))]

    def get(self, revision: str) -> Known:
        """The revision, or RevisionError."""
        known = self._known.get(revision)
        if known is None:
            held = ", ".join(name[:8] for name in self._known)
            raise RevisionError(
                f"got revision {revision[:8] or 'none'}, expected one of {held}; fetch the newest weights"
            )
        return known

    def resolve(self, prefix: int) -> str:
        """The full hash from the u32 of a media header, or RevisionError; the newest where two would match."""
        for revision in reversed(self._known):
            if revision_prefix(revision) == prefix:
                return revision
        raise RevisionError(f"got revision {prefix:08x}, which is not known here; fetch the newest weights")

    def staleness(self, revision: str) -> int:
        """How many revisions came after this one; RevisionError where unknown."""
        self.get(revision)
        return len(self._known) - 1 - list(self._known).index(revision)

    @property
    def latest(self) -> Known:
        """The newest revision."""
        return self._known[next(reversed(self._known))]

    def __contains__(self, revision: str) -> bool:
        return revision in self._known

    def __iter__(self):  # type: ignore[no-untyped-def]  # oldest first
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)
