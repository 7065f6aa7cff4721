"""Which terms of the server's loss help: StreamSplit with each of them, with all windows in order and with few, late.

The rows of the paper's loss ablation (MSE, KL, MMD, SW, Laplacian, SW + Laplacian) and one without any such term. All
hold the task loss and the frozen target, the same start, order and budget; each distribution term has the same weight.
"""

from __future__ import annotations

from typing import NamedTuple

from streamsplit.evaluation.baselines.streamsplit import REFINER, SHARE_SENT, StreamSplit
from streamsplit.refinement.hybrid import HybridSettings


class Term(NamedTuple):
    """What is added to the task loss."""

    about: str
    distribution: str  # of HybridSettings
    laplacian: bool = False


class Arrival(NamedTuple):
    """How much of what is heard goes up, and how it arrives."""

    about: str
    share_sent: float
    late_windows: int = 0
    lost_share: float = 0.0


TERMS = {
    "none": Term("task loss alone", "none"),
    "mse": Term("MSE to the neighbours in time", "mse"),
    "kl": Term("KL to the uniform law", "kl"),
    "mmd": Term("MMD to the uniform law", "mmd"),
    "sw": Term("SW to the uniform law", "sw"),
    "lap": Term("Laplacian", "none", laplacian=True),
    "sw_lap": Term("SW + Laplacian", "sw", laplacian=True),
}
ARRIVALS = {
    "dense": Arrival("all windows after the start, in order", 1.0),
    "sparse": Arrival("uncertain windows, late, reordered, some lost", SHARE_SENT, late_windows=96, lost_share=0.1),
}


def ablated(term: str, arrival: str) -> StreamSplit:
    """StreamSplit with one of TERMS in the refiner's loss and one of ARRIVALS at the server."""
    held, how = TERMS[term], ARRIVALS[arrival]
    loss = HybridSettings(distribution=held.distribution, laplacian_weight=None if held.laplacian else 0.0)
    return StreamSplit(
        f"ablation_{term}_{arrival}", f"{held.about}; {how.about}", refiner=REFINER.replace(loss=loss),
        share_sent=how.share_sent, late_windows=how.late_windows, lost_share=how.lost_share,
    )  # fmt: skip


ABLATION = tuple(ablated(term, arrival) for term in TERMS for arrival in ARRIVALS)
