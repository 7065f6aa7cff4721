"""An encoder in whole numbers as a file of its own, for devices without torch (safetensors, no pickle)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.tinystream.integer import IntegerEncoder, Kind, Operation
from streamsplit.codec.tinystream.integer_front import IntegerFront
from streamsplit.errors import CheckpointError

PACKAGED = Path(__file__).parent / "pretrained"
SUFFIX = ".integer.safetensors"
_FORMAT = "streamsplit-integer-codec-1"
_PARTS = {"weight": np.int8, "bias": np.int32, "multiplier": np.int32, "shift": np.int32}
_LARGEST_FILE = 16 << 20


def pack_integer(encoder: IntegerEncoder) -> bytes:
    """The file's bytes; the same encoder gives the same bytes."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[np.integer]] = {"codebooks": encoder.codebooks}
    program = []
    for number, operation in enumerate(encoder.program):
        program.append({"kind": operation.kind.name, "stride": operation.stride, "relu": operation.relu})
        if operation.weight is not None:
            arrays |= {f"{number}.{name}": np.ascontiguousarray(getattr(operation, name)) for name in _PARTS}
    front = encoder.front
    record = {
        "format": _FORMAT, "hop": encoder.hop, "sample_rate": encoder.sample_rate, "program": program,
        "codebook_shifts": list(encoder.codebook_shifts),
        "latent_step": encoder.latent_step, "model_id": encoder.model_id.hex(),
        "front": None if front is None else [front.sample_rate, front.hop, front.bands],
    }  # fmt: skip
    packed: bytes = save(arrays, {"streamsplit": json.dumps(record, sort_keys=True)})
    return packed


def unpack_integer(data: bytes) -> IntegerEncoder:
    """The encoder in a file's bytes; raises CheckpointError for anything else, before a large array is made."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if len(data) > _LARGEST_FILE:
        raise CheckpointError(f"got {len(data)} bytes, expected an integer codec of at most {_LARGEST_FILE}")
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        record = json.loads(header["__metadata__"]["streamsplit"])
        if record["format"] != _FORMAT:
            raise CheckpointError(f"got a file of format {record['format']!r}, expected {_FORMAT}")
        encoder = IntegerEncoder(
            int(record["hop"]), int(record["sample_rate"]),
            None if record["front"] is None else IntegerFront(*map(int, record["front"])),
            tuple(_operation(number, entry, arrays) for number, entry in enumerate(record["program"])),
            _array(arrays, "codebooks", np.int8, 3), tuple(map(int, record["codebook_shifts"])),
            float(record["latent_step"]), bytes.fromhex(record["model_id"]),
        )  # fmt: skip
        _check(encoder)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"is not an integer codec that this version can read, or is damaged ({error})") from None
    return encoder


def read_integer(name: str | Path) -> IntegerEncoder:
    """A packaged encoder by its codec's name, or one by path; raises CheckpointError."""
    packaged = PACKAGED / f"{name}{SUFFIX}"
    path = packaged if packaged.is_file() else Path(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); give an integer codec") from None
    try:
        return unpack_integer(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _operation(number: int, entry: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Operation:
    kind = Kind[entry["kind"]]
    if kind in (Kind.KEEP, Kind.ADD):
        return Operation(kind)
    dimensions = 3 if kind is Kind.DENSE else 2
    weight = _array(arrays, f"{number}.weight", np.int8, dimensions)
    bias, multiplier, shift = (
        _array(arrays, f"{number}.{name}", np.int32, 1) for name in ("bias", "multiplier", "shift")
    )
    if {len(weight)} != {len(bias), len(multiplier), len(shift)}:
        raise ValueError(f"operation {number} has parts of different lengths")
    if not 1 <= shift.min() <= shift.max() <= 46:
        raise ValueError(f"operation {number} has a shift outside 1..46")
    return Operation(kind, weight, bias, multiplier, shift, int(entry["stride"]), bool(entry["relu"]))


def _array(arrays: dict[str, NDArray[Any]], name: str, kind: type, dimensions: int) -> NDArray[Any]:
    array = arrays[name]
    if array.dtype != kind or array.ndim != dimensions or not array.size:
        raise ValueError(f"'{name}' is {array.dtype} with {array.ndim} dimensions")
    return array


def _check(encoder: IntegerEncoder) -> None:
    """Runs a frame of silence: channels and steps must fit each other, and a frame must come out."""
    quantizers = len(encoder.codebooks)
    if not 0 < encoder.hop <= 1 << 16 or len(encoder.codebook_shifts) != quantizers:
        raise ValueError(f"hop {encoder.hop} and {len(encoder.codebook_shifts)} shifts for {quantizers} codebooks")
    if not all(0 <= shift <= 16 for shift in encoder.codebook_shifts):
        raise ValueError(f"codebook shifts {encoder.codebook_shifts}")
    if any(op.weight is not None and not 1 <= op.stride <= max(16, op.kernel) for op in encoder.program):
        raise ValueError("a stride outside 1..16")
    indices, _ = encoder.step(np.zeros(encoder.hop, np.int16), encoder.initial())
    if indices.shape != (quantizers, 1):
        raise ValueError(f"a frame gives indices of shape {indices.shape}, expected {(quantizers, 1)}")
