"""An event loop with timers right to a tenth of a millisecond: Linux's usual one rounds waits up to a whole one."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_SELECT_LIMIT = 1024  # highest file number, less one, that select() takes

if hasattr(selectors, "EpollSelector"):

    class _FineSelector(selectors.EpollSelector):
        """Waits for epoll's own descriptor by select(), which counts microseconds, where epoll counts milliseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0 and self.fileno() < _SELECT_LIMIT:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

else:  # kqueue and select() count finely themselves
    _FineSelector: Any = selectors.DefaultSelector  # type: ignore[no-redef]


def run_finely(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on such a loop."""
    loop = asyncio.SelectorEventLoop(_FineSelector())
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
