"""Checkpoints of the facade: one safetensors file with a JSON record, written whole or not at all, never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from streamsplit.errors import CheckpointError
from streamsplit.server.checkpoint import write_atomic

FORMAT = "1"


def write_checkpoint(path: Path, kind: str, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Replaces `path`; raises CheckpointError and leaves what was there when the disk refuses."""
    metadata = {"streamsplit": FORMAT, "kind": kind, "record": json.dumps(record, sort_keys=True)}
    write_atomic(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))


def read_checkpoint(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and record of `write_checkpoint`; raises CheckpointError for anything else, or another kind."""
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("streamsplit") != FORMAT or metadata.get("kind") != kind:
                raise CheckpointError(f"{path}: got a '{metadata.get('kind', 'foreign')}' file, expected '{kind}'")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            record = json.loads(metadata["record"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({error})") from error
    return arrays, record
