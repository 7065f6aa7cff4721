"""The encoder in whole numbers: 8-bit weights, 16-bit activations, and nothing that rounds in another way elsewhere.

This is what the C runtime computes, number for number, written in numpy: the reference that its codes are checked
against, and an encoder for devices without torch. Every sum is exact (below 2^53, where float64 products are used for
speed), every shift is arithmetic, every division a rounding shift.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.tinystream.integer_front import IntegerFront
from streamsplit.errors import AudioError

Int8 = NDArray[np.int8]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]

LOWEST, HIGHEST = -32_768, 32_767


class Kind(enum.IntEnum):
    """What an operation of the program does; the value is the one in C."""

    DENSE = 0  # convolution over all channels; kernel 1 is a matrix
    DEPTHWISE = 1
    KEEP = 2  # holds the activation for the ADD to come
    ADD = 3  # adds what was held, with saturation


class Operation(NamedTuple):
    """One step of the program. Convolutions are causal, with `kernel - stride` activations of context as their state.

    A sum of products and bias becomes an activation as sat16((sum * multiplier + 2^(shift - 1)) >> shift).
    """

    kind: Kind
    weight: Int8 | None = None  # [o, kernel, i], depthwise [i, kernel]
    bias: Int32 | None = None  # [o]
    multiplier: Int32 | None = None  # [o], 2^14..2^15
    shift: Int32 | None = None  # [o], 1..46
    stride: int = 1
    relu: bool = False  # of what goes in

    @property
    def kernel(self) -> int:
        """Taps."""
        assert self.weight is not None
        return self.weight.shape[1]

    @property
    def inputs(self) -> int:
        """Channels that go in."""
        assert self.weight is not None
        return self.weight.shape[2] if self.kind is Kind.DENSE else self.weight.shape[0]


class IntegerState(NamedTuple):
    """What a stream needs to go on."""

    samples: Int16  # that the front still needs
    contexts: tuple[Int16, ...]  # [kernel - stride, i] of every convolution


class IntegerEncoder(NamedTuple):
    """A whole encoder: the program, and codebooks whose entries count in units of 2^codebook_shift latent steps."""

    hop: int  # samples a frame
    sample_rate: int  # Hz
    front: IntegerFront | None  # None: the program begins with the samples themselves
    program: tuple[Operation, ...]
    codebooks: Int8  # [q, n, d]
    codebook_shifts: tuple[int, ...]  # [q]
    latent_step: float  # what 1 of the latent stands for
    model_id: bytes  # of the float model that it was made from

    @property
    def memory_frames(self) -> int:
        """Frames before a frame that its codes depend on, rounded up."""
        reach, step = (0, 1) if self.front is None else (self.front.context, self.front.hop)
        for operation in self.program:
            if operation.weight is not None:
                reach += max(0, operation.kernel - operation.stride) * step
                step *= operation.stride
        return -(-reach // self.hop)

    def initial(self) -> IntegerState:
        """The state before the first sample: silence."""
        convolutions = [operation for operation in self.program if operation.weight is not None]
        contexts = tuple(np.zeros((max(0, op.kernel - op.stride), op.inputs), np.int16) for op in convolutions)
        return IntegerState(np.zeros(0 if self.front is None else self.front.context, np.int16), contexts)

    def step(self, samples: Int16, state: IntegerState) -> tuple[NDArray[np.int64], IntegerState]:
        """Indices [quantizers, frames] of samples [frames * hop], and the state after them.

        Raises AudioError on anything but whole frames of 16-bit samples.
        """
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype != np.int16 or len(samples) % self.hop:
            raise AudioError(
                f"tinystream: got {samples.dtype} samples of shape {samples.shape}, expected int16 in frames of "
                f"{self.hop}"
            )
        latent, state = self.latent(samples, state)
        return self.search(latent), state

    def latent(self, samples: Int16, state: IntegerState) -> tuple[Int16, IntegerState]:
        """Latents [frames, d] before the codebooks, and the state after them."""
        if self.front is None:
            x, rest = samples[:, None], state.samples
        else:
            x, rest = self.front.step(samples, state.samples)
        contexts, held, number = [], x, 0
        for operation in self.program:
            if operation.kind is Kind.KEEP:
                held = x
            elif operation.kind is Kind.ADD:
                x = saturated(x.astype(np.int64) + held)
            else:
                x, context = convolved(operation, x, state.contexts[number])
                contexts.append(context)
                number += 1
        return x, IntegerState(rest, tuple(contexts))

    def search(self, latent: Int16) -> NDArray[np.int64]:
        """Indices [quantizers, frames] of latents [frames, d]: residual search, of equally near entries the first."""
        residual = latent.astype(np.int64)
        chosen = []
        for entries, shift in zip(self.codebooks.astype(np.int64), self.codebook_shifts, strict=True):
            squares = (entries * entries).sum(1) << shift
            scores = 2 * exact_product(residual, entries.T) - squares
            index = scores.argmax(1)
            residual = residual - (entries[index] << shift)
            chosen.append(index)
        return np.stack(chosen) if chosen else np.zeros((0, len(latent)), np.int64)

    @property
    def stored_bytes(self) -> int:
        """Bytes of weights, biases, multipliers, shifts and codebooks, tables of the front aside."""
        parts: Sequence[NDArray[np.generic] | None] = [
            part for op in self.program for part in (op.weight, op.bias, op.multiplier, op.shift)
        ]
        per_output = sum(len(op.bias) for op in self.program if op.bias is not None)
        stored = sum(part.nbytes for part in parts if part is not None) + self.codebooks.nbytes
        return stored - 5 * per_output  # in C a multiplier takes two bytes and a shift one


def convolved(operation: Operation, x: Int16, context: Int16) -> tuple[Int16, Int16]:
    """One convolution of activations [t, i]: [t / stride, o], and the context after it."""
    assert operation.weight is not None and operation.bias is not None
    if operation.relu:
        x = np.maximum(x, 0)
    joined = np.concatenate([context, x])
    taps = np.lib.stride_tricks.sliding_window_view(joined, operation.kernel, 0)[:: operation.stride]  # [t, i, kernel]
    if operation.kind is Kind.DEPTHWISE:
        sums = (taps.astype(np.int64) * operation.weight).sum(2)
    else:
        flat = taps.transpose(0, 2, 1).reshape(len(taps), -1)
        sums = exact_product(flat, operation.weight.reshape(len(operation.weight), -1).T)
    scaled = (sums + operation.bias) * operation.multiplier.astype(np.int64)  # type: ignore[union-attr]
    half = np.int64(1) << (operation.shift.astype(np.int64) - 1)  # type: ignore[union-attr]
    kept = joined[len(joined) - len(context) :] if len(context) else context
    return saturated((scaled + half) >> operation.shift), kept


def exact_product(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.int64]:
    """Matrix product of whole numbers whose sums stay below 2^53, by floating point."""
    return np.rint(one.astype(np.float64) @ other.astype(np.float64)).astype(np.int64)


def saturated(x: NDArray[np.int64]) -> Int16:
    """Held within 16 bits."""
    return np.clip(x, LOWEST, HIGHEST).astype(np.int16)
