"""Questions are sound, too: windows of them go through the server's encoder, which names them and learns from them."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.windows import cut_windows
from streamsplit.server.compute import ComputeWorker
from streamsplit.server.dialogue.exchange import Dialogues
from streamsplit.server.dialogue.question import Named
from streamsplit.server.dialogue.responders import make_responder
from streamsplit.server.settings import ServerSettings, SignalSettings

Floats = NDArray[np.float32]


class Hearing:
    """What the encoder makes of a question."""

    def __init__(self, compute: ComputeWorker, audio: SignalSettings) -> None:
        self._compute, self._audio = compute, audio

    async def __call__(self, device: str, sound: Floats, learn: bool) -> Named:
        """Embeds and names sound [n], and learns from it; neither features nor encoder run in the event loop."""
        at_ms = int(1000 * time.time())
        length, stride = self._audio.window_frames, self._audio.stride_frames
        windows = await asyncio.to_thread(cut_windows, sound, length_frames=length, stride_frames=stride)
        if not windows:
            return Named("", 0.0, 0)
        hear = partial(
            self._compute.hear, f"{device}/dialogue", [window.features for window in windows], at_ms, learn=learn
        )
        _, (label, confidence) = await asyncio.wrap_future(self._compute.call(hear))
        return Named(label, confidence, len(windows))


def make_dialogues(settings: ServerSettings, compute: ComputeWorker) -> Dialogues:
    """The dialogues that the settings ask for; raises ConfigError."""
    return Dialogues(settings.dialogue, make_responder(settings.dialogue), Hearing(compute, settings.audio))
