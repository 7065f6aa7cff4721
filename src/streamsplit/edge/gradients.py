"""Gradients that the device asks of the server: what waits for one, what has come, and what becomes of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from streamsplit.audio.windows import Window
from streamsplit.edge.counters import Counters
from streamsplit.edge.model import DeviceModel, EncoderModel
from streamsplit.edge.settings import TrainingSettings
from streamsplit.errors import CutError, EncoderError, ProtocolError
from streamsplit.weights.revision import revision_prefix

if TYPE_CHECKING:
    from streamsplit.edge.pipeline import Outcome
    from streamsplit.learning.returned import AskedWindow, PendingWindows, ReturnedGradient


class GradientExchange:
    """From the wish for a gradient to its place in the learner's accumulation; every method from any thread.

    A device asks where it learns and the server of this connection has said that it returns gradients. Windows that
    wait for one are bounded, and so are gradients that wait for the learner; what comes for no window waiting is
    counted as late, what belongs to a replaced embedding space as stale, what cannot be used as refused.
    """

    def __init__(
        self, training: TrainingSettings, model: DeviceModel, counters: Counters, problem: Callable[[str], None]
    ) -> None:
        self._model = model
        self._weight = training.gradient_weight
        self._capacity = training.pending_gradients
        self._counters = counters
        self._problem = problem
        self._lock = threading.Lock()
        self._pending: PendingWindows | None = None  # made with the first window: it needs torch
        self._come: deque[bytes] = deque()
        self._granted = False
        self.offers = training.enabled and training.ask_gradients and isinstance(model, EncoderModel)

    @property
    def granted(self) -> bool:
        """Whether the server of the present connection returns gradients."""
        return self._granted

    def grant(self, granted: bool) -> None:
        """The server has answered our offer; or the connection is gone."""
        self._granted = granted and self.offers

    def asks(self) -> bool:
        """Whether to ask for a gradient along with the present window."""
        return self._granted and isinstance(self._model, EncoderModel) and self._model.learns

    def asked(self, window: Window, outcome: Outcome) -> None:
        """Keeps a window that was sent with the wish for its gradient."""
        from streamsplit.learning.returned import AskedWindow, PendingWindows

        model = self._model
        if not isinstance(model, EncoderModel):
            return
        features = np.asarray(window.features, np.float16)
        asked = AskedWindow(features, outcome.cut.block, revision_prefix(model.revision), model.space)
        with self._lock:
            if self._pending is None:
                self._pending = PendingWindows(self._capacity)
            self._pending.ask(outcome.window, asked)
        self._count("gradients_asked")

    def arrived(self, payload: bytes) -> None:
        """A GRAD_BACK payload; the learner takes it up when it has time, and the oldest goes when it has none."""
        with self._lock:
            self._come.append(payload)
            dropped = len(self._come) > self._capacity
            if dropped:
                self._come.popleft()
        if dropped:
            self._count("gradients_late")

    def apply(self, model: EncoderModel) -> int:
        """Takes what has come into the learner's accumulation; gives how many gradients that were."""
        with self._lock:
            come, self._come = list(self._come), deque()
        return sum(self._apply(model, payload) for payload in come)

    def _apply(self, model: EncoderModel, payload: bytes) -> bool:
        from streamsplit.learning.returned import unpack_gradient

        try:
            returned = unpack_gradient(payload)
            asked = self._waiting(returned)
            if asked is None:
                self._count("gradients_late")
                return False
            windows = np.asarray(asked.features, np.float32)[None]
            fits = model.take_gradient(windows, asked.block, returned.gradient, asked.space, self._weight)
        except (ProtocolError, CutError, EncoderError) as error:
            self._count("gradients_refused")
            self._problem(f"gradient from the server not used: {error}")
            return False
        self._count("gradients_applied" if fits else "gradients_stale")
        return fits

    def _waiting(self, returned: ReturnedGradient) -> AskedWindow | None:
        with self._lock:
            return None if self._pending is None else self._pending.take(returned)

    def _count(self, name: str) -> None:
        with self._counters.lock:
            setattr(self._counters, name, getattr(self._counters, name) + 1)
