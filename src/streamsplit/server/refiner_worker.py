"""The server's end of the refiner: feeds its process, hears of revisions, and never waits for it in the event loop."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from streamsplit.server.jobs import Sample
from streamsplit.server.refiner_loop import (
    Label,
    Learn,
    Merge,
    SaveNow,
    Stop,
    Stopped,
    Trouble,
    refiner_process,
    run_refiner,
)
from streamsplit.server.settings import ServerSettings
from streamsplit.weights.revision import Weights

LOG = logging.getLogger(__name__)
MAX_WAITING = 2048  # samples held while the refiner is busy; the oldest go first
MESSAGE_SAMPLES = 64


class RefinerWorker:
    """Starts the loop of `refiner_loop` and carries messages to and from it.

    `learn` and `merge` return at once: a thread of its own does the sending, because a busy refiner does not read.
    Samples that it has no time for are left out of training (`dropped`); they were answered and stored before.
    `hear` is called in the receiving thread.
    """

    def __init__(self, settings: ServerSettings, hear: Callable[[Any], None]) -> None:
        self._settings = settings
        self._hear = hear
        self._condition = threading.Condition()
        self._samples: deque[Sample] = deque(maxlen=MAX_WAITING)
        self._orders: deque[Any] = deque()
        self._stopped = threading.Event()
        self._runner: Any = None
        self._connection: Connection | None = None
        self.dropped = 0
        self.alive = False

    def start(self) -> None:
        """Starts the process (or thread) and the two threads that serve its pipe."""
        ours, theirs = multiprocessing.Pipe()
        self._connection = ours
        if self._settings.training.worker == "process":
            context = multiprocessing.get_context("spawn")
            self._runner = context.Process(
                target=refiner_process, args=(theirs, self._settings), name="streamsplit-refiner", daemon=True
            )
            self._runner.start()
            theirs.close()
        else:
            self._runner = threading.Thread(
                target=run_refiner, args=(theirs, self._settings), name="streamsplit-refiner", daemon=True
            )
            self._runner.start()
        self.alive = True
        for name, work in (("send", self._send_all), ("hear", self._hear_all)):
            threading.Thread(target=work, args=(ours,), name=f"streamsplit-refiner-{name}", daemon=True).start()

    def learn(self, samples: list[Sample]) -> None:
        """Offers windows to learn from."""
        with self._condition:
            self.dropped += max(0, len(self._samples) + len(samples) - MAX_WAITING)
            self._samples.extend(samples)
            self._condition.notify()

    def merge(self, device: str, base: str, difference: Weights, samples: int) -> None:
        """Hands over what a device learned."""
        self._order(Merge(device, base, difference, samples))

    def label(self, label: str, windows: list[tuple[str, int, int]]) -> None:
        """Hands over a name that somebody gave to windows (device, window, Unix ms of arrival)."""
        self._order(Label(label, windows))

    def save(self) -> None:
        """Asks for a checkpoint."""
        self._order(SaveNow())

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Lets the refiner write a last checkpoint and end; False if it did not in time and was ended."""
        if self._runner is None:
            return True
        self._order(Stop())
        clean = self._stopped.wait(timeout_s)
        self._runner.join(timeout_s if clean else 0.0)
        if not clean and hasattr(self._runner, "terminate"):
            LOG.error("refiner: did not stop within %.0f s; its last checkpoint stands", timeout_s)
            self._runner.kill()
        return clean

    def _order(self, message: Any) -> None:
        with self._condition:
            self._orders.append(message)
            self._condition.notify()

    def _send_all(self, connection: Connection) -> None:
        while True:
            with self._condition:
                while not (self._samples or self._orders):
                    self._condition.wait()
                message: Any
                if self._orders:
                    message = self._orders.popleft()
                else:
                    count = min(len(self._samples), MESSAGE_SAMPLES)
                    message = Learn([self._samples.popleft() for _ in range(count)])
            try:
                connection.send(message)
            except (OSError, ValueError):  # the process is gone; the other thread reports it
                return
            if isinstance(message, Stop):
                return

    def _hear_all(self, connection: Connection) -> None:
        try:
            while True:
                message = connection.recv()
                if isinstance(message, Stopped):
                    break
                self._hear(message)
        except (EOFError, OSError):
            self._hear(Trouble("refiner_failed", "the refiner's process ended; windows are still completed and stored"))
        finally:
            self.alive = False
            self._stopped.set()
