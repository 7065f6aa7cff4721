"""A device's model whose encoder is only partly there: the blocks that its budget holds, the others from the server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsplit.edge.disk_cache import DiskCache
from streamsplit.edge.model import FLEET_WEIGHT, Forward
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.weight_client import WeightClient
from streamsplit.edge.weight_link import WeightLinkSettings
from streamsplit.edge.weight_source import RemoteSource
from streamsplit.errors import ClosedError, CutError, LayerUnavailable, ManifestError, RevisionError, StreamSplitError
from streamsplit.learning.context import ContextUncertainty
from streamsplit.learning.memory import make_memory
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.splitting.cut import Cut
from streamsplit.weights.revision import Weights, check_revision
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Gmm, Prototypes

if TYPE_CHECKING:
    from streamsplit.encoders.bottleneck import Bottleneck
    from streamsplit.encoders.crossing import Crossing
    from streamsplit.weights.streaming.held_blocks import HeldBlocks

_WHAT = "the device's streamed encoder"
_ATTEMPTS = 3  # connections in a row that bring nothing, before blocks count as not to be had for `retry_s`


class FetchedRevision(NamedTuple):
    """A revision that the server serves: its manifest has come, none of its blocks."""

    revision: str
    space: int  # number of its embedding space at the server
    blocks: HeldBlocks
    client: WeightClient

    def close(self) -> None:
        """Ends the connection; waits for its thread."""
        self.client.close()


class StreamedBlocksModel:
    """Runs as deep as the blocks in memory go, and never waits for one that is to stay.

    The encoder is the server's, as it is: nothing is learned here but the memory of embeddings. Before the first
    revision has come, windows cross at block 0.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        import torch

        torch.set_num_threads(settings.device.threads)
        self.name = settings.encoder.name
        self.bottlenecks = settings.encoder.bottleneck_blocks
        self.closed = False
        self.problem: Callable[[str], None] = lambda text: None
        self.behind: Callable[[], bool] = lambda: False  # sound waits: no window may wait for a block
        self._settings = settings
        self._blocks_settings = settings.weights
        learner, dim = settings.learner, settings.encoder.embedding_dim
        self._temperature = learner.entropy_temperature
        self._memory = make_memory(learner, dim, settings.training.seed)
        self._context = ContextUncertainty(dim) if learner.uncertainty == "context" else None
        self._current: FetchedRevision | None = None
        self._gate = threading.Lock()  # over `closed` and the clients; nobody waits with it
        self._clients: list[WeightClient] = []
        self._last = float("nan")  # uncertainty of the newest result
        self._lock = threading.RLock()
        self._trouble: Exception | None = None  # that was looked at
        self._again_s = 0.0
        self._arrived = 0
        self._said = self._small = False
        self._received = 0  # bytes of connections that are closed
        self._no_grad = torch.no_grad

    @property
    def revision(self) -> str:
        """Hex revision of the server whose blocks run here; "" before the first."""
        return self._current.revision if self._current is not None else ""

    @property
    def held_blocks(self) -> int:
        """Blocks 1..n in memory."""
        return self._current.blocks.held if self._current is not None else 0

    @property
    def room_blocks(self) -> int:
        """Blocks 1..n that the budget holds at once."""
        return self._current.blocks.room if self._current is not None else 0

    @property
    def received_bytes(self) -> int:
        """On the weight stream's sockets so far."""
        return self._received + (self._current.client.count.down if self._current is not None else 0)

    def ready_for(self, cut: Cut) -> bool:
        """Whether the present revision can do a cut, once its blocks are here."""
        with self._lock:
            if self._current is None:
                return cut.block == 0
            encoder = self._current.blocks.encoder
            if cut.encoding is Encoding.BOTTLENECK_INT8:
                bottleneck = encoder.bottlenecks.get(cut.block)
                return bottleneck is not None and bottleneck.fitted
            return cut.encoding is not Encoding.EXIT_FP16 or encoder.exit_fitted(cut.block)

    def bottleneck(self, k: int) -> Bottleneck:
        """What a map after block k is narrowed by; raises CutError where the encoder has none."""
        return self._blocks("bottlenecks").encoder.bottlenecks[k]

    def reach(self, k: int) -> int:
        """The deepest block up to k that a window can be run to now; asks for what is missing, without waiting.

        Raises ClosedError after `close`, as do all that need weights.
        """
        with self._running():
            if self._current is None or k == 0:
                return 0
            blocks = self._current.blocks
            self._look(blocks)
            if time.monotonic() >= self._again_s:
                blocks.forget_trouble()
            reached = blocks.reach(k)
            self._look(blocks)
            if k > blocks.deepest and not self._small:
                self._small = True
                self.problem(
                    f"weights.cache_bytes: got {self._blocks_settings.cache_bytes}, where block {blocks.deepest + 1} "
                    f"does not fit; goes no deeper than block {blocks.deepest}"
                )
            return reached

    def forward_to(self, features: np.ndarray, k: int) -> Forward:
        """Blocks 1..k; raises LayerUnavailable where a block that has no room to stay is not here in time."""
        import torch

        with self._running():
            if self._current is None:
                if k != 0:
                    raise CutError(f"got block {k} before the server's encoder has come, expected 0")
                return Forward(None, None, self._last)
            blocks = self._current.blocks
            x = torch.from_numpy(np.ascontiguousarray(features, np.float32))[None]
            crossing = blocks.run_to(x, k, self._waiter())
            if k == blocks.encoder.num_blocks:
                return self._embedded(crossing)
            early = blocks.early(crossing, k)
            if early is None:
                return Forward(crossing, None, self._last)
            z = early[0].numpy()
            return Forward(crossing, None, self._uncertainty(z), z)

    def finish(self, crossing: Crossing, k: int, features: np.ndarray) -> Forward:
        """Blocks k+1..L; raises LayerUnavailable where one is not here."""
        with self._running():
            blocks = self._blocks("an encoder")
            return self._embedded(blocks.run_on(crossing, k, blocks.encoder.num_blocks, self._waiter()))

    def remember(self, features: np.ndarray, z: np.ndarray | None, index: int, *, continuous: bool) -> None:
        """Puts an embedding that was computed here into the memory."""
        if z is not None:
            self._hold(z, index)

    def result(self, z: np.ndarray, index: int) -> None:
        """The server's embedding [d] of a window that was not embedded here."""
        dim = self._settings.encoder.embedding_dim
        if z.shape != (dim,) or not np.isfinite(z).all():
            raise CutError(f"got an embedding of shape {z.shape}, expected [{dim}] finite")
        with self._lock:
            self._last = self._uncertainty(z)
            self._hold(z, index)

    def adopt_mixture(self, message: Gmm) -> None:
        """Blends the fleet's mixture into the memory's, where both are of the same revision and kind."""
        fleet = GaussianMixture.from_bytes(message.data, message.components, message.dim)
        with self._lock:
            own = self._memory.mixture
            if message.revision == self.revision and own.components == fleet.components:
                own.merge(fleet, FLEET_WEIGHT)

    def adopt_prototypes(self, message: Prototypes) -> bool:
        """No measure of a streamed encoder needs them."""
        return False

    def fit_memory(self, free_bytes: float) -> None:
        """Lets the memory of embeddings grow or shrink with free memory (v1's bank)."""
        with self._lock:
            self._memory.fit(free_bytes)

    def base_weights(self) -> Weights:
        """Never asked for here."""
        raise RevisionError("this device does not hold the whole encoder; its blocks are streamed")

    def adopt(self, weights: Weights, revision: str, *, breaks_space: bool) -> None:
        """Never asked for here: revisions come as blocks."""
        raise RevisionError("this device does not hold the whole encoder; its blocks are streamed")

    # -- revisions -----------------------------------------------------------------------------------------------

    def fetch_revision(self) -> FetchedRevision:
        """What the server serves now, without its blocks; blocks on the network, in any thread.

        Raises StreamSplitError or OSError with what is wrong.
        """
        from streamsplit.weights.streaming.held_blocks import HeldBlocks

        settings = self._blocks_settings
        link = WeightLinkSettings(
            device_id=self._settings.device.id,
            token=self._settings.server.secret,
            tls_ca_file=self._settings.server.tls_ca_file,
            attempts=_ATTEMPTS,
        )
        with self._gate:
            if self.closed:
                raise ClosedError(_WHAT)
            client = WeightClient(settings.beside(self._settings.server.url), link)
            self._clients = [*(other for other in self._clients if not other.closed), client]
        try:
            manifest = client.manifest()
            directory = settings.disk_cache_dir
            disk = DiskCache(directory, settings.disk_cache_bytes) if directory else None
            source = RemoteSource(client, disk, manifest.deltas)
            current = self._current
            if current is not None:
                source.bases = current.blocks.resident_bytes
            blocks = HeldBlocks(manifest, source, budget_bytes=settings.cache_bytes)
            source.bases = blocks.old_bytes
            revision, space = self._identity(blocks)
        except BaseException as error:
            client.close()
            if self.closed and isinstance(error, (StreamSplitError, OSError)):
                raise ClosedError(_WHAT) from error
            raise
        return FetchedRevision(revision, space, blocks, client)

    def adopt_revision(self, fetched: FetchedRevision) -> tuple[FetchedRevision | None, bool]:
        """Goes over to another revision between two windows: (the one before, to be closed; whether spaces differ).

        Blocks that are the same in both stay; the others come when a cut needs them. Raises ClosedError after `close`,
        which has closed the fetched one, too.
        """
        with self._running():
            old, self._current = self._current, fetched
            breaks = old is not None and old.space != fetched.space
            if old is not None:
                fetched.blocks.take_over(old.blocks)
                self._received += old.client.count.down
            if breaks:
                self._memory.clear()
                if self._context is not None:
                    self._context.clear()
            return old, breaks

    def close(self) -> None:
        """Ends every connection to the weight stream, one that is being opened, too, and gives the blocks' memory back.

        Whoever waits for weights in another thread gets a ClosedError, and so does whoever comes later. May be called
        again, and from any thread.
        """
        with self._gate:
            self.closed = True
            clients = list(self._clients)
        for client in clients:
            client.close()
        with self._lock:
            if self._current is not None:
                self._current.blocks.release()

    def _identity(self, blocks: HeldBlocks) -> tuple[str, int]:
        mine = self._settings.encoder
        for what in ("name", "width", "embedding_dim", "bottleneck_blocks"):
            got, expected = getattr(blocks.settings, what), getattr(mine, what)
            if got != expected and not (what == "width" and mine.name != "mobilenet"):
                raise ManifestError(f"got an encoder of {what} {got} from the server, expected {expected} as set here")
        revision, space = blocks.manifest.config.get("revision"), blocks.manifest.config.get("space", 0)
        if not isinstance(revision, str) or not isinstance(space, int):
            raise ManifestError("got a manifest without the encoder's revision, expected a server's own")
        return check_revision(revision), space

    # -- inside --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """One user at a time, none after `close`, and what a `close` meanwhile breaks is a ClosedError."""
        with self._lock, self._no_grad():
            if self.closed:
                raise ClosedError(_WHAT)
            try:
                yield
            except LayerUnavailable as error:
                if self.closed:
                    raise ClosedError(_WHAT) from error
                raise

    def _look(self, blocks: HeldBlocks) -> None:
        """Says why it stays shallow, once until blocks have come again."""
        if blocks.arrived != self._arrived:
            self._arrived, self._said = blocks.arrived, False
        if blocks.trouble is None or blocks.trouble is self._trouble or self.closed:
            return
        self._trouble = blocks.trouble
        self._again_s = time.monotonic() + self._blocks_settings.retry_s
        if not self._said:
            self._said = True
            self.problem(f"no blocks from the server ({blocks.trouble}); goes no deeper than block {blocks.held}")

    def _waiter(self) -> Callable[[Any], bool]:
        wait_s = 0.0 if self.behind() else self._blocks_settings.wait_ms / 1000
        deadline_s = time.monotonic() + wait_s

        def wait(coming: Any) -> bool:
            left_s = max(deadline_s - time.monotonic(), 0.0)
            return bool(concurrent.futures.wait([coming], timeout=left_s).done)

        return wait

    def _embedded(self, crossing: Crossing) -> Forward:
        z = crossing.h[0].numpy()
        return Forward(None, z, self._uncertainty(z))

    def _uncertainty(self, z: np.ndarray) -> float:
        if self._context is not None:
            return self._context.value(z)
        return self._memory.mixture.entropy(z, self._temperature)

    def _hold(self, z: np.ndarray, index: int) -> None:
        with self._lock:
            self._memory.add(z, index)
            if self._context is not None:
                self._context.observe(z, index)

    def _blocks(self, what: str) -> HeldBlocks:
        if self._current is None:
            raise CutError(f"this device has no {what} before the server's encoder has come")
        return self._current.blocks
