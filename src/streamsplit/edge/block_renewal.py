"""How a device with streamed blocks goes over to the server's newest revision: by its manifest, between two windows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from streamsplit.edge.streamed_model import FetchedRevision, StreamedBlocksModel
from streamsplit.errors import ClosedError, StreamSplitError

log = logging.getLogger(__name__)


class BlockRenewal:
    """Fetches a manifest in a thread, one at a time; the worker adopts it, and the event loop hears of it."""

    def __init__(
        self,
        model: StreamedBlocksModel,
        *,
        hand_over: Callable[[Callable[[], Any]], None],
        adopted: Callable[[str, bool], None],
        problem: Callable[[str], None],
    ) -> None:
        """`adopted(revision, breaks_space)` is called in the worker thread, right after the change."""
        self._model = model
        self._hand_over, self._adopted, self._problem = hand_over, adopted, problem
        self._loop = asyncio.get_running_loop()
        self._under_way: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The server has announced a revision; does nothing while one is being fetched."""
        if self._under_way is None or self._under_way.done():
            self._under_way = self._loop.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            fetched = await asyncio.to_thread(self._model.fetch_revision)
        except (StreamSplitError, OSError) as error:
            if not self._model.closed:
                self._problem(f"the server's encoder cannot be fetched ({error})")
            return
        if self._model.closed or fetched.revision == self._model.revision:
            await asyncio.to_thread(fetched.close)
            return
        self._hand_over(partial(self._adopt, fetched))

    def _adopt(self, fetched: FetchedRevision) -> None:
        """In the worker thread."""
        try:
            old, breaks_space = self._model.adopt_revision(fetched)
        except ClosedError:  # the run is over
            return
        self._adopted(fetched.revision, breaks_space)
        if old is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
                self._loop.call_soon_threadsafe(self._loop.run_in_executor, None, old.close)
