"""SplitEncoder: an encoder that can stop after any block on one machine and go on from there on another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from streamsplit.audio.logmel import LOGMEL_MEAN, LOGMEL_STD
from streamsplit.encoders.bottleneck import Bottlenecks
from streamsplit.encoders.crossing import Crossing
from streamsplit.encoders.initialise import initialise, set_identity
from streamsplit.encoders.readout import ReadoutSite, StatisticsReadout
from streamsplit.errors import EncoderError

BANDS = 128  # mel bands at full resolution
MIN_FRAMES = 4


class BlockCost(NamedTuple):
    """What one block costs for one window: its own weights and readout, without exit heads and bottlenecks."""

    name: str
    parameters: int
    macs: int  # multiply-accumulates of convolutions and linear layers
    output_shape: tuple[int, ...]  # of what crosses after the block, without the batch


class SplitEncoder(nn.Module):
    """Log-mel windows [b, 128, t] or [b, 64, t] (natural log) to unit-norm embeddings [b, d] in `num_blocks` blocks.

    Blocks 1..L-1 are feature maps; block L, the head, takes the last readout and normalises the sum of all of them,
    at reduced resolution after `from_reduced`, an affine map into the space of full ones (v1 App. C).
    `forward_from(forward_to(x, k), k)` equals `forward(x)` bit for bit for every k in 0..L on one machine, because
    all three run the same blocks on the same memory layout. Nothing depends on the rest of the batch.
    """

    def __init__(
        self,
        name: str,
        blocks: Sequence[nn.Module],
        block_names: Sequence[str],
        sites: Sequence[ReadoutSite],
        embedding_dim: int,
        rng: np.random.Generator,
    ) -> None:
        """`sites` go from the input (block 0) to the last map, whose readout belongs to the head."""
        super().__init__()
        if sites[0].block != 0 or sites[-1].block != len(blocks):
            places = [site.block for site in sites]
            raise EncoderError(f"got readouts after {places}, expected 0 first and {len(blocks)} last")
        self.name = name
        self.num_blocks = len(blocks) + 1
        self.embedding_dim = embedding_dim
        self.block_names = (*block_names, "head")
        self.sites = tuple(sites)
        length = math.sqrt(sum(site.weight**2 for site in sites))
        self.blocks = nn.ModuleList(blocks)
        readouts = [StatisticsReadout(site, embedding_dim, site.weight / length) for site in sites]
        self.readouts = nn.ModuleList(readouts)
        heads = [nn.Linear(embedding_dim, embedding_dim) for _ in sites[:-1]]
        self.exits = nn.ModuleList(heads)
        self.from_reduced = nn.Linear(embedding_dim, embedding_dim)
        self.bottlenecks = Bottlenecks()
        initialise(self, rng)
        with torch.no_grad():  # statistics have norm 1 together: the sum's components start with variance 1
            for readout in readouts:
                readout.project.weight.mul_(math.sqrt(readout.site.features))
        for head in (*heads, self.from_reduced):
            set_identity(head)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm embeddings [b, d] of log-mel windows x [b, f, t]."""
        return self.forward_from(self.forward_to(x, 0), 0)

    def forward_to(self, x: Tensor, k: int) -> Crossing:
        """Runs blocks 1..k on x [b, f, t]; raises EncoderError on a wrong shape or k."""
        self._check_block(k)
        if x.dim() != 3 or x.shape[1] not in (BANDS, BANDS // 2) or x.shape[2] < MIN_FRAMES:
            expected = f"[batch, {BANDS} or {BANDS // 2}, {MIN_FRAMES} or more]"
            raise EncoderError(f"got features of shape {tuple(x.shape)}, expected {expected}")
        crossing = Crossing(x.unsqueeze(1), x.new_zeros(x.shape[0], self.embedding_dim))
        for block in range(1, k + 1):
            crossing = self.advance(crossing, block)
        return crossing

    def forward_from(self, crossing: Crossing, k: int) -> Tensor:
        """Runs blocks k+1..L on what crossed after block k; gives embeddings [b, d]."""
        self._check_block(k)
        for block in range(k + 1, self.num_blocks + 1):
            crossing = self.advance(crossing, block)
        return crossing.h

    def exit_embedding(self, crossing: Crossing, k: int) -> Tensor:
        """Early exit: unit-norm embedding [b, d] from the readouts up to block k through their affine head.

        The heads start as the identity and are fitted by `projection.fit_exits`. At k = 0 only the input's
        statistics are used; at k = L it is the embedding itself.
        """
        self._check_block(k)
        if k == self.num_blocks:
            return crossing.h
        partial = self._readout(0)(_normalise_input(crossing.h)[:, 0]) if k == 0 else crossing.partial
        return functional.normalize(self.exits[self.exit_index(k)](partial), dim=1)

    def exit_fitted(self, k: int) -> bool:
        """False while the head of the early exit after block k is the identity that it starts as; True at k = L."""
        if k == self.num_blocks:
            return True
        weight = self.exit_heads()[self.exit_index(k)].weight
        return not torch.equal(weight, torch.eye(len(weight), device=weight.device))

    def exit_index(self, k: int) -> int:
        """Which head in `exits` serves an early exit after block k < L: one per depth of readouts passed."""
        return sum(0 < site.block <= k for site in self.sites[:-1])

    def readout_features(self, x: Tensor) -> Tensor:
        """All readouts' normalised statistics [b, g] of x [b, f, t], concatenated, before the projections."""
        crossing = self.forward_to(x, 0)
        groups = [self._readout(0).statistics(_normalise_input(crossing.h)[:, 0])]
        h = _normalise_input(crossing.h)
        for block in range(1, self.num_blocks):
            h = self.blocks[block - 1](_as_channels_last(h))
            groups += [self._readout(i).statistics(h) for i, site in enumerate(self.sites) if site.block == block]
        return torch.cat(groups, 1)

    def embed_readouts(self, statistics: Tensor, rows: int = BANDS) -> Tensor:
        """Unit-norm embeddings [b, d] of `readout_features` [b, g] of windows with so many rows: what `forward` gives.

        Gradients reach the readouts' projections only.
        """
        partial = statistics.new_zeros(len(statistics), self.embedding_dim)
        groups = statistics.split([site.features for site in self.sites], 1)
        for project, group in zip(self.readout_projections(), groups, strict=True):
            partial = partial + project(group)
        return functional.normalize(self.from_reduced(partial) if rows < BANDS else partial, dim=1)

    def readout_projections(self) -> list[nn.Linear]:
        """The linear layers, input first, whose outputs on the groups of `readout_features` sum to the embedding."""
        return [self._readout(index).project for index in range(len(self.sites))]

    def exit_heads(self) -> list[nn.Linear]:
        """The affine heads of the early exits, shallowest first; see `exit_index`."""
        return [head for head in self.exits if isinstance(head, nn.Linear)]

    def block_costs(self, f: int = BANDS, t: int = 100) -> list[BlockCost]:
        """Parameters and measured multiply-accumulates of every block for one window of f bands and t frames."""
        costs = []
        with torch.no_grad(), _MacCounter(self) as counter:
            crossing = self.forward_to(torch.zeros(1, f, t, device=next(self.parameters()).device), 0)
            for block in range(1, self.num_blocks + 1):
                crossing = self.advance(crossing, block)
                parameters = sum(p.numel() for part in self._parts(block) for p in part.parameters())
                shape = tuple(crossing.h.shape[1:])
                costs.append(BlockCost(self.block_names[block - 1], parameters, counter.take(), shape))
        return costs

    def block_weights(self, block: int) -> dict[str, np.ndarray]:
        """The float32 arrays that a device needs to run one block 1..L: its layers and the readouts computed in it."""
        self._check_block(block)
        own = {id(parameter) for part in self._parts(block) for parameter in part.parameters()}
        return {
            name: parameter.detach().cpu().numpy()
            for name, parameter in self.named_parameters()
            if id(parameter) in own
        }

    def advance(self, crossing: Crossing, block: int) -> Crossing:
        """Runs one block 1..L on what crossed after the block before it."""
        h, partial = crossing
        if block == self.num_blocks:
            partial = partial + self._readout(len(self.sites) - 1)(_as_channels_last(h))
            if h.shape[2] < self.sites[-1].rows:
                partial = self.from_reduced(partial)
            return Crossing(functional.normalize(partial, dim=1), partial)
        if block == 1:
            h = _normalise_input(h)
            partial = partial + self._readout(0)(h[:, 0])
        h = self.blocks[block - 1](_as_channels_last(h))
        for index in range(1, len(self.sites) - 1):
            if self.sites[index].block == block:
                partial = partial + self._readout(index)(h)
        return Crossing(h, partial)

    def _readout(self, index: int) -> StatisticsReadout:
        readout = self.readouts[index]
        assert isinstance(readout, StatisticsReadout)
        return readout

    def _parts(self, block: int) -> list[nn.Module]:
        """The modules that belong to a block: its layers and the readouts computed in it."""
        if block == self.num_blocks:
            return [self.readouts[-1], self.from_reduced]
        parts: list[nn.Module] = [self.blocks[block - 1]]
        return parts + [self.readouts[i] for i, site in enumerate(self.sites[:-1]) if max(site.block, 1) == block]

    def _check_block(self, k: int) -> None:
        if not 0 <= k <= self.num_blocks:
            raise EncoderError(f"got block {k}, expected 0..{self.num_blocks} for {self.name}")


def _normalise_input(x: Tensor) -> Tensor:
    return (x - LOGMEL_MEAN) * (1.0 / LOGMEL_STD)


def _as_channels_last(h: Tensor) -> Tensor:
    """The one memory layout in which every block runs, whatever path h came by.

    The explicit permutation gives the same strides even where a dimension of size 1 makes layouts ambiguous.
    """
    batch, channels, rows, frames = h.shape
    flat = h.permute(0, 2, 3, 1).reshape(batch, rows, frames, channels)
    return flat.contiguous().permute(0, 3, 1, 2)


class _MacCounter:
    """Counts multiply-accumulates of convolutions and linear layers through forward hooks, on real shapes."""

    def __init__(self, module: nn.Module) -> None:
        self._macs = 0
        self._module = module
        self._handles: list[RemovableHandle] = []

    def take(self) -> int:
        """The count since the last call."""
        macs, self._macs = self._macs, 0
        return macs

    def __enter__(self) -> _MacCounter:
        for child in self._module.modules():
            if isinstance(child, (nn.Conv2d, nn.Linear)):
                self._handles.append(child.register_forward_hook(self._count))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        per_output = weight[0].numel()  # inputs that one output value sums over
        self._macs += output.numel() * per_output
