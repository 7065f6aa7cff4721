"""Residual vector quantisation with codebooks that follow the data (Zeghidour et al. 2021, section III-C)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit.errors import CutError


class Quantized(NamedTuple):
    """What a residual quantizer makes of a latent [b, d, t]."""

    quantized: Tensor  # [b, d, t]; gradients pass straight through it
    indices: Tensor  # [b, quantizers, t], int64
    commitment: Tensor  # mean squared distance of the latent from what it became, gradients to the latent alone


class ResidualQuantizer(nn.Module):
    """Codebooks [q, n, d], each of what the ones before leave over.

    In training mode a forward pass also moves the codebooks: exponential averages of what chose each entry, and an
    entry that hardly anything chooses is replaced by a residual of the batch. The first batch fills them with its own
    residuals. Whatever is drawn comes from `generator`.
    """

    codebooks: Tensor
    usage: Tensor  # [q, n], moving average of how often an entry is chosen in a batch
    sums: Tensor  # [q, n, d], moving average of the sum of what chose it
    filled: Tensor  # [], whether the codebooks hold data

    def __init__(
        self, num_quantizers: int, codebook_size: int, dim: int, *, decay: float = 0.99, least_usage: float = 0.1
    ) -> None:
        super().__init__()
        self.num_quantizers, self.codebook_size, self.dim = num_quantizers, codebook_size, dim
        self.decay = decay
        self.least_usage = least_usage  # of an entry's even share of a batch; below it the entry is dead
        self.register_buffer("codebooks", torch.zeros(num_quantizers, codebook_size, dim))
        self.register_buffer("usage", torch.ones(num_quantizers, codebook_size))
        self.register_buffer("sums", torch.zeros(num_quantizers, codebook_size, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.generator = torch.Generator()
        self.revived = 0  # entries replaced in the last training batch

    def forward(self, z: Tensor, used: Tensor | None = None) -> Quantized:
        """Quantises latents [b, d, t]; `used` [b] says with how many quantizers each item is (all of them: None).

        The indices are those of all quantizers, whatever was used.
        """
        rows = z.detach().transpose(1, 2).reshape(-1, self.dim)
        if self.training and not bool(self.filled):
            self._fill(rows)
        residual, sums, chosen = rows, [], []
        total = torch.zeros_like(rows)
        self.revived = 0
        for number in range(self.num_quantizers):
            index = nearest(residual, self.codebooks[number])
            entry = functional.embedding(index, self.codebooks[number])
            if self.training:
                self._follow(number, residual, index)
            residual, total = residual - entry, total + entry
            chosen.append(index.reshape(len(z), -1))
            sums.append(total)
        if used is not None:
            total = torch.stack(sums).reshape(self.num_quantizers, len(z), -1, self.dim)[
                used - 1, torch.arange(len(z), device=z.device)
            ]
        total = total.reshape(len(z), -1, self.dim).transpose(1, 2)
        return Quantized(z + (total - z).detach(), torch.stack(chosen, 1), functional.mse_loss(z, total))

    def encode(self, z: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Indices [b, quantizers, t] of latents [b, d, t]."""
        count = self.num_quantizers if num_quantizers is None else num_quantizers
        residual = z.transpose(1, 2).reshape(-1, self.dim)
        chosen = []
        for number in range(count):
            index = nearest(residual, self.codebooks[number])
            residual = residual - functional.embedding(index, self.codebooks[number])
            chosen.append(index.reshape(len(z), -1))
        return torch.stack(chosen, 1)

    def decode(self, indices: Tensor) -> Tensor:
        """Latents [b, d, t] of indices [b, q, t]; with fewer quantizers than there are, the coarser latent.

        Raises CutError where there are more quantizers than codebooks or an index names no entry.
        """
        if indices.ndim != 3 or not 1 <= indices.shape[1] <= self.num_quantizers:
            raise CutError(
                f"tinystream: got indices of shape {tuple(indices.shape)}, expected [b, 1..{self.num_quantizers}, t]"
            )
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.codebook_size:
            raise CutError(f"tinystream: got an index outside 0..{self.codebook_size - 1}")
        return sum(
            functional.embedding(indices[:, number], self.codebooks[number]) for number in range(indices.shape[1])
        ).transpose(1, 2)  # type: ignore[union-attr]

    def restart(self) -> None:
        """Training goes on from codebooks that were read: every entry as if it had been chosen its even share."""
        self.usage.fill_(1.0)
        self.sums.copy_(self.codebooks)
        self.filled.fill_(True)

    def _fill(self, rows: Tensor) -> None:
        """Codebooks from the residuals of a batch, each of the codebooks before it."""
        residual = rows
        for number in range(self.num_quantizers):
            self.codebooks[number] = self._spread(residual)
            self.sums[number] = self.codebooks[number]
            residual = residual - functional.embedding(
                nearest(residual, self.codebooks[number]), self.codebooks[number]
            )
        self.usage.fill_(len(rows) / self.codebook_size)
        self.sums *= self.usage[..., None]
        self.filled.fill_(True)

    def _follow(self, number: int, residual: Tensor, index: Tensor) -> None:
        """Moves one codebook after its entries' data, and replaces those that are dead."""
        counts = torch.bincount(index, minlength=self.codebook_size).to(residual)
        sums = torch.zeros_like(self.sums[number]).index_add_(0, index, residual)
        self.usage[number].lerp_(counts, 1.0 - self.decay)
        self.sums[number].lerp_(sums, 1.0 - self.decay)
        share = len(residual) / self.codebook_size
        dead = self.usage[number] < self.least_usage * share
        count = int(dead.sum())
        if count:
            self.usage[number, dead] = share
            self.sums[number, dead] = share * self._some(residual, count)
            self.revived += count
        self.codebooks[number] = self.sums[number] / self.usage[number][:, None]

    def _spread(self, rows: Tensor) -> Tensor:
        """A codebook [n, d] of the rows, each likely to be far from those before it (Arthur and Vassilvitskii 2007)."""
        rows = self._some(rows, max(len(rows), self.codebook_size))
        entries = [rows[0]]
        apart = torch.full((len(rows),), torch.inf, device=rows.device)
        for _ in range(self.codebook_size - 1):
            apart = torch.minimum(apart, (rows - entries[-1]).square().sum(1))
            entries.append(rows[torch.multinomial(apart.cpu() + 1e-12, 1, generator=self.generator).to(rows.device)[0]])
        return torch.stack(entries)

    def _some(self, rows: Tensor, count: int) -> Tensor:
        """`count` of the rows, the same one twice only where there are too few; equal ones a little apart."""
        if len(rows) >= count:
            picked = torch.randperm(len(rows), generator=self.generator)[:count]
        else:
            picked = torch.randint(len(rows), (count,), generator=self.generator)
        noise = torch.randn(count, rows.shape[1], generator=self.generator)
        return rows[picked.to(rows.device)] + 1e-3 * rows.std() * noise.to(rows.device)


def nearest(rows: Tensor, entries: Tensor) -> Tensor:
    """Index of each row's [m, d] nearest entry [n, d]; of equally near ones the first."""
    return torch.argmax(rows @ entries.T - 0.5 * (entries * entries).sum(1), dim=1)


def perplexity(indices: Tensor, entries: int) -> Tensor:
    """exp(entropy) of how often the entries of each codebook are chosen [q] in indices [b, q, t], in 1..entries.

    At most the number of frames; high where the latent has collapsed, too, so by itself no sign of health.
    """
    counts = torch.stack([torch.bincount(row, minlength=entries) for row in indices.transpose(0, 1).flatten(1)])
    share = counts / counts.sum(1, keepdim=True)
    return torch.exp(-torch.xlogy(share, share).sum(1))
