"""Weight payloads: safetensors bytes with one JSON record, opened with every length and shape checked (no pickle)."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from streamsplit.errors import RevisionError

MAX_PAYLOAD_BYTES = 1 << 30
MAX_HEADER_BYTES = 1 << 20

_RECORD = "streamsplit"
_LENGTH = struct.Struct("<Q")
_WIDTHS = {"F32": 4, "F16": 2, "I8": 1}


def seal(arrays: dict[str, np.ndarray], record: dict[str, str]) -> bytes:
    """Safetensors bytes of arrays and one record of texts; the same input gives the same bytes."""
    return save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()},
        metadata={_RECORD: json.dumps(record, sort_keys=True)},
    )


def unseal(payload: bytes | bytearray | memoryview) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and record of `seal`'s bytes; raises RevisionError on anything else.

    The header is checked against the payload's length before safetensors sees it: only float32, float16 and int8
    arrays, no header larger than 1 MiB, no byte left over.
    """
    data = bytes(payload)
    if not _LENGTH.size < len(data) <= MAX_PAYLOAD_BYTES:
        raise RevisionError(f"got {len(data)} bytes of weights, expected {_LENGTH.size + 1}..{MAX_PAYLOAD_BYTES}")
    (header_bytes,) = _LENGTH.unpack_from(data)
    if not 0 < header_bytes <= min(MAX_HEADER_BYTES, len(data) - _LENGTH.size):
        raise RevisionError(f"got a header of {header_bytes} bytes in {len(data)}, expected at most {MAX_HEADER_BYTES}")
    try:
        header = json.loads(data[_LENGTH.size : _LENGTH.size + header_bytes])
        record = json.loads(header.pop("__metadata__")[_RECORD])
        total = sum(_declared_bytes(name, entry) for name, entry in header.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RevisionError(f"the weights' header does not parse ({type(error).__name__}: {error})") from None
    if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
        raise RevisionError("got a weights record that is not a mapping of texts")
    if total != len(data) - _LENGTH.size - header_bytes:
        raise RevisionError(f"got {len(data)} bytes of weights, expected {_LENGTH.size + header_bytes + total}")
    try:
        return load(data), record
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RevisionError(f"the weights do not parse ({error})") from None


def _declared_bytes(name: str, entry: Any) -> int:
    width, shape = _WIDTHS[entry["dtype"]], entry["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"shape of '{name}'")
    return width * math.prod(shape)
