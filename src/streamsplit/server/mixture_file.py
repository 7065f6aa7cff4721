"""The server's mixture on disk: exact state as safetensors, tagged with the embedding space that it describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.errors import CheckpointError
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.server.checkpoint import read_file, write_atomic

NAME = "mixture.safetensors"


def save(path: Path, state: dict[str, Any], space: int) -> None:
    """Writes the state; raises CheckpointError."""
    from safetensors.numpy import save as pack

    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    write_atomic(path, pack(arrays, metadata={"space": json.dumps(space)}))


def load(path: Path, mixture: GaussianMixture, space: int) -> bool:
    """Continues `mixture` from the file if there is one of the same space; raises CheckpointError on a damaged one."""
    if not path.exists():
        return False
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load as unpack

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        state = unpack(read_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it to start the mixture anew") from error
    if json.loads(metadata.get("space", "null")) != space or state["means"].shape[1] != mixture.dim:
        return False
    mixture.load_state(state)
    return True
