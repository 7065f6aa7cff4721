"""Statistics readouts: what the embedding is made of, at the input and at several depths.

Each readout reduces its feature map to statistics over time per (frequency row, channel), normalises them without
learned scales, and adds its own linear projection to one running sum. Being additive, a cut needs to carry only
that sum of the readouts already passed. (Not in the papers: global average pooling, which they use, loses 7-12
points of probe accuracy on environmental sound.)

Statistics over time do not know what came first. The input's readout therefore also holds the window's course: its
mean spectrum in SEGMENTS soft segments of equal sound, wherever in the window they lie (docs/design.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit.audio.logmel import LOGMEL_STD
from streamsplit.encoders.fixed import COURSE_BANDS, QUIETEST, SEGMENTS

INPUT_WEIGHT = 2.0  # of the input's statistics against the deepest map's, before learning (measured, as the next two)
COURSE_WEIGHT = 1.2  # of the window's course
MAP_WEIGHT = 0.7  # of each map's statistics
STATISTIC_EPS = 1e-5  # added to variances under the root, keeps gradients finite on constant rows


class ReadoutSite(NamedTuple):
    """Where a readout sits: on the output of `block` (0 = the input), `channels` x `rows` at full resolution."""

    block: int
    channels: int
    rows: int

    @property
    def features(self) -> int:
        """Numbers that this readout yields: five per input band and the course, two per row and channel elsewhere."""
        return 5 * self.rows + SEGMENTS * COURSE_BANDS if self.block == 0 else 2 * self.channels * self.rows

    @property
    def weight(self) -> float:
        """Length of this group relative to the others."""
        return math.hypot(INPUT_WEIGHT, COURSE_WEIGHT) if self.block == 0 else MAP_WEIGHT


class StatisticsReadout(nn.Module):
    """One readout: `statistics` of a map, then `project` to the embedding's dimension."""

    def __init__(self, site: ReadoutSite, embedding_dim: int, length: float) -> None:
        """`length` is the norm of this group's statistics (the same for every sample)."""
        super().__init__()
        self.site = site
        self.scale = length / site.weight
        self.project = nn.Linear(site.features, embedding_dim)

    def statistics(self, h: Tensor) -> Tensor:
        """Normalised statistics [b, g] of a map h [b, c, f, t], or of log-mel h [b, f, t] for the input's readout.

        Each sample's group is centred and scaled to a fixed norm; all groups of an encoder together have norm 1, so
        that a learning rate means the same whatever their sizes. Maps with half the site's rows (reduced
        resolution) repeat each row.
        """
        rows = self.site.rows
        if self.site.block:
            return _normalised(_repeated(_map_statistics(h), rows), MAP_WEIGHT * self.scale)
        level = _normalised(_repeated(_input_statistics(h), rows), INPUT_WEIGHT * self.scale)
        return torch.cat((level, _normalised(course(h).flatten(1), COURSE_WEIGHT * self.scale)), 1)

    def forward(self, h: Tensor) -> Tensor:
        """This readout's share [b, d] of the embedding before normalisation."""
        projected: Tensor = self.project(self.statistics(h))
        return projected


def course(x: Tensor, segments: int = SEGMENTS, bands: int = COURSE_BANDS) -> Tensor:
    """Mean spectrum [b, q, bands] in q soft segments of normalised log-mel x [b, f, t], in the order of time.

    A frame's place is the share of the window's sound before its middle, sound being the level (half the log of the
    frame's power) above the quietest frame: pauses take no room, and an event gives the same course early, late, short
    or long. A segment takes frames in with triangular weight around its middle, times their level.
    """
    level = 0.5 * torch.logsumexp(x * LOGMEL_STD, 1)  # the constant that normalisation took away drops out next
    level = level - level.amin(1, keepdim=True) + QUIETEST
    place = (torch.cumsum(level, 1) - 0.5 * level) / level.sum(1, keepdim=True)  # [b, t] in 0..1
    middle = (torch.arange(segments, dtype=x.dtype, device=x.device) + 0.5) / segments
    distance = (place.unsqueeze(1) - middle.reshape(1, -1, 1)).abs() * segments
    weight = (1.0 - distance).clamp_min(0.0) * level.unsqueeze(1)  # [b, q, t]
    weight = weight / (weight.sum(2, keepdim=True) + STATISTIC_EPS)
    joined = x.reshape(x.shape[0], bands, -1, x.shape[2]).mean(2)
    return torch.einsum("bqt,bft->bqf", weight, joined)


def _repeated(groups: Tensor, rows: int) -> Tensor:
    """Statistics [b, s, f, c] flattened [b, s rows c]; maps with half the rows repeat each."""
    repeat = rows // groups.shape[2]
    return (groups.repeat_interleave(repeat, dim=2) if repeat > 1 else groups).flatten(1)


def _normalised(group: Tensor, norm: float) -> Tensor:
    """Each row of a group [b, g] centred and scaled to a fixed norm."""
    features = group.shape[1]
    return functional.layer_norm(group, (features,)) * (norm / math.sqrt(features))


def _map_statistics(h: Tensor) -> Tensor:
    """Mean and standard deviation over time of h [b, c, f, t], as [b, 2, f, c]."""
    h = h.permute(0, 2, 3, 1)  # the memory order of channels_last: the reduction runs over contiguous channels
    mean = h.mean(2)
    deviation = (h - mean.unsqueeze(2)).square().mean(2).add(STATISTIC_EPS).sqrt()
    return torch.stack((mean, deviation), 1)


def _input_statistics(x: Tensor) -> Tensor:
    """Mean, deviation, maximum, minimum and RMS of the frame-to-frame change of x [b, f, t], as [b, 5, f, 1]."""
    mean = x.mean(2)
    deviation = (x - mean.unsqueeze(2)).square().mean(2).add(STATISTIC_EPS).sqrt()
    change = x.diff(dim=2).square().mean(2).add(STATISTIC_EPS).sqrt()
    return torch.stack((mean, deviation, x.amax(2), x.amin(2), change), 1).unsqueeze(3)
