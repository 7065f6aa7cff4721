"""What the refiner says of a step, and a revision as it goes out."""

from __future__ import annotations

from typing import NamedTuple

from streamsplit.refinement.aggregation import Alignment
from streamsplit.refinement.lineage import Weights
from streamsplit.refinement.split_step import SplitGradient


class RefineReport(NamedTuple):
    """One call of `step`: unweighted parts of the loss, effective rank and size of the batch, and what was wrong."""

    step: int
    loss: float
    task: float  # contrast + target + labels, weighted
    target: float  # 1 - cosine to the frozen embedding of the other window
    wasserstein: float
    laplacian: float
    effective_rank: float  # of the batch
    samples: int
    devices: int
    skipped: str = ""  # why no optimiser step was made; "" when one was
    gradients: tuple[SplitGradient, ...] = ()  # for the windows of the batch that asked


class Published(NamedTuple):
    """A revision as it goes out; `delta` applies to `base` and gives exactly `weights`, as does `full`."""

    revision: str
    base: str | None
    weights: Weights
    delta: bytes | None
    full: bytes
    breaks_space: bool
    effective_rank: float  # of up to 256 collected windows; NaN without any
    merged_devices: int = 0
    note: str = ""  # why nothing new was published; "" otherwise
    alignment: Alignment | None = None  # of the devices heard last; None with fewer than two
