"""What the server says and what the device does about it: results, statistics, weights, policy, errors.

Runs in the event loop; whatever touches the model is handed to the worker thread through `hand_over`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from streamsplit.edge.block_renewal import BlockRenewal
from streamsplit.edge.counters import Counters
from streamsplit.edge.decisions import Arrival, Decisions
from streamsplit.edge.gradients import GradientExchange
from streamsplit.edge.model import DeviceModel, EncoderModel
from streamsplit.edge.pipeline import WindowPipeline
from streamsplit.edge.policies import DevicePolicy
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.streamed_model import StreamedBlocksModel
from streamsplit.edge.sync import Arrived, WeightDownload, WeightUpload
from streamsplit.edge.voice import Voice
from streamsplit.errors import ProtocolError, RevisionError, StoreError, StreamSplitError
from streamsplit.wire.events import Acked
from streamsplit.wire.frame import Frame
from streamsplit.wire.gradient import OFFER
from streamsplit.wire.messages import (
    Error,
    Gmm,
    Hello,
    Message,
    Policy,
    PolicyPush,
    Prototypes,
    Result,
    Revision,
    Throttle,
    WeightsRequest,
    Welcome,
)
from streamsplit.wire.types import PROTOCOL_VERSION, FrameType

log = logging.getLogger(__name__)


class Sender(Protocol):
    """The client, as far as answers go."""

    def send(self, message: Message) -> bool: ...
    def offer_gradients(self) -> bool: ...


class Downlink:
    """The client's owner: greets for the device and acts on everything that comes down."""

    def __init__(
        self,
        settings: EdgeSettings,
        queue: OfflineQueue,
        model: DeviceModel,
        pipeline: WindowPipeline,
        policies: DevicePolicy,
        decisions: Decisions,
        counters: Counters,
        *,
        hand_over: Callable[[Callable[[], Any]], None],
        note: Callable[..., None],
        problem: Callable[[str], None],
        software: str,
        bandwidth_bps: Callable[[], float] = lambda: math.nan,
        gradients: GradientExchange | None = None,
        voice: Voice | None = None,
    ) -> None:
        self._voice = voice
        self._gradients = gradients if gradients is not None and gradients.offers else None
        self.download = WeightDownload(model.revision)
        self.upload = WeightUpload()
        self.client: Sender | None = None
        self._settings = settings
        self._queue = queue
        self._model = model
        self._pipeline = pipeline
        self._policies = policies
        self._decisions = decisions
        self._ordered = False  # the server has ordered a policy and not given it back
        self._counters = counters
        self._hand_over = hand_over
        self._note = note
        self.problem = problem
        self._software = software
        codec = settings.codec.encoder
        self._codec = "" if codec is None else codec.model_id.hex()
        self._bandwidth_bps = bandwidth_bps  # estimate of the uplink, nan while there is none
        self._announced: Revision | None = None  # and not asked for yet
        self._loop = asyncio.get_running_loop()
        self._renewal: BlockRenewal | None = None
        if isinstance(model, StreamedBlocksModel):
            self._renewal = BlockRenewal(model, hand_over=hand_over, adopted=self._renewed, problem=problem)

    # -- for the client ------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """The greeting."""
        settings, queue = self._settings, self._queue
        return Hello(
            protocol=PROTOCOL_VERSION, device_id=settings.device.id, token=settings.server.secret, epoch=queue.epoch,
            oldest_sequence=queue.oldest_sequence, next_sequence=queue.next_sequence, results_from=queue.results_from,
            encoder=self._model.name, revision=self._model.revision, sample_rate_hz=settings.audio.sample_rate,
            mel_bands=settings.audio.n_mels, window_frames=settings.audio.window_frames,
            stride_frames=settings.audio.stride_frames, device_class=settings.device.type, software=self._software,
            want_embedding=settings.server.want_embedding,
            want_prototypes=bool(self._model.name) and settings.training.uncertainty == "v1",
            codec=self._codec, want_policy=self._policies.wants, policy_version=self._policies.version,
        )  # fmt: skip

    async def opened(self, welcome: Welcome) -> None:
        """Connected: transfers go on where they stopped."""
        self._note("link", up=True, resumed=welcome.resumed, session=welcome.session_id)
        log.info("%s: connected (%s)", self._settings.device.id, "resumed" if welcome.resumed else "new session")
        self._send(self.download.resume())
        self._send(self.upload.reconnected())
        if self._gradients is not None and self.client is not None:
            self.client.offer_gradients()
        if self._voice is not None:
            self._voice.opened()

    def closed(self, reason: str) -> None:
        """The connection is gone."""
        if self._gradients is not None:
            self._gradients.grant(False)
        if self._voice is not None:
            self._voice.closed(reason)
        self._note("link", up=False, reason=reason)

    async def acked(self, event: Acked) -> None:
        """The server holds windows durably; the client has forgotten them already."""

    def next_chunk(self) -> tuple[bytes, bool] | None:
        """For the client: the next piece of an upload."""
        return self.upload.next_chunk(_now_ms())

    async def message(self, message: Message) -> None:
        """A control message or RESULT."""
        if isinstance(message, Result):
            await self._on_result(message)
        elif isinstance(message, Gmm):
            self._hand_over(partial(self._guarded, "statistics", partial(self._model.adopt_mixture, message)))
            self._note("gmm", version=message.version, bytes=len(message.data))
        elif isinstance(message, Prototypes):
            self._hand_over(partial(self._guarded, "prototypes", partial(self._adopt_prototypes, message)))
        elif isinstance(message, Revision):
            self._announced = message
            self.fetch_announced()
        elif isinstance(message, WeightsRequest):
            if not self.upload.requested(message, _now_ms()):
                self._send(Error(code="bad_transfer", detail=f"revision {message.revision[:12]} is not offered"))
            elif self.upload.confirmed == message.revision and isinstance(self._model, EncoderModel):
                self._hand_over(partial(self._model.learning_taken, message.revision))
        elif isinstance(message, Policy):
            self._hand_over(partial(self._guarded, "policy", partial(self._on_policy, message)))
        elif isinstance(message, PolicyPush):
            self._hand_over(partial(self._on_push, message))
        elif isinstance(message, Throttle):
            self._note("throttle", in_flight=message.max_in_flight, interval_ms=message.min_interval_ms)
        elif isinstance(message, Error):
            await self._on_error(message)

    async def media(self, frame: Frame) -> None:
        """A WEIGHTS chunk, an answer, or GRAD_BACK: the server's answer to our offer (empty), or a gradient."""
        if self._voice is not None:
            self._voice.take(frame)
        if frame.type is FrameType.GRAD_BACK and self._gradients is not None:
            if frame.payload == OFFER:
                self._gradients.grant(True)
            else:
                self._gradients.arrived(frame.payload)
        if frame.type is not FrameType.WEIGHTS:
            return
        try:
            arrived = self.download.chunk(frame.payload)
        except RevisionError as error:
            log.warning("weights: %s", error)
            self._send(self.download.resume())
            return
        self._send(self.download.confirmation())
        if arrived is not None:
            self._hand_over(partial(self._adopt, arrived))

    def fetch_announced(self) -> None:
        """Asks for the weights announced last; on a poor link only for those of a new embedding space."""
        message, sync = self._announced, self._settings.sync
        if message is None or not (sync.download and self._model.name):
            return
        if message.revision == self._model.revision:
            self._announced = None
            return
        first = not self._model.revision
        if not (message.breaks_space or first) and self._bandwidth_bps() < sync.download_min_bps:  # False for nan
            return
        if self._renewal is not None:  # asked for again with every report until it is here
            self._renewal.start()
            return
        self._announced = None
        self._send(self.download.announced(message))

    # -- inside --------------------------------------------------------------------------------------------------

    def _send(self, message: Message | None) -> None:
        if message is not None and self.client is not None:
            self.client.send(message)

    async def _on_result(self, result: Result) -> None:
        at_s = time.monotonic()
        if not await self._take(result.sequence):
            return
        latency_ms = (int(time.time() * 1000) - result.capture_ms) & 0xFFFF_FFFF
        latency_ms = latency_ms if latency_ms < 1 << 31 else 0  # the clock was set back
        counters = self._counters
        with counters.lock:
            counters.results += 1
            counters.average("latency_ms", float(latency_ms))
        self._note(
            "result", sequence=result.sequence, window=result.window, latency_ms=latency_ms, server_ms=result.server_ms,
            queue_ms=result.queue_ms, uncertainty=result.uncertainty, cluster=result.cluster, label=result.label,
            confidence=result.confidence,
        )  # fmt: skip
        arrival = Arrival(result, float(latency_ms), at_s)
        self._hand_over(partial(self._guarded, "result", partial(self._decisions.answered, self._queue.epoch, arrival)))
        if result.embedding:
            self._hand_over(partial(self._guarded, "result", partial(self._remember, result)))

    async def _on_error(self, error: Error) -> None:
        if self._voice is not None and self._voice.refused(error):
            return
        if error.code == "unsupported" and self._gradients is not None:  # no other optional type goes up from here
            log.info("%s: this server returns no gradients", self._settings.device.id)
            return
        self.problem(f"server: {error.code}: {error.detail}")
        if error.sequence and await self._take(error.sequence):
            with self._counters.lock:
                self._counters.windows_rejected += 1
            self._note("rejected", sequence=error.sequence, code=error.code, detail=error.detail)
            self._hand_over(self._pipeline.chain.break_off)
            self._hand_over(partial(self._decisions.rejected, self._queue.epoch, error.sequence))
        elif error.code == "bad_transfer":
            self.upload.drop()
            if self.download.under_way:
                self.download.failed(self.download.wanted)

    async def _take(self, sequence: int) -> bool:
        """True the first time an answer for a window comes."""
        try:
            return await self._loop.run_in_executor(None, self._queue.take_result, sequence)
        except StoreError as error:
            self.problem(str(error))
            return True  # it may come once more after a restart; better than to lose it

    # -- in the worker thread ------------------------------------------------------------------------------------

    def _guarded(self, what: str, work: Callable[[], Any]) -> None:
        """The server's data may be wrong; that must not end the device."""
        try:
            work()
        except StreamSplitError as error:
            self.problem(f"{what} from the server not used: {error}")

    def _remember(self, result: Result) -> None:
        if not self._pipeline.embedded_here(result.window):
            self._model.result(np.frombuffer(result.embedding, "<f2").astype(np.float32), result.window)

    def _adopt_prototypes(self, message: Prototypes) -> None:
        if self._model.adopt_prototypes(message):
            self._pipeline.gate.restart()
        self._note("prototypes", count=message.count, revision=message.revision, bytes=len(message.data))

    def _on_policy(self, message: Policy) -> None:
        """The server's wish is followed within what the owner allows: `agent.cuts`, and never against a fixed cut."""
        settings = self._settings.policy
        forbidden = bool(settings.cuts) and message.cut not in settings.cuts
        if message.policy != "own" and (settings.name == "fixed" or forbidden):
            self._note("policy", policy=message.policy, cut=message.cut, refused=True)
            return
        if message.policy == "own":
            self._pipeline.policy = self._policies.own()
            self._pipeline.gate.fix_threshold(math.nan)
            self._ordered = False
        elif message.policy or message.cut:
            self._pipeline.policy = self._policies.order(message.policy or "fixed", message.cut)
            self._ordered = True
        if not math.isnan(message.uncertainty_threshold):
            self._pipeline.gate.fix_threshold(message.uncertainty_threshold)
        self._note("policy", policy=message.policy, cut=message.cut, threshold=message.uncertainty_threshold)

    def _on_push(self, message: PolicyPush) -> None:
        """A pushed policy is followed from the next window on, or refused, and the server told why."""
        try:
            self._policies.push(message, ordered=self._ordered)
        except StreamSplitError as error:
            self.problem(f"policy from the server not used: {error}")
            refusal = Error(code="bad_policy", detail=str(error)[:1000])
            self._loop.call_soon_threadsafe(self._send, refusal)
            self._note("policy_file", version=message.version, bytes=len(message.data), refused=True)
            return
        self._pipeline.policy = self._policies.policy
        log.info("%s: follows the pushed policy v%d", self._settings.device.id, message.version)
        self._note("policy_file", version=message.version, bytes=len(message.data))

    def _adopt(self, arrived: Arrived) -> None:
        revision = arrived.announced.revision
        try:
            weights = arrived.finish(self._model.base_weights())
            self._model.adopt(weights, revision, breaks_space=arrived.announced.breaks_space)
            if arrived.announced.breaks_space:
                self._pipeline.gate.restart()
        except (RevisionError, ProtocolError) as error:
            self.problem(f"revision {revision[:12]} not adopted: {error}")
            self._loop.call_soon_threadsafe(self.download.failed, revision)
            return
        self._note(
            "revision", revision=revision, delta=arrived.announced.kind == "delta",
            bytes=arrived.announced.total_bytes, breaks_space=arrived.announced.breaks_space,
        )  # fmt: skip
        self._loop.call_soon_threadsafe(self._adopted, revision)

    def _renewed(self, revision: str, breaks_space: bool) -> None:
        """A device with streamed blocks runs another revision."""
        if breaks_space:
            self._pipeline.gate.restart()
        self._note("revision", revision=revision, delta=False, bytes=0, breaks_space=breaks_space)
        self._loop.call_soon_threadsafe(self._adopted, revision)

    def _adopted(self, revision: str) -> None:
        self.download.adopted(revision)
        self.upload.drop()  # it was made from weights that are no longer the base


def _now_ms() -> float:
    return time.monotonic() * 1000
