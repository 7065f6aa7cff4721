"""Bottlenecks: a learned narrowing of the map that crosses at one cut (v1 App. N, Eq. 18)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit.errors import CutError

if TYPE_CHECKING:
    from streamsplit.encoders.base import SplitEncoder

_BATCH = 32
_FEWEST_FRAMES = 8  # enough to see the number of channels
RECONSTRUCTION_WEIGHT = 0.1  # of the map's relative squared error beside the embedding's 1 - cosine


class Bottleneck(nn.Module):
    """1x1 projection to a quarter of the channels on the device, and back on the server.

    Any module with these two methods can be registered at a cut instead.
    """

    def __init__(self, channels: int, narrow: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.narrow = narrow if narrow is not None else max(1, channels // 4)
        self.down = nn.Conv2d(channels, self.narrow, 1)
        self.up = nn.Conv2d(self.narrow, channels, 1)

    @property
    def fitted(self) -> bool:
        """False while it is all zeros, as it starts in a new encoder: nothing may cross through it then."""
        return bool(self.down.weight.any())

    def compress(self, h: Tensor) -> Tensor:
        """[b, c, f, t] to [b, c / 4, f, t]; raises CutError on another channel count."""
        return self._through(self.down, h, self.channels)

    def expand(self, narrow: Tensor) -> Tensor:
        """[b, c / 4, f, t] back to [b, c, f, t]; raises CutError on another channel count."""
        return self._through(self.up, narrow, self.narrow)

    def forward(self, h: Tensor) -> Tensor:
        """What the server sees of h, before any quantisation."""
        return self.expand(self.compress(h))

    @staticmethod
    def _through(layer: nn.Conv2d, h: Tensor, channels: int) -> Tensor:
        if h.dim() != 4 or h.shape[1] != channels:
            raise CutError(f"got a map of shape {tuple(h.shape)}, expected [b, {channels}, f, t] for this bottleneck")
        result: Tensor = layer(h.to(layer.weight.device))
        return result.to(h.device)  # what crosses is packed and unpacked on the host, the encoder may be on a GPU


class Bottlenecks(nn.Module):
    """An encoder's bottlenecks by block: `bottlenecks[k] = Bottleneck(...)`; a block without one crosses as it is.

    They are part of the encoder's weights, so adding or fitting one makes a new revision, and both ends must have
    one at the same blocks.
    """

    def __getitem__(self, k: int) -> Bottleneck:
        found = self.get(k)
        if found is None:
            raise CutError(f"no bottleneck at block {k}; there are ones at {list(self) or 'none'}")
        return found

    def __setitem__(self, k: int, bottleneck: Bottleneck) -> None:
        self.add_module(str(k), bottleneck)

    def __delitem__(self, k: int) -> None:
        del self._modules[str(self._existing(k))]

    def __contains__(self, k: object) -> bool:
        return str(k) in self._modules

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(name) for name in self._modules))

    def __len__(self) -> int:
        return len(self._modules)

    def get(self, k: int) -> Bottleneck | None:
        """The bottleneck at block k, or None."""
        return self._modules.get(str(k))  # type: ignore[return-value]

    def _existing(self, k: int) -> int:
        self[k]
        return k


def add_bottlenecks(encoder: SplitEncoder, blocks: Iterable[int]) -> None:
    """Registers an unfitted bottleneck after each of these blocks; raises CutError for one outside 1..L-1.

    They are zeros: the encoder's starting weights stay what its seed makes them, and `fitted` tells them apart.
    """
    wanted = sorted(set(blocks))
    if not wanted:
        return
    for k in wanted:
        _check_between(encoder, k)
    shapes = [cost.output_shape for cost in encoder.block_costs(t=_FEWEST_FRAMES)]
    for k in wanted:
        with torch.random.fork_rng(devices=[]):
            bottleneck = Bottleneck(shapes[k - 1][0])
        with torch.no_grad():
            for parameter in bottleneck.parameters():
                parameter.zero_()
        encoder.bottlenecks[k] = bottleneck.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fit_bottlenecks(encoder: SplitEncoder, windows: np.ndarray) -> None:
    """Sets all of the encoder's bottlenecks, in place, to the best linear narrowing of their maps' channels.

    `windows` [n, f, t] are log-mel. Closed form, as the projection's start (`projection.fit_projection`) and the early
    exits are; it depends on the blocks alone, not on the projection. Raises CutError without a window.
    """
    for k in encoder.bottlenecks:
        _start_from_principal_directions(encoder.bottlenecks[k], *_channel_moments(encoder, k, windows))


def fit_bottleneck(
    encoder: SplitEncoder,
    k: int,
    windows: np.ndarray,
    steps: int = 100,
    *,
    batch: int = 16,
    rate: float = 3e-3,
    seed: int = 0,
) -> Bottleneck:
    """Fits a quarter-width bottleneck at block k on log-mel windows [n, f, t] and registers it on the encoder.

    Starts from the least-squares optimum (principal directions of the channels), then `steps` Adam steps bring the
    embedding behind it close to the encoder's own, which stays as it is. Raises CutError for k outside 1..L-1.
    """
    _check_between(encoder, k)
    x = torch.from_numpy(np.asarray(windows, np.float32))
    with torch.no_grad():
        whole = encoder.forward_to(x, k)
        target = encoder.forward_from(whole, k)
    bottleneck = Bottleneck(whole.h.shape[1])
    _start_from_principal_directions(bottleneck, *_channel_moments(encoder, k, windows))
    optimiser = torch.optim.Adam(bottleneck.parameters(), lr=rate)
    rng = np.random.default_rng(seed)
    power = whole.h.square().mean()
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(x), min(batch, len(x))))
        h = whole.h[rows]
        seen = bottleneck(h)
        z = encoder.forward_from(whole._replace(h=seen, partial=whole.partial[rows]), k)
        distance = 1 - functional.cosine_similarity(z, target[rows]).mean()
        loss = distance + RECONSTRUCTION_WEIGHT * (seen - h).square().mean() / power
        gradients = torch.autograd.grad(loss, list(bottleneck.parameters()))
        for parameter, gradient in zip(bottleneck.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
    bottleneck.requires_grad_(next(encoder.parameters()).requires_grad)
    for parameter in bottleneck.parameters():
        parameter.grad = None
    encoder.bottlenecks[k] = bottleneck.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return bottleneck


def _check_between(encoder: SplitEncoder, k: int) -> None:
    if not 0 < k < encoder.num_blocks:
        raise CutError(f"got block {k}, expected 1..{encoder.num_blocks - 1}: only maps between blocks are narrowed")


def _channel_moments(encoder: SplitEncoder, k: int, windows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean [c] and covariance [c, c] of the channels after block k over all places of all windows [n, f, t]."""
    if not len(windows):
        raise CutError("got no windows to fit a bottleneck to, expected at least one")
    device = next(encoder.parameters()).device
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0
    count = 0
    with torch.no_grad():
        for start in range(0, len(windows), _BATCH):
            x = torch.from_numpy(np.asarray(windows[start : start + _BATCH], np.float32)).to(device)
            h = encoder.forward_to(x, k).h
            pixels = h.permute(0, 2, 3, 1).reshape(-1, h.shape[1]).double()
            total, products, count = total + pixels.sum(0), products + pixels.T @ pixels, count + len(pixels)
    assert isinstance(total, Tensor) and isinstance(products, Tensor)
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _start_from_principal_directions(bottleneck: Bottleneck, mean: Tensor, covariance: Tensor) -> None:
    """The linear autoencoder over channels with the least squared error on maps of these moments."""
    _, vectors = torch.linalg.eigh(covariance)
    basis = vectors[:, -bottleneck.narrow :].T  # [narrow, c]
    with torch.no_grad():
        bottleneck.down.weight.copy_(basis[:, :, None, None])
        bottleneck.down.bias.copy_(-basis @ mean)  # type: ignore[union-attr]
        bottleneck.up.weight.copy_(basis.T[:, :, None, None])
        bottleneck.up.bias.copy_(mean)  # type: ignore[union-attr]
