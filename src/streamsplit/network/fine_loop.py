"""An event loop with timers right to a tenth of a millisecond: Linux's usual one rounds waits up to a whole one."""

from __future__ import annotations

import asyncio
import select
import selectors
from typing import Any

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


def fine_loop() -> asyncio.AbstractEventLoop:
    """A new selector loop; close it after use."""
    return asyncio.SelectorEventLoop(_FineSelector())
