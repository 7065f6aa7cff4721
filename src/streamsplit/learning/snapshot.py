"""Snapshots of learning state: arrays as safetensors, everything else as JSON in its header (no pickle)."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from streamsplit.errors import CheckpointError

_RECORD = "streamsplit-learner"
_LENGTH = struct.Struct("<Q")
_SEPARATOR = "/"


def seal(arrays: dict[str, np.ndarray], record: dict[str, Any]) -> bytes:
    """One byte string from named arrays and a JSON-able record."""
    metadata = {_RECORD: json.dumps(record, sort_keys=True)}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=metadata)


def unseal(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `seal` was given; raises CheckpointError on anything else."""
    try:
        (header_bytes,) = _LENGTH.unpack_from(data)
        if header_bytes > len(data) - _LENGTH.size:
            raise ValueError(f"a header of {header_bytes} bytes in {len(data)}")
        header = json.loads(data[_LENGTH.size : _LENGTH.size + header_bytes])
        record = json.loads(header["__metadata__"][_RECORD])
        return {name: np.array(array) for name, array in load(data).items()}, record
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise CheckpointError(f"not a learner's snapshot ({type(error).__name__}: {error})") from None


def nest(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts arrays under a prefix."""
    return {f"{prefix}{_SEPARATOR}{name}": array for name, array in arrays.items()}


def under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that `nest` put under a prefix."""
    start = f"{prefix}{_SEPARATOR}"
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}
