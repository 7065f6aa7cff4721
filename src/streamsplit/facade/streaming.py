"""Transformer models that the device does not store: StreamingModel and its named kinds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import torch

from streamsplit.edge.disk_cache import DiskCache
from streamsplit.edge.weight_client import WeightClient
from streamsplit.edge.weight_source import RemoteSource
from streamsplit.errors import ClosedError, ConfigError, ManifestError, StreamSplitError
from streamsplit.facade.streaming_config import StreamingConfig
from streamsplit.facade.streaming_monitor import StreamingMonitor
from streamsplit.weights.streaming.manifest import Manifest, verify
from streamsplit.weights.streaming.model import COMPUTE, StreamedModel

M = TypeVar("M", bound="StreamingModel")
_WHAT = "the streaming model"


class StreamingModel:
    """A transformers model run from a weight server; connects when it is first used.

    `model(**inputs)` outside an event loop, `await model.forward_async(**inputs)` within one; the outputs are those of
    the plain model. Raises LayerUnavailable, naming the layer, where its weights cannot be had, and ClosedError once it
    is closed.
    """

    model_types: ClassVar[tuple[str, ...]] = ()  # that this class takes; () for any

    def __init__(
        self, model_name: str = "", websocket_uri: str = "", cache_size: int | None = None, *,
        config: StreamingConfig | None = None, monitor: StreamingMonitor | None = None,
    ) -> None:  # fmt: skip
        """`model_name`, where given, must be the one that the server streams; `cache_size` counts layers."""
        self.settings = config or StreamingConfig()
        if cache_size is not None:
            self.settings = self.settings.replace(cache_size=cache_size)
        self.uri = websocket_uri or self.settings.uri
        self.model_name = model_name
        self.monitor = monitor or StreamingMonitor()
        self.monitor._model = self
        self._lock = threading.RLock()  # one forward at a time
        self._gate = threading.Lock()  # over the two below; nobody waits with it
        self._closed = False
        self._clients: list[WeightClient] = []
        self._client: WeightClient | None = None
        self._source: RemoteSource | None = None
        self._streamed: StreamedModel | None = None

    @classmethod
    def open(
        cls: type[M], uri: str, *, cache_bytes: int | None = None, prefetch: int = 1, dtype: str = "fp32",
        config: StreamingConfig | None = None, monitor: StreamingMonitor | None = None,
    ) -> M:  # fmt: skip
        """A model that is connected; raises what is wrong with server, manifest or budget at once."""
        if not 0 <= prefetch <= 8:
            raise ConfigError(f"'prefetch': got {prefetch}, allowed 0..8")
        settings = (config or StreamingConfig()).replace(
            cache_bytes=cache_bytes, prefetch_layers=prefetch > 0, prefetch_depth=max(1, prefetch), dtype=dtype
        )
        model = cls(websocket_uri=uri, config=settings, monitor=monitor)
        try:
            model._open()
        except BaseException:
            model.close()
            raise
        return model

    @property
    def model(self) -> Any:
        """The transformers model itself, its layers empty while they do not run."""
        return (self._streamed or self._open()).model

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def manifest(self) -> Manifest:
        """What the server said that it streams."""
        return (self._streamed or self._open()).manifest

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """The model's outputs, without gradients."""
        _not_in_a_loop("forward_async")
        return self._forward(*args, **inputs)

    async def forward_async(self, *args: Any, **inputs: Any) -> Any:
        """The model's outputs; the event loop goes on meanwhile."""
        return await asyncio.to_thread(self._forward, *args, **inputs)

    def generate(self, *args: Any, **options: Any) -> Any:
        """transformers' `generate`, with its cache of keys and values."""
        _not_in_a_loop("generate_async")
        return self._generate(*args, **options)

    async def generate_async(self, *args: Any, **options: Any) -> Any:
        """The same while the event loop goes on."""
        return await asyncio.to_thread(self._generate, *args, **options)

    def refresh(self) -> bool:
        """Takes up the server's newest revision between two forwards, all of it or nothing; True if there was one.

        What is in memory and the same in both stays there; what changed comes when it is next needed, as a delta where
        the old one is in memory or in the disk cache and the server offers it. Raises what is wrong with the new
        revision; the old one then stays in use, as it was.
        """
        with self._using() as held:
            client = self._connect()
            try:
                manifest = client.manifest()
                if manifest.revision == held.manifest.revision:
                    client.close()
                    return False
                self._check(manifest)
                streamed, source = self._build(client, manifest, held)
            except BaseException:
                client.close()
                raise
            old, self._client = self._client, client
            self._streamed, self._source = streamed, source
            streamed.take_over(held)
            if old is not None:
                old.close()
            return True

    def close(self) -> None:
        """Ends the connection and gives the weights' memory back; the model cannot be used any more.

        A forward in another thread that waits for weights ends with a ClosedError, as do all later ones; one that has
        all it needs is waited for. May be called again, and from anywhere.
        """
        with self._gate:
            self._closed = True
            clients = list(self._clients)
        for client in clients:
            client.close()
        with self._lock:
            if self._streamed is not None:
                self._streamed.release()

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forward(self, *args: Any, **inputs: Any) -> Any:
        with self._using() as streamed, torch.no_grad():
            return streamed.model(*args, **inputs)

    def _generate(self, *args: Any, **options: Any) -> Any:
        with self._using() as streamed:
            model: Any = streamed.model
            if not hasattr(model, "generate"):
                raise ConfigError(f"got a {type(model).__name__}, expected a model that generates")
            return model.generate(*args, **options)

    @contextlib.contextmanager
    def _using(self) -> Iterator[StreamedModel]:
        """The model, for one user at a time; whatever a `close` meanwhile breaks is a ClosedError."""
        with self._lock:
            try:
                yield self._open()
            except Exception as error:
                if self._closed and not isinstance(error, ClosedError):
                    raise ClosedError(_WHAT) from error
                raise

    def _connect(self) -> WeightClient:
        """A client that `close` knows of; raises ClosedError after it."""
        with self._gate:
            if self._closed:
                raise ClosedError(_WHAT)
            client = WeightClient(self.uri, self.settings.link)
            self._clients = [*(other for other in self._clients if not other.closed), client]
            return client

    def _open(self) -> StreamedModel:
        with self._lock:
            if self._closed:
                raise ClosedError(_WHAT)
            if self._streamed is not None:
                return self._streamed
            if self._client is None:
                self._client = self._connect()
            manifest = self._client.manifest()
            self._check(manifest)
            self._streamed, self._source = self._build(self._client, manifest)
            return self._streamed

    def _build(
        self, client: WeightClient, manifest: Manifest, before: StreamedModel | None = None
    ) -> tuple[StreamedModel, RemoteSource]:
        settings = self.settings
        directory = settings.disk_cache_dir
        disk = DiskCache(directory, settings.disk_cache_bytes) if directory else None
        source = RemoteSource(client, disk, manifest.deltas)
        streamed = StreamedModel(
            manifest, source, cache_bytes=_budget(settings, manifest),
            prefetch=settings.prefetch_depth if settings.prefetch_layers else 0, dtype=settings.dtype,
            clock_s=time.monotonic, before=before,
        )  # fmt: skip
        return streamed, source

    def _check(self, manifest: Manifest) -> None:
        if self.settings.public_key:
            try:
                key = bytes.fromhex(self.settings.public_key)
            except ValueError:
                raise ConfigError("'public_key': got something else than hex digits") from None
            verify(manifest, key)
        if self.model_types and manifest.model_type not in self.model_types:
            raise ManifestError(
                f"got a model of type '{manifest.model_type}' from {self.uri}, expected "
                f"{' or '.join(self.model_types)}; StreamingModel takes any type"
            )
        if self.model_name and _last(self.model_name) != _last(manifest.model):
            raise ManifestError(
                f"got model '{manifest.model}' from {self.uri}, expected '{self.model_name}'; chunk and serve that one"
            )


class StreamingBertModel(StreamingModel):
    """BERT from a weight server."""

    model_types = ("bert",)


class StreamingGPT2Model(StreamingModel):
    """GPT-2 from a weight server."""

    model_types = ("gpt2",)


class StreamingLlamaModel(StreamingModel):
    """Llama and its relatives from a weight server."""

    model_types = ("llama", "mistral", "qwen2")


class StreamingT5Model(StreamingModel):
    """T5, encoder and decoder, from a weight server."""

    model_types = ("t5",)


def _budget(settings: StreamingConfig, manifest: Manifest) -> int | None:
    largest = manifest.largest_layer_bytes * COMPUTE[settings.dtype].itemsize // 4
    limits = [
        settings.cache_bytes,
        None if settings.cache_size is None else settings.cache_size * largest,
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _not_in_a_loop(other: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise StreamSplitError(f"called within an event loop, which would stand still; use 'await model.{other}(...)'")
