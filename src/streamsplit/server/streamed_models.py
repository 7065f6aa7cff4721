"""What the main server's weight stream serves, and at which path: its own encoder, and a folder of chunks."""

from __future__ import annotations

from streamsplit.server.block_cache import BlockCachedStorage
from streamsplit.server.chunk_storage import ChunkStorage, open_storage
from streamsplit.server.encoder_storage import KEPT, EncoderStorage
from streamsplit.server.served_model import ServedModel
from streamsplit.server.settings import WeightStreamSettings

PATH = "/v1/weights"
ENCODER_PATH = "/v1/weights/encoder"


class StreamedModels:
    """The encoder always, at a path of its own; at the endpoint's the model of `chunks_dir`, else the encoder, too."""

    def __init__(self, settings: WeightStreamSettings, encoder: EncoderStorage) -> None:
        """Raises ConfigError for a place of chunks that is none."""
        self.encoder = ServedModel(encoder, KEPT)
        self._chunks: ServedModel | None = None
        if settings.chunks_dir:
            self._chunks = ServedModel(open_storage(settings.chunks_dir, settings.redis_url, settings.memory_mb))

    async def open_chunks(self) -> None:
        """Opens what `chunks_dir` names, if it names something; raises ManifestError."""
        if self._chunks is not None:
            await self._chunks.open()

    @property
    def chunks(self) -> ChunkStorage | None:
        """The storage of `chunks_dir`, if that names something."""
        return None if self._chunks is None else self._chunks.storage

    async def close(self) -> None:
        """Ends the connections of its caches."""
        if isinstance(self.chunks, BlockCachedStorage):
            await self.chunks.close()

    @property
    def paths(self) -> dict[str, ServedModel]:
        """Path -> model."""
        return {PATH: self._chunks or self.encoder, ENCODER_PATH: self.encoder}
