"""Weights on the wire: full packs (float32 or float16) and int8 deltas that both ends apply to the same bits.

A delta holds, per changed array, int8 steps and one float32 step size per row (first axis; one in all for vectors).
The receiver computes base + steps x size in float32, one rounding after each operation, which IEEE arithmetic makes
the same everywhere; the revision of the result is checked. The sender keeps that result as the next base, so what
rounding left out is part of the next delta (error feedback).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from streamsplit.errors import RevisionError
from streamsplit.weights.container import seal, unseal
from streamsplit.weights.revision import Weights, check_finite, check_revision, check_same_layout, revision_of

LEVELS = 127

_DELTA, _FULL = "delta-1", "full-1"
_STEPS, _SIZES = "steps/", "sizes/"


class Packed(NamedTuple):
    """A payload, and the weights as every receiver will have them (the base for the next delta)."""

    payload: bytes
    result: Weights


def make_delta(base: Weights, new: Weights) -> Packed:
    """The int8 difference from base to new, about a quarter of the float32 size.

    |result - new| is at most half a step: a 254th of the row's largest change, up to float32 rounding. Raises
    RevisionError when the two are of different encoders or not finite.
    """
    _check_pair(base, new)
    arrays: dict[str, np.ndarray] = {}
    result: Weights = {}
    for name in sorted(base):
        steps, sizes = _quantise(new[name] - base[name])
        if steps.any():
            arrays[_STEPS + name], arrays[_SIZES + name] = steps, sizes
            result[name] = _stepped(base[name], steps, sizes)
        else:
            result[name] = base[name].copy()
    check_finite(result)
    record = {"format": _DELTA, "base": revision_of(base), "revision": revision_of(result)}
    return Packed(seal(arrays, record), result)


def apply_delta(base: Weights, payload: bytes | bytearray | memoryview) -> Weights:
    """The sender's result, bit for bit; raises RevisionError on another base, a broken payload or another result."""
    arrays, record = unseal(payload)
    revision = _revision(record, _DELTA)
    have = revision_of(base)
    if record.get("base") != have:
        raise RevisionError(f"got a delta on revision {record.get('base')}, have {have}; ask for full weights")
    result = {name: array.copy() for name, array in base.items()}
    for name, steps, sizes in _changes(base, arrays):
        with np.errstate(over="ignore", invalid="ignore"):
            result[name] = _stepped(base[name], steps, sizes)
    check_finite(result)
    return _verified(result, revision)


def apply_in_place(base: Weights, payload: bytes | bytearray | memoryview) -> None:
    """Turns base into the sender's result, bit for bit, a row at a time in its own memory; nothing is verified.

    Raises RevisionError on a broken payload; base is of no use then.
    """
    arrays, record = unseal(payload)
    _revision(record, _DELTA)
    for name, steps, sizes in _changes(base, arrays):
        rows = base[name].reshape(len(sizes), -1)
        if not np.shares_memory(rows, base[name]):
            raise RevisionError(f"got '{name}' in strides, expected it in one piece")
        with np.errstate(over="ignore", invalid="ignore"):
            for row, step, size in zip(rows, steps.reshape(len(sizes), -1), sizes, strict=True):
                row += step.astype(np.float32) * size


def _changes(base: Weights, arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, steps, step sizes) of what changed, each checked against the base."""
    names = {name.removeprefix(_STEPS) for name in arrays if name.startswith(_STEPS)}
    if {_STEPS + name for name in names} | {_SIZES + name for name in names} != arrays.keys():
        raise RevisionError("got a delta whose steps and step sizes do not pair up")
    for name in sorted(names):
        steps, sizes = arrays[_STEPS + name], arrays[_SIZES + name]
        if name not in base:
            raise RevisionError(f"got a delta for '{name}', which the base does not have")
        rows = base[name].shape[0] if base[name].ndim > 1 else 1
        if steps.dtype != np.int8 or steps.shape != base[name].shape:
            raise RevisionError(f"got steps {steps.dtype}{steps.shape} for '{name}', expected int8{base[name].shape}")
        if sizes.dtype != np.float32 or sizes.shape != (rows,):
            raise RevisionError(f"got step sizes {sizes.dtype}{sizes.shape} for '{name}', expected float32({rows},)")
        yield name, steps, sizes


def part_of_delta(payload: bytes, base: Weights, result: Weights) -> bytes:
    """The delta `payload` as far as it is about the arrays of `base`, which it makes those of `result`.

    Raises RevisionError where the payload is no delta.
    """
    arrays, record = unseal(payload)
    _revision(record, _DELTA)
    names = {part + name for name in base for part in (_STEPS, _SIZES)}
    own = {"format": _DELTA, "base": revision_of(base), "revision": revision_of(result)}
    return seal({name: array for name, array in arrays.items() if name in names}, own)


def pack_full(weights: Weights, precision: Literal["fp16", "fp32"] = "fp16") -> Packed:
    """All weights; with 'fp16' the result is rounded to half precision (relative error at most 2^-11).

    Raises RevisionError on values that are not finite or beyond float16's range.
    """
    if precision not in ("fp16", "fp32"):
        raise RevisionError(f"got precision '{precision}', expected 'fp16' or 'fp32'")
    check_finite(weights)
    kind = np.float16 if precision == "fp16" else np.float32
    with np.errstate(over="ignore"):
        arrays = {name: array.astype(kind) for name, array in weights.items()}
    result = {name: array.astype(np.float32) for name, array in arrays.items()}
    check_finite(result)
    return Packed(seal(arrays, {"format": _FULL, "revision": revision_of(result)}), result)


def unpack_full(payload: bytes | bytearray | memoryview) -> Weights:
    """The result of `pack_full`, bit for bit; raises RevisionError on a broken payload."""
    arrays, record = unseal(payload)
    revision = _revision(record, _FULL)
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32):
            raise RevisionError(f"got {array.dtype} for '{name}', expected float16 or float32")
    result = {name: array.astype(np.float32) for name, array in arrays.items()}
    check_finite(result)
    return _verified(result, revision)


def _quantise(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 steps of the difference's shape, and float32 step sizes [rows]."""
    rows = difference.reshape(len(difference) if difference.ndim > 1 else 1, -1)
    sizes = (np.abs(rows).max(1, initial=0.0) / np.float32(LEVELS)).astype(np.float32)
    divisor = np.where(sizes > 0, sizes, np.float32(1))[:, None]
    steps = np.clip(np.rint(rows / divisor), -LEVELS, LEVELS).astype(np.int8)
    return steps.reshape(difference.shape), sizes


def _stepped(base: np.ndarray, steps: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """base + steps x sizes; two separate float32 operations, never fused."""
    change = steps.astype(np.float32).reshape(len(sizes), -1) * sizes[:, None]
    return np.asarray(base + change.reshape(base.shape))


def _check_pair(base: Weights, new: Weights) -> None:
    check_same_layout(new, {name: array.shape for name, array in base.items()})
    check_finite(base)
    check_finite(new)


def _revision(record: dict[str, str], expected: str) -> str:
    if record.get("format") != expected:
        raise RevisionError(f"got weights of format '{record.get('format')}', expected '{expected}'")
    return check_revision(record.get("revision", ""))


def _verified(result: Weights, revision: str) -> Weights:
    got = revision_of(result)
    if got != revision:
        raise RevisionError(f"the weights hash to {got}, announced was {revision}; the transfer is damaged")
    return result
