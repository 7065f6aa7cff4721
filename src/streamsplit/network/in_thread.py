"""A proxy that runs in an event loop of its own, in a thread, with fine timers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, TypeVar

from streamsplit.errors import StreamSplitError
from streamsplit.network.fine_loop import run_finely

T = TypeVar("T", bound="InThread")


class InThread(ABC):
    """`start` and `stop` run in whatever loop the caller has; `start_in_thread` and `stop_thread` bring one along."""

    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _finish: asyncio.Event

    @abstractmethod
    async def start(self) -> Any:
        """Opens what it listens on, and notes the loop; raises StreamSplitError."""

    @abstractmethod
    async def stop(self) -> None:
        """Closes everything."""

    async def __aenter__(self: T) -> T:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start_in_thread(self: T) -> T:
        """Runs in a loop of its own, in a daemon thread; returns itself when it listens."""
        ready = threading.Event()
        failure: list[BaseException] = []
        finish = asyncio.Event()

        async def main() -> None:
            try:
                await self.start()
            except StreamSplitError as error:
                failure.append(error)
                return
            finally:
                ready.set()
            await finish.wait()
            await self.stop()

        self._finish = finish
        self._thread = threading.Thread(target=lambda: run_finely(main()), name="shaped-link", daemon=True)
        self._thread.start()
        ready.wait()
        if failure:
            raise failure[0]
        return self

    @property
    def cpu_s(self) -> float:
        """Processor time of its thread, for measurements that leave it aside; 0 where the system does not tell."""
        clock_of = getattr(time, "pthread_getcpuclockid", None)
        if clock_of is None or self._thread is None or self._thread.ident is None:
            return 0.0
        return time.clock_gettime(clock_of(self._thread.ident))

    def stop_thread(self) -> None:
        """Ends a proxy started with `start_in_thread`; harmless when it is not running."""
        if self._thread is None:
            return
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                loop.call_soon_threadsafe(self._finish.set)
        self._thread.join()
        self._thread = None
