"""What goes through the pipe between the server and its refiner, in both directions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamsplit.server.jobs import Sample
from streamsplit.weights.revision import Weights

# -- what the server sends ---------------------------------------------------------------------------------------


class Learn(NamedTuple):
    """Windows to learn from."""

    samples: list[Sample]


class Merge(NamedTuple):
    """What a device learned, relative to revision `base`."""

    device: str
    base: str
    difference: Weights
    samples: int


class Label(NamedTuple):
    """A name that somebody gave to windows (device, window, Unix ms of arrival), for those still collected."""

    label: str
    windows: list[tuple[str, int, int]]


class SaveNow(NamedTuple):
    """Write a checkpoint now."""


class Stop(NamedTuple):
    """Write a last checkpoint and end."""


# -- what comes back ---------------------------------------------------------------------------------------------


class Started(NamedTuple):
    """The loop runs; this revision is current."""

    revision: str
    space: int
    resumed: bool
    steps: int


class Progress(NamedTuple):
    """One optimiser step, or why none was made."""

    step: int
    loss: float
    task: float
    wasserstein: float
    laplacian: float
    effective_rank: float
    samples: int
    devices: int
    skipped: str
    step_ms: float
    collected: int


class NewRevision(NamedTuple):
    """A revision whose files are written; `mixture` describes a new space, where there is one.

    `alignment` maps a device to its mean distance from the others (sliced Wasserstein of kernel densities).
    """

    revision: str
    base: str
    space: int
    breaks_space: bool
    effective_rank: float
    merged_devices: int
    steps: int
    mixture: dict[str, np.ndarray] | None
    alignment: dict[str, float]


class Centres(NamedTuple):
    """The k-means prototypes [k, d] float32 of one embedding space, as they are now."""

    space: int
    centres: np.ndarray


class Gradients(NamedTuple):
    """What one step gave for windows that asked: (device, GRAD_BACK payload); and how many since get none."""

    returned: list[tuple[str, bytes]]
    unanswered: int


class Trouble(NamedTuple):
    """Something failed and the loop goes on; `kind` is an event's kind."""

    kind: str
    detail: str


class Saved(NamedTuple):
    """A checkpoint was written."""

    bytes: int
    took_ms: float


class Stopped(NamedTuple):
    """The loop has ended."""
