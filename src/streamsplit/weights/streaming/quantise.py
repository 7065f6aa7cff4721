"""Tensors as they travel: fp32, fp16, bf16, or int8 steps with one float32 step size per output channel.

Error: fp16 2^-11 of the value, bf16 2^-8, int8 half a step, a 254th of the channel's largest value. Vectors (biases,
norms) stay float32 in int8: they are few and everything passes through them.
"""

from __future__ import annotations

import torch

from streamsplit.errors import ConfigError, ManifestError
from streamsplit.weights.streaming.manifest import DTYPES

LEVELS = 127
STEP_SIZES = "#step_sizes"  # behind the name of a tensor
SENT = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Tensors = dict[str, torch.Tensor]


def check_dtype(dtype: str) -> str:
    """Returns a known dtype; raises ConfigError."""
    if dtype not in DTYPES:
        raise ConfigError(f"'dtype': got '{dtype}', allowed {', '.join(DTYPES)}")
    return dtype


def quantise(tensors: Tensors, dtype: str) -> Tensors:
    """The tensors in the form in which they are sent; raises ManifestError where a number does not fit."""
    check_dtype(dtype)
    sent: Tensors = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            sent[name] = tensor.contiguous()
        elif dtype == "int8" and tensor.ndim >= 2:
            sent[name], sent[name + STEP_SIZES] = to_steps(tensor)
        else:
            sent[name] = tensor.to(SENT["fp32" if dtype == "int8" else dtype]).contiguous()
            if not torch.isfinite(sent[name]).all() and torch.isfinite(tensor).all():
                raise ManifestError(f"'{name}': a value is beyond the range of {dtype}; choose fp32 or bf16")
    return sent


def dequantise(sent: Tensors, dtype: torch.dtype = torch.float32) -> Tensors:
    """The tensors as the model computes with them; where all are in `dtype` already none is copied."""
    result: Tensors = {}
    for name, tensor in sent.items():
        if name.endswith(STEP_SIZES):
            continue
        sizes = sent.get(name + STEP_SIZES)
        if sizes is not None:
            result[name] = from_steps(tensor, sizes).to(dtype)
        else:
            result[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    views = [name for name, tensor in result.items() if tensor is sent[name]]
    if len(views) < len(result):  # one view would keep all that was sent in memory
        result.update({name: result[name].clone() for name in views})
    return result


def to_steps(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 steps of the tensor's shape, and float32 step sizes [channels] along its first axis."""
    rows = tensor.float().reshape(len(tensor), -1)
    sizes = rows.abs().amax(1) / LEVELS
    divisor = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    steps = (rows / divisor[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return steps.reshape(tensor.shape).contiguous(), sizes


def from_steps(steps: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """float32 of the steps' shape."""
    return steps.float() * sizes.reshape(-1, *[1] * (steps.ndim - 1))


def pack_rows(matrix: torch.Tensor, dtype: str) -> torch.Tensor:
    """A matrix [rows, d] as bytes [rows, row_bytes] that can be fetched row by row; int8 rows begin with their step."""
    if dtype != "int8":
        return matrix.to(SENT[check_dtype(dtype)]).contiguous().view(torch.uint8)
    steps, sizes = to_steps(matrix)
    return torch.cat([sizes[:, None].contiguous().view(torch.uint8), steps.view(torch.uint8)], 1).contiguous()


def unpack_rows(data: torch.Tensor, dtype: str, compute: torch.dtype = torch.float32) -> torch.Tensor:
    """The matrix [rows, d] from bytes [rows, row_bytes] of `pack_rows`."""
    if dtype != "int8":
        return data.contiguous().view(SENT[check_dtype(dtype)]).to(compute)
    sizes = data[:, :4].contiguous().view(torch.float32)[:, 0]
    return from_steps(data[:, 4:].contiguous().view(torch.int8), sizes).to(compute)
