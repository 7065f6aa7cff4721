"""Gradients on their way back to the devices that asked: which devices take them, and what goes out on which link."""

from __future__ import annotations

from collections.abc import Mapping

from streamsplit.server.connection import Link
from streamsplit.server.metrics import Metrics
from streamsplit.server.settings import TrainingSettings
from streamsplit.wire.gradient import OFFER
from streamsplit.wire.messages import Error
from streamsplit.wire.types import OPTIONAL_TYPES, FrameType, Priority

MAX_QUEUED_BYTES = 256 << 10  # on a link that is slower than its gradients, newer ones are left out


class GradientReturns:
    """Answers offers, and sends gradients to the devices that made one in their present connection."""

    def __init__(self, links: Mapping[str, Link], training: TrainingSettings, metrics: Metrics) -> None:
        self._links = links
        self._metrics = metrics
        self.enabled = training.enabled and training.return_gradients

    @property
    def refuses(self) -> frozenset[FrameType]:
        """The frame types that sessions answer with 'unsupported'."""
        return OPTIONAL_TYPES - {FrameType.GRAD_BACK} if self.enabled else OPTIONAL_TYPES

    def on_frame(self, link: Link, payload: bytes) -> None:
        """A device's GRAD_BACK: its offer is answered with ours; nothing else comes up."""
        if payload != OFFER:
            detail = f"got a GRAD_BACK of {len(payload)} bytes, expected an empty one: gradients come down only"
            link.session.send(Error(code="unsupported", detail=detail))
        elif link.session.send_media(FrameType.GRAD_BACK, OFFER):
            link.takes_gradients = True
        link.wake()

    def send(self, returned: list[tuple[str, bytes]], unanswered: int = 0) -> None:
        """Sends what a training step gave; a gradient that cannot go out now is left out, because it ages."""
        outcomes = {"unanswered": unanswered, "returned": 0, "left_out": 0}
        for device, payload in returned:
            link = self._links.get(device)
            outcomes["returned" if link is not None and _goes(link, payload) else "left_out"] += 1
        for outcome, count in outcomes.items():
            self._metrics.gradients.labels(outcome).inc(count)


def _goes(link: Link, payload: bytes) -> bool:
    session = link.session
    if link.connection is None or not link.takes_gradients:
        return False
    if session.queued_bytes(Priority.RESULT) + len(payload) > MAX_QUEUED_BYTES:
        return False
    sent = session.send_media(FrameType.GRAD_BACK, payload)
    link.wake()
    return sent
