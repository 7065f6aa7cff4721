"""The device runtime: listens, learns, decides, queues and sends, until the source ends or somebody stops it.

Threads: the inlet reads the source, the worker computes (features, encoder, memory, queue), the learner trains when
there is time, the monitor samples the device; the event loop only moves bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import queue as queues
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from streamsplit import __version__
from streamsplit.edge.blocks import Source
from streamsplit.edge.client import EdgeClient
from streamsplit.edge.counters import Counters, EdgeStatus, RunSummary
from streamsplit.edge.decisions import Decisions
from streamsplit.edge.downlink import Downlink
from streamsplit.edge.emulation import Emulator, RealDevice
from streamsplit.edge.gradients import GradientExchange
from streamsplit.edge.inlet import AudioInlet
from streamsplit.edge.journal import Journal
from streamsplit.edge.learning import LearningLoop
from streamsplit.edge.listening import Listener
from streamsplit.edge.model import DeviceModel, EncoderModel, make_model
from streamsplit.edge.monitor import ResourceMonitor
from streamsplit.edge.outages import DeviceChange
from streamsplit.edge.payload import PieceChain
from streamsplit.edge.pipeline import Surroundings, WindowPipeline
from streamsplit.edge.policies import DevicePolicy
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.reconnecting import ReconnectingSource
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.snapshot import load_snapshot, save_snapshot
from streamsplit.edge.status import StatusView
from streamsplit.edge.streamed_model import StreamedBlocksModel
from streamsplit.edge.tables import device_table
from streamsplit.edge.upload import LearningUpload
from streamsplit.edge.voice import STEP_S, Overheard, Voice
from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.splitting.decision_log import DecisionLog
from streamsplit.splitting.link import LinkEstimator
from streamsplit.splitting.table import CutTable
from streamsplit.splitting.transmission import UncertaintyGate

log = logging.getLogger(__name__)
_LINK_S = 0.1
_POLL_S = 0.1


class EdgeRuntime:
    """One device. Make it inside a running event loop's thread or before; `await run()` does everything.

    `speed` is the source's: 1 is real time, 0 as fast as it goes (the source then waits for the device, nothing is
    dropped, and learning happens every `training.learn_every_windows` windows instead of by the clock).
    """

    def __init__(
        self,
        settings: EdgeSettings,
        source: Source,
        *,
        speed: float = 1.0,
        model: DeviceModel | None = None,
        table: CutTable | None = None,
        device: Emulator | RealDevice | None = None,
        journal: Journal | None = None,
        strict_policy: bool = False,
        voice: Voice | None = None,
    ) -> None:
        """With a `voice` the device speaks with the server, too, through the same microphone and connection; its
        source has blocks of a frame of speech then. Raises ConfigError for a voice without a server or out of real
        time, CutError for a fixed cut or constraints that the table cannot satisfy; with `strict_policy` also for a
        policy file that cannot be used, in place of which the heuristic decides otherwise."""
        self.settings = settings
        self.voice = voice
        self.paced = speed > 0 or source.info.live
        self.outages = [source.outages] if isinstance(source, ReconnectingSource) else []
        if voice is not None:
            if speed != 1.0 or not settings.splitting.enabled:
                raise ConfigError(f"a dialogue needs a server and real time: got speed {speed:g}, expected 1")
            source = Overheard(source, voice)
            self.outages = voice.outages
        for outages in self.outages:
            outages.watch(self._device_changed)
        self.source = source
        self.counters = Counters()
        self._stop = threading.Event()
        self._done = threading.Event()
        self._started_s = time.monotonic()
        self._journal = journal
        self._gate_path = settings.device.folder / "gate.json"
        self._journal_lock = threading.Lock()
        self.device = device or make_device(settings, fast_forward=not self.paced)
        self.model = model or make_model(settings)
        self.table = table or device_table(settings)
        audio = settings.audio
        possible = self.table.supported(self.model.bottlenecks if self.model.name else None)
        self.policies = DevicePolicy(settings, possible, self.problem, strict=strict_policy)
        self.queue = OfflineQueue(settings.queue_path, settings.queue)
        self.gradients = GradientExchange(settings.training, self.model, self.counters, self.problem)
        decisions = DecisionLog(
            self.device.device, settings.splitting.agent.objective, settings.constraints, interval_ms=audio.stride_ms,
            whole_factor=audio.window_frames / audio.stride_frames,
        )  # fmt: skip
        self.pipeline = WindowPipeline(
            self.model, self.table, self.policies.policy, UncertaintyGate(settings.splitting.gate), self.device,
            PieceChain(audio.window_frames, audio.stride_frames), log=decisions, constraints=settings.constraints,
            asks=self.gradients.asks, codec=settings.codec.encoder,
        )  # fmt: skip
        self.decisions = Decisions(
            decisions, self.counters, policy=lambda: self.pipeline.policy, link=lambda: self._link_estimate,
            note=self.note,
        )  # fmt: skip
        self.monitor = ResourceMonitor(self.device, settings.monitor)
        self.inlet = AudioInlet(source, paced=self.paced, buffer_s=settings.audio.buffer_s)
        if isinstance(self.model, StreamedBlocksModel):
            self.model.problem = self.problem
            self.model.behind = self._behind
        self.learning = LearningLoop(
            settings, self.model, self.device, self.counters, self.note, self.problem, paced=self.paced,
            behind=self._behind, gradients=self.gradients,
        )  # fmt: skip
        self.link = LinkEstimator(settings.splitting.link)
        self._link_estimate = self.link.estimate(_now_ms())
        self._inbox: queues.SimpleQueue[Callable[[], Any]] = queues.SimpleQueue()
        self.client: EdgeClient | None = None
        self._downlink: Downlink | None = None
        self._upload: LearningUpload | None = None
        self._view = StatusView(
            settings.device.id, self.model, self.queue, self.inlet, self.monitor, self.policies, self.counters,
            client=lambda: self.client, link=lambda: self._link_estimate, ended=self._done.is_set,
            elapsed_s=lambda: time.monotonic() - self._started_s, outages=self.outages, stride_ms=audio.stride_ms,
        )  # fmt: skip
        self.listener = Listener(
            settings, self.inlet, self.pipeline, self.queue, self.counters, self.learning, self.decisions,
            paced=self.paced, surroundings=self._surroundings, state=lambda: self.monitor.state, wake=self._wake,
            probe=self._probe, note=self.note, problem=self.problem, stopped=self._stop.is_set,
        )  # fmt: skip

    # -- for the owner -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends the run in good order; safe from any thread and from a signal handler."""
        self._stop.set()
        self.inlet.close()

    async def run(self, duration_s: float | None = None) -> RunSummary:
        """Runs until the source ends, `duration_s` is over or `stop` is called; then drains for at most `drain_s`.

        Raises ConnectionRefused when the server turns the device away for good, and AudioError when the source fails;
        windows that were accepted stay in the queue either way.
        """
        self._started_s = time.monotonic()
        tasks: dict[str, asyncio.Task[Any]] = {}
        pool = ThreadPoolExecutor(3, thread_name_prefix="edge")
        failure: BaseException | None = None
        try:
            self.learning.restore()
            self._restore_gate()
            if self.settings.splitting.enabled:
                self._connect()
                assert self.client is not None
                tasks["client"] = asyncio.create_task(self.client.run())
            if self.voice is not None:
                self.voice.start()
                tasks["voice"] = asyncio.create_task(self._speak(self.voice))
            self.monitor.start()
            self.inlet.start()
            loop = asyncio.get_running_loop()
            worker = loop.run_in_executor(pool, self._work)
            learner = loop.run_in_executor(pool, self.learning.run, self._stop) if self.paced else None
            tasks["stats"] = asyncio.create_task(self._report())
            tasks["link"] = asyncio.create_task(self._watch_link())
            failure = await self._until_heard(worker, tasks, duration_s)
            self.inlet.close()
            self._stop.set()
            await self._drain(tasks.get("client"))
            self._done.set()
            await worker
            if learner is not None:
                await learner
            await asyncio.wait_for(self._goodbye(tasks.get("client")), 5.0)
        finally:
            self._stop.set()
            self._done.set()
            self.inlet.close()
            for task in tasks.values():
                task.cancel()
            results = await asyncio.gather(*tasks.values(), return_exceptions=True)
            self.monitor.stop()
            await asyncio.to_thread(pool.shutdown, True)
            await asyncio.to_thread(self.inlet.join, 2.0)
            if self.voice is not None:
                await self.voice.close()
            self.learning.save()
            self._save_gate()
            await asyncio.to_thread(self.model.close)
            summary = self._view.summary()
            self.queue.close()
            if self._journal is not None:
                self._journal.close()
        failure = failure or next(
            (r for r in results if isinstance(r, Exception) and not isinstance(r, asyncio.CancelledError)), None
        )
        failure = failure or self.inlet.error
        if failure is not None:
            raise failure
        return summary

    def status(self) -> EdgeStatus:
        """One look at the device; safe from any thread."""
        return self._view.status()

    def note(self, kind: str, **values: Any) -> None:
        """Writes a row into the journal, where there is one; safe from any thread."""
        if self._journal is not None:
            with self._journal_lock:
                self._journal.write(kind, (time.monotonic() - self._started_s) * 1000, **values)

    def problem(self, text: str) -> None:
        """Says what went wrong without stopping the device; repeated ones are said once."""
        with self.counters.lock:
            repeated = self.counters.last_problem == text
            self.counters.last_problem = text
        if not repeated:
            log.warning("%s: %s", self.settings.device.id, text)
            self.note("problem", text=text)

    def _device_changed(self, change: DeviceChange) -> None:
        """A microphone or loudspeaker went away or is back: said by the voice where there is one."""
        text = f"{change.device}: {change.reason or f'back after {change.gone_s:.1f} s'}"
        with self.counters.lock:
            if change.reason or self.counters.last_problem.startswith(f"{change.device}:"):
                self.counters.last_problem = text if change.reason else ""
        if self.voice is None:
            log.warning("%s: %s", self.settings.device.id, text)
        self.note("device", device=change.device, gone=bool(change.reason), reason=change.reason, gone_s=change.gone_s)

    def _restore_gate(self) -> None:
        try:
            data = load_snapshot(self._gate_path)
            if data is not None:
                self.pipeline.gate.load_state(json.loads(data))
        except (CheckpointError, ValueError) as error:
            self.problem(f"the gate warms up anew: {error}")

    def _save_gate(self) -> None:
        try:
            save_snapshot(self._gate_path, json.dumps(self.pipeline.gate.state()).encode())
        except CheckpointError as error:
            self.problem(str(error))

    # -- event loop ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._downlink = Downlink(
            self.settings, self.queue, self.model, self.pipeline, self.policies, self.decisions, self.counters,
            hand_over=self._inbox.put, note=self.note, problem=self.problem, software=f"streamsplit {__version__}",
            bandwidth_bps=lambda: self._link_estimate.bandwidth_bps, gradients=self.gradients,
            voice=self.voice,
        )  # fmt: skip
        self.client = EdgeClient(
            self.settings.server, self.queue, self._downlink, self.link,
            gradients=(lambda: self.gradients.granted) if self.gradients.offers else None,
            dialogue=self.voice is not None,
        )  # fmt: skip
        self._downlink.client = self.client
        if self.voice is not None:
            self.voice.client = self.client
        if self.settings.sync.upload_local and isinstance(self.model, EncoderModel):
            self._upload = LearningUpload(
                self.settings.sync, self.model, self.client, self._downlink, status=self.status,
                battery=lambda: self.monitor.state.readings.battery, hand_over=self._inbox.put, note=self.note,
                since_s=self._started_s,
            )  # fmt: skip

    async def _until_heard(
        self, worker: asyncio.Future[None], tasks: dict[str, asyncio.Task[Any]], duration_s: float | None
    ) -> BaseException | None:
        """Waits for the end of listening; returns the error that ended it, if one did."""
        deadline = math.inf if duration_s is None else time.monotonic() + duration_s
        while not (self._stop.is_set() or self.listener.finished or time.monotonic() >= deadline):
            done, _ = await asyncio.wait(
                [worker, *tasks.values()], timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED
            )
            for ended in done:
                error: BaseException | None = ended.exception()
                if error is not None:
                    return error
        return None

    async def _drain(self, client: asyncio.Task[Any] | None) -> None:
        """Lets the worker finish, then waits for what is under way; a link that is down is not waited for."""
        deadline = time.monotonic() + self.settings.server.drain_s
        while not self.listener.finished and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        while client is not None and not client.done() and time.monotonic() < deadline:
            idle = not self.queue.pending and not self.queue.results_from and self._inbox.empty()
            idle = idle and (self.voice is None or self.voice.quiet)
            if idle or (self.client is not None and not self.client.is_open and self._gave_up_connecting(deadline)):
                return
            await asyncio.sleep(0.02)

    def _gave_up_connecting(self, deadline: float) -> bool:
        """Half of the drain time is for reconnecting."""
        return time.monotonic() > deadline - self.settings.server.drain_s / 2

    async def _goodbye(self, client: asyncio.Task[Any] | None) -> None:
        if client is None or self.client is None:
            return
        if client.done():
            client.result()
            return
        if self.client.is_open:
            self.client.send(self._view.stats())
            await self.client.finish("done")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(client), 2.0)

    async def _report(self) -> None:
        """Every `report_s`: STATS; new weights and what was learned, when the link is good."""
        while True:
            await asyncio.sleep(self.settings.monitor.report_s)
            if self.client is not None and self._downlink is not None and self.client.is_open:
                self.client.send(self._view.stats())
                self._downlink.fetch_announced()
                if self._upload is not None:
                    self._upload.offer_if_due()

    async def _watch_link(self) -> None:
        while True:
            self._link_estimate = self.link.estimate(_now_ms())
            await asyncio.sleep(_LINK_S)

    async def _speak(self, voice: Voice) -> None:
        while True:
            await voice.step(self._link_estimate)
            if self.listener.finished or self._stop.is_set():
                voice.talker.release(_now_ms())
            await asyncio.sleep(STEP_S)

    # -- worker thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """The worker: audio while there is some, and what the event loop hands over, until everything is done."""
        self.pipeline.start_at(self.queue.next_window)
        while not (self._done.is_set() and self._inbox.empty()):
            while not self._inbox.empty():
                self._inbox.get()()
            if self.listener.finished:
                self._done.wait(0.02)
            else:
                self.listener.step(timeout_s=0.05)

    def _behind(self) -> bool:
        """Whether sound waits for the worker: it comes before everything else; without real time the source waits."""
        return self.paced and self.inlet.waiting_ms > 2 * self.settings.audio.block_ms

    def _surroundings(self) -> Surroundings:
        up = self.client is not None and self.client.is_open
        return Surroundings(self.monitor.state.readings, self._link_estimate, up, self.queue.pending_bytes)

    def _probe(self) -> None:
        if self.client is not None:
            self.client.probe()

    def _wake(self) -> None:
        if self.client is not None:
            self.client.wake()


def make_device(settings: EdgeSettings, *, fast_forward: bool) -> Emulator | RealDevice:
    """The device that `settings` describe: this machine as it is, or as slow as the one named."""
    profile = settings.device.profile
    if settings.emulation.enabled:
        return Emulator(profile, settings.emulation, fast_forward=fast_forward)
    return RealDevice(profile)


def _now_ms() -> float:
    return time.monotonic() * 1000
