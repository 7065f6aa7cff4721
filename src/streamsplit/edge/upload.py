"""When a device ships what it learned: enough of it, not too often, over a good link and with a charged battery."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from streamsplit.edge.client import EdgeClient
from streamsplit.edge.counters import EdgeStatus
from streamsplit.edge.downlink import Downlink
from streamsplit.edge.model import EncoderModel
from streamsplit.edge.settings import SyncSettings


class LearningUpload:
    """Offers the local difference to the server. Runs in the event loop; the worker thread packs."""

    def __init__(
        self,
        settings: SyncSettings,
        model: EncoderModel,
        client: EdgeClient,
        downlink: Downlink,
        *,
        status: Callable[[], EdgeStatus],
        battery: Callable[[], float],
        hand_over: Callable[[Callable[[], Any]], None],
        note: Callable[..., None],
        since_s: float,
    ) -> None:
        """`since_s` (monotonic) is when the first interval begins."""
        self._settings = settings
        self._model = model
        self._client = client
        self._downlink = downlink
        self._status, self._battery = status, battery
        self._hand_over, self._note = hand_over, note
        self._offered_steps = 0
        self._offered_s = since_s

    def offer_if_due(self) -> None:
        """Ships the local difference up when there is enough of it and the link and the battery are good."""
        settings, downlink = self._settings, self._downlink
        status = self._status()
        fresh = status.learner_steps - self._offered_steps
        good = status.bandwidth_bps >= settings.upload_min_bps  # False for nan
        charged = self._battery() >= settings.upload_min_battery
        due = time.monotonic() - self._offered_s >= settings.upload_interval_s
        busy = downlink.upload.under_way or downlink.download.under_way
        if fresh < settings.upload_min_steps or not (good and charged and due) or busy:
            return
        self._offered_steps, self._offered_s = status.learner_steps, time.monotonic()
        self._hand_over(partial(self._pack, asyncio.get_running_loop(), fresh))

    def _pack(self, loop: asyncio.AbstractEventLoop, steps: int) -> None:
        packed = self._model.local_learning()
        if packed is None:
            return
        delta, revision, base, samples = packed
        self._note("upload", bytes=len(delta.payload), steps=steps, base=base)

        def announce() -> None:
            if base == self._downlink.download.have:
                self._client.send(self._downlink.upload.offer(delta, revision, base, samples))

        loop.call_soon_threadsafe(announce)
