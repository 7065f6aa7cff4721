"""Split training at the server: the refiner's loss on what crossed, and its gradient at each window's cut.

A window that asks is paired as any other with a window close in time, joins the batch of the refiner's next step, and
so meets negatives of all devices and the frozen teacher's target. One backward pass gives the gradients of the
master's blocks k+1..L, which the optimiser takes, and the gradient at the cut, which goes back. The upper blocks are
those of the master weights, not of the device's revision: what is learned there is what the next revision brings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing, stack_crossings
from streamsplit.refinement.batch import embed_windows
from streamsplit.refinement.reservoir import Reservoir, StoredWindow
from streamsplit.refinement.settings import RefinerSettings

MAX_ASKED = 64  # windows that wait for a step; the oldest go, because the device has gone on
PATIENCE = 4  # steps that a window without a neighbour waits for one


class SplitGradient(NamedTuple):
    """The gradient of the sum of the batch's losses at one window's cut."""

    item: StoredWindow
    gradient: Crossing  # h [1, c, f, t], partial [1, d]


@dataclass(slots=True)
class _Asked:
    item: StoredWindow
    tries: int = 0


class AskedWindows:
    """Windows whose devices wait for a gradient, oldest first; `unanswered` counts those that will not get one."""

    def __init__(self, capacity: int = MAX_ASKED) -> None:
        self._waiting: deque[_Asked] = deque()
        self.capacity = capacity
        self.unanswered = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: StoredWindow) -> None:
        """Takes a crossing that asks."""
        self._waiting.append(_Asked(item))
        if len(self._waiting) > self.capacity:
            self._waiting.popleft()
            self.unanswered += 1

    def pairs(
        self, reservoir: Reservoir, rng: np.random.Generator, most: int, options: RefinerSettings
    ) -> list[tuple[StoredWindow, StoredWindow]]:
        """Up to `most` pairs (asked window, neighbour), oldest first; they wait no longer.

        Windows without a neighbour stay for `PATIENCE` calls: the next one may be on its way.
        """
        found: list[tuple[StoredWindow, StoredWindow]] = []
        left: deque[_Asked] = deque()
        for asked in self._waiting:
            partner = None
            if len(found) < most:
                partner = reservoir.partner(
                    rng, asked.item, min_gap=options.positive_min_gap, max_gap=options.positive_max_gap,
                    decay=options.positive_decay,
                )  # fmt: skip
                asked.tries += 1
            if partner is not None:
                found.append((asked.item, partner))
            elif asked.tries < PATIENCE:
                left.append(asked)
            else:
                self.unanswered += 1
        self._waiting = left
        return found

    def clear(self) -> None:
        """Gives up on all: they belong to an earlier embedding space."""
        self.unanswered += len(self._waiting)
        self._waiting.clear()


def crossing_leaf(item: StoredWindow, device: torch.device) -> Crossing:
    """A stored crossing as tensors whose gradient is kept."""
    assert item.partial is not None
    h = torch.from_numpy(item.h.astype(np.float32))[None].to(device)
    partial = torch.from_numpy(item.partial.copy())[None].to(device)
    return Crossing(h.requires_grad_(), partial.requires_grad_())


def embed_with_leaves(encoder: SplitEncoder, batch: list[StoredWindow], leaves: Mapping[int, Crossing]) -> Tensor:
    """Embeddings [n, d] in the order of `batch`, as `embed_windows`; rows in `leaves` start from those tensors."""
    if not leaves:
        return embed_windows(encoder, batch)
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, leaf in leaves.items():
        groups.setdefault((batch[row].block, tuple(leaf.h.shape)), []).append(row)
    parts, order = [], []
    for (block, _), rows in groups.items():
        parts.append(encoder.forward_from(stack_crossings([leaves[row] for row in rows]), block))
        order += rows
    rest = [row for row in range(len(batch)) if row not in leaves]
    if rest:
        parts.append(embed_windows(encoder, [batch[row] for row in rest]))
        order += rest
    return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(parts[0].device)]


def split_gradients(batch: Sequence[StoredWindow], leaves: Mapping[int, Crossing]) -> tuple[SplitGradient, ...]:
    """After the backward pass of the batch's mean loss: the leaves' gradients of its sum; not finite ones left out."""
    found = []
    for row, leaf in leaves.items():
        h, partial = (len(batch) * (torch.zeros_like(part) if part.grad is None else part.grad).cpu() for part in leaf)
        if bool(torch.isfinite(h).all()) and bool(torch.isfinite(partial).all()):
            found.append(SplitGradient(batch[row], Crossing(h, partial)))
    return tuple(found)
