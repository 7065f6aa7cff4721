"""Labelled prototypes: names that somebody gave to windows, as mean embeddings; the nearest one names a new window."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.server.checkpoint import read_json, write_json

MAX_LABELS = 1000


class LabelledPrototypes:
    """Label to unit vector [d]; valid within one embedding space, dropped when a revision breaks it."""

    def __init__(self, path: Path, dim: int) -> None:
        self._path = path
        self._dim = dim
        self._space = 0
        self._names: tuple[str, ...] = ()
        self._vectors = np.zeros((0, dim), np.float32)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels."""
        return self._names

    def load(self) -> None:
        """Reads the file, if there is one; raises CheckpointError or ConfigError."""
        values = read_json(self._path)
        if values is None:
            return
        vectors = {str(name): np.asarray(vector, np.float32) for name, vector in values["prototypes"].items()}
        self._take(vectors, int(values["space"]))

    def add(self, label: str, embeddings: np.ndarray, space: int) -> None:
        """Makes `label` the mean direction of embeddings [n, d], and saves. Raises ConfigError or CheckpointError."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self._dim or not len(embeddings):
            raise ConfigError(f"label '{label}': got embeddings {embeddings.shape}, expected [n, {self._dim}], n > 0")
        held = dict(zip(self._names, self._vectors, strict=True)) if space == self._space else {}
        if len(held) >= MAX_LABELS and label not in held:
            raise ConfigError(f"got more than {MAX_LABELS} labels, expected fewer; labels are not unique names")
        held[label] = embeddings.mean(axis=0)
        self._take(held, space)
        vectors = {name: vector.tolist() for name, vector in zip(self._names, self._vectors, strict=True)}
        write_json(self._path, {"space": self._space, "prototypes": vectors})

    def nearest(self, z: np.ndarray, space: int) -> tuple[str, float]:
        """The nearest label and its cosine in [0, 1]; ('', 0) where there are none in this space."""
        if not self._names or space != self._space:
            return "", 0.0
        cosines = self._vectors @ z
        best = int(cosines.argmax())
        return self._names[best], float(np.clip(cosines[best], 0.0, 1.0))

    def _take(self, vectors: dict[str, np.ndarray], space: int) -> None:
        names, rows = [], []
        for name, vector in sorted(vectors.items()):
            norm = float(np.linalg.norm(vector))
            if vector.shape != (self._dim,) or not np.isfinite(norm) or norm == 0.0:
                raise ConfigError(f"label '{name}': got a prototype of shape {vector.shape}, norm {norm}")
            names.append(name)
            rows.append(vector / norm)
        self._names = tuple(names)
        self._vectors = np.stack(rows).astype(np.float32) if rows else np.zeros((0, self._dim), np.float32)
        self._space = space
