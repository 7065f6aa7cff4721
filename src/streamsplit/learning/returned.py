"""Gradients that the server returns for windows cut between two blocks: their bytes, and what a learner does with them.

The server's loss sees what crossed after block k and gives its gradient there; the device carries it on through its
own blocks 1..k (split training). Two things differ from the uncut network's gradient, and both are small: what crossed
came from the momentum encoder (quantised), while the query encoder learns, and both have moved on until the answer
is there. Gradients are those of the *sum* over the rows of the server's batch, so that they do not depend on its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing, pack_crossing, unpack_crossing
from streamsplit.errors import EncoderError
from streamsplit.wire.gradient import GradientHeader, pack_gradient_header, unpack_gradient_header
from streamsplit.wire.media import Encoding

_TOP = 14  # largest values are scaled to 2^13..2^14: below a half's limit, and 2^38 above its smallest
_EXPONENTS = 120


class ReturnedGradient(NamedTuple):
    """The gradient d loss / d (h, partial) of one window, after block `block`."""

    window: int
    revision: int  # prefix of the revision that computed the crossing
    block: int
    gradient: Crossing  # h [1, c, f, t], partial [1, d]


def pack_gradient(returned: ReturnedGradient, encoding: Encoding = Encoding.FP16) -> bytes:
    """GRAD_BACK's payload; FP32 is exact, FP16 rounds to 11 bits. Raises CutError on NaN or infinite values."""
    h, partial = returned.gradient
    largest = max(float(h.abs().max()), float(partial.abs().max()))
    exponent = 0
    if math.isfinite(largest) and largest > 0 and encoding is not Encoding.FP32:
        exponent = min(max(_TOP - math.frexp(largest)[1], -_EXPONENTS), _EXPONENTS)
    scaled = Crossing(h * 2.0**exponent, partial * 2.0**exponent)
    header = GradientHeader(returned.window, returned.revision, returned.block, exponent)
    return pack_gradient_header(header, pack_crossing(scaled, encoding))


def unpack_gradient(payload: bytes | memoryview) -> ReturnedGradient:
    """Raises ProtocolError or CutError on anything that `pack_gradient` does not write, before it allocates much."""
    header, rest = unpack_gradient_header(payload)
    h, partial = unpack_crossing(rest)
    scale = 2.0**-header.exponent
    return ReturnedGradient(header.window, header.revision, header.block, Crossing(h * scale, partial * scale))


class AskedWindow(NamedTuple):
    """A window whose gradient was asked for: what is needed to run blocks 1..k on it again."""

    features: NDArray[np.float16]  # [f, t]
    block: int
    revision: int  # prefix
    space: int  # the learner's embedding space when it was sent


class PendingWindows:
    """Windows that wait for their gradient, by window number; when full, the oldest goes (25.6 KB each)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._asked: dict[int, AskedWindow] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def ask(self, window: int, asked: AskedWindow) -> int:
        """Keeps a window; gives how many had to go for it (0 or 1). A number that comes again replaces the older."""
        self._asked.pop(window, None)
        self._asked[window] = asked
        if len(self._asked) <= self.capacity:
            return 0
        del self._asked[next(iter(self._asked))]
        return 1

    def take(self, returned: ReturnedGradient) -> AskedWindow | None:
        """The window that a gradient belongs to, once; None where none waits for it at this cut and revision."""
        asked = self._asked.get(returned.window)
        if asked is None or (asked.block, asked.revision) != (returned.block, returned.revision):
            return None
        return self._asked.pop(returned.window)

    def clear(self) -> None:
        """Forgets all."""
        self._asked.clear()


class ReturnedGradients:
    """Sums of returned gradients until the next optimiser step, apart from the local ones.

    Apart, because sigma^2 is measured over the local mini-batches. Memory: one number for each parameter of blocks
    1..k, as soon as a gradient has come.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}  # by the parameter's position

    def __len__(self) -> int:
        """Parameters that have a sum."""
        return len(self._sums)

    def add(
        self,
        encoder: SplitEncoder,
        parameters: Sequence[Tensor],
        windows: NDArray[np.floating],
        block: int,
        gradient: Crossing,
        scale: float,
    ) -> None:
        """Runs blocks 1..`block` on windows [n, f, t] and carries `scale` x `gradient` (n rows) back through them.

        Raises EncoderError, keeping nothing, if the gradient does not fit or the result is not finite.
        """
        own = encoder.forward_to(torch.from_numpy(np.ascontiguousarray(windows, np.float32)), block)
        if own.h.shape != gradient.h.shape or own.partial.shape != gradient.partial.shape:
            got, expected = tuple(gradient.h.shape), tuple(own.h.shape)
            raise EncoderError(f"got a gradient of shape {got} at block {block}, expected {expected}")
        outputs, incoming = [], []
        for value, received in zip(own, gradient, strict=True):
            if value.requires_grad:  # the map does not where only readouts are trained
                outputs.append(value)
                incoming.append(received * scale)
        trained = {at: parameter for at, parameter in enumerate(parameters) if parameter.requires_grad}
        found = torch.autograd.grad(outputs, list(trained.values()), incoming, allow_unused=True)
        moved = {at: own for at, own in zip(trained, found, strict=True) if own is not None}
        if not all(bool(torch.isfinite(own).all()) for own in moved.values()):
            raise EncoderError(
                f"got a gradient that becomes NaN or infinite below block {block}, expected a finite one"
            )
        for at, own_gradient in moved.items():
            held = self._sums.get(at)
            self._sums[at] = own_gradient if held is None else held + own_gradient

    def move_into(self, parameters: Sequence[Tensor]) -> None:
        """Adds the sums to the parameters' `.grad`, before these are clipped, and starts anew."""
        for at, total in self._sums.items():
            parameter = parameters[at]
            parameter.grad = total if parameter.grad is None else parameter.grad + total
        self.forget()

    def forget(self) -> None:
        """Drops what was summed."""
        self._sums = {}
