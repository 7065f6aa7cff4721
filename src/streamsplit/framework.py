"""`StreamSplitFramework`: a device and its server in one process, behind the research code's interface."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.audio.windows import Window, WindowStream
from streamsplit.errors import CheckpointError, StreamSplitError
from streamsplit.facade.checkpoint import read_checkpoint, write_checkpoint
from streamsplit.facade.config import StreamSplitConfig, StreamSplitMode
from streamsplit.facade.edge import EdgeModule
from streamsplit.facade.server import ServerModule
from streamsplit.facade.splitting import DynamicSplittingAgent
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.wire.media import Encoding

__all__ = ["StreamSplitConfig", "StreamSplitFramework", "StreamSplitMode"]

log = logging.getLogger(__name__)


class StreamSplitFramework:
    """Sound in, embeddings out; device and server learn on the way.

    What would cross the network crosses as the same bytes, from `EdgeModule` to `ServerModule`. While running, the
    server learns in the background and hands its revisions to the device. Sound handed in by consecutive calls is
    continuous, and a call gives one result for all windows that it completed.
    """

    def __init__(self, config: StreamSplitConfig | None = None) -> None:
        self.config = config or StreamSplitConfig()
        self.mode: StreamSplitMode | None = None
        self.edge = EdgeModule(self.config, warm_start=False)
        self.server = ServerModule(self.config)
        self.agent = DynamicSplittingAgent(self.config)
        self._stream = self._new_stream()
        self._learner_task: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._busy = asyncio.Lock()
        self._steps_since_publish = 0
        self._last = _nothing_yet()

    async def start(self, mode: StreamSplitMode = StreamSplitMode.DYNAMIC_SPLIT) -> None:
        """Starts in `mode`; raises StreamSplitError when it runs already. Alone, a device starts its own readout."""
        if self.mode is not None:
            raise StreamSplitError(f"the framework runs already, in mode {self.mode.value}; stop it first")
        alone = mode is StreamSplitMode.EDGE_ONLY
        if alone != self.edge.warm_start and self.edge.next_window == 0:
            self.edge = EdgeModule(self.config, warm_start=alone)
        await self.agent.start()
        self._arrived = asyncio.Event()
        self._busy = asyncio.Lock()
        self.mode = mode
        if not alone:
            self._learner_task = asyncio.create_task(self._learn_on_server())

    async def stop(self) -> None:
        """Ends the run after the step under way; harmless when it does not run. What was learned stays."""
        task, self._learner_task = self._learner_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.agent.stop()
        self.mode = None
        self._stream = self._new_stream()

    async def process_audio_stream(self, audio: np.ndarray) -> dict[str, Any]:
        """Takes the stream's next samples [n], mono float32 at 16 kHz; one second completes at least one window.

        Gives mode, windows (how many were completed), embeddings [windows, d], and of the last window so far: embedding
        [d], split_point, encoding, confidence, reasoning, uncertainty, loss, latency (ms from sound to embedding);
        bytes_sent counts all windows of the call, media headers included. Raises AudioError for samples that cannot be,
        StreamSplitError when it was not started.
        """
        if self.mode is None:
            raise StreamSplitError("the framework does not run; await start() first")
        async with self._busy:
            outcomes = [await asyncio.to_thread(self._window, window, self.mode) for window in self._stream.push(audio)]
        if outcomes:
            self._last = outcomes[-1]
            self._arrived.set()
        embeddings = [outcome["embedding"] for outcome in outcomes]
        return {
            **self._last,
            "mode": self.mode.value,
            "windows": len(outcomes),
            "embeddings": np.stack(embeddings) if embeddings else np.zeros((0, self.config.embedding_dim), np.float32),
            "bytes_sent": sum(outcome["bytes_sent"] for outcome in outcomes),
        }

    def save_checkpoint(self, filepath: str | Path) -> None:
        """Writes device and server (safetensors with JSON, atomic); raises CheckpointError, what was there stays."""
        arrays = {
            "edge": np.frombuffer(self.edge.learner.snapshot(), np.uint8),
            "server": np.frombuffer(self.server.refiner.snapshot(), np.uint8),
        }
        record = {
            "config": self.config.as_dict(), "warm_start": self.edge.warm_start, "revision": self.edge.revision,
            "next_window": self.edge.next_window,
        }  # fmt: skip
        write_checkpoint(Path(filepath), "framework", arrays, record)

    def load_checkpoint(self, filepath: str | Path) -> None:
        """Goes on from a checkpoint of a framework with the same config; raises CheckpointError, changing nothing."""
        if self.mode is not None:
            raise StreamSplitError("the framework runs; stop it before loading a checkpoint")
        path = Path(filepath)
        arrays, record = read_checkpoint(path, "framework")
        saved = StreamSplitConfig.from_mapping({**record["config"], "device": self.config.device})
        if saved != self.config:
            differing = [name for name, value in saved.as_dict().items() if value != getattr(self.config, name)]
            raise CheckpointError(f"{path}: was made with another config ({', '.join(differing)})")
        edge = EdgeModule(self.config, warm_start=bool(record["warm_start"]))
        server = ServerModule(self.config)
        edge.learner.restore(arrays["edge"].tobytes())
        server.refiner.restore(arrays["server"].tobytes())
        edge.revision, edge.next_window = str(record["revision"]), int(record["next_window"])
        self.edge, self.server = edge, server
        self._stream = self._new_stream()

    def _new_stream(self) -> WindowStream:
        return WindowStream(length_frames=self.config.window_frames, stride_frames=self.config.stride_frames)

    def _window(self, window: Window, mode: StreamSplitMode) -> dict[str, Any]:
        """One window from features to embedding, then what the device learns from it; in a worker thread."""
        started = time.perf_counter()
        decision = self._decide(mode)
        output = self.edge.cross(window, decision.cut)
        index, uncertainty = output["window"], output["uncertainty"]
        if "payload" in output:
            answer = self.server.complete(output, decision.cut.block)
            z, uncertainty = answer["embedding"].numpy(), answer["uncertainty"]
            if output["embedding"] is None:
                self.edge.result(z, index)
        else:
            z = output["embedding"].numpy()
        latency_ms = (time.perf_counter() - started) * 1000.0
        loss = math.nan if mode is StreamSplitMode.SERVER_ONLY else self.edge.learn()
        return {
            "embedding": z, "split_point": decision.cut.block, "encoding": decision.cut.encoding.label,
            "confidence": decision.confidence, "reasoning": decision.reason, "uncertainty": uncertainty, "loss": loss,
            "latency": latency_ms, "bytes_sent": len(output.get("payload", b"")), "revision": self.edge.revision,
        }  # fmt: skip

    def _decide(self, mode: StreamSplitMode) -> Decision:
        if mode is StreamSplitMode.EDGE_ONLY:
            return Decision(Cut(self.edge.num_blocks, Encoding.NONE), 1.0, "edge only: nothing crosses")
        if mode is StreamSplitMode.SERVER_ONLY:
            return Decision(Cut(0, Encoding.PCM16), 1.0, "server only: the sound itself crosses")
        return self.agent.decide(self.agent.observation(self._last["uncertainty"]))

    async def _learn_on_server(self) -> None:
        """One server step for each call that brought windows, and a revision after every `publish_steps`."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            try:
                await self._server_step()
            except StreamSplitError as error:
                log.warning("the server's step failed: %s", error)

    async def _server_step(self) -> None:
        report = await asyncio.to_thread(self.server.refine)
        self._steps_since_publish += report is not None and not report.skipped
        if self.server.refiner.breaks_space or self._steps_since_publish >= self.config.publish_steps:
            self._steps_since_publish = 0
            async with self._busy:  # no window is under way while the device changes its weights
                published = await asyncio.to_thread(self.server.publish)
                if published.revision != self.edge.revision:
                    await asyncio.to_thread(self.edge.adopt, published)


def _nothing_yet() -> dict[str, Any]:
    """The result before the first window."""
    return {
        "embedding": None, "split_point": 0, "encoding": Encoding.NONE.label, "confidence": 0.0,
        "reasoning": "no window is complete yet", "uncertainty": math.nan, "loss": math.nan, "latency": 0.0,
        "revision": "",
    }  # fmt: skip
