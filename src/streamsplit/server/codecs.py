"""The neural codecs whose codes the server can decode, by the id that a packet names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from streamsplit.codec.tinystream.bitstream import unpack
from streamsplit.codec.tinystream.segments import DEFAULT_CODEC
from streamsplit.errors import CutError

if TYPE_CHECKING:
    from streamsplit.codec.tinystream.segment_decoder import SegmentDecoder


class CodecShelf:
    """Codecs by packaged name or file, loaded when first asked for."""

    def __init__(self, names: Sequence[str] = (DEFAULT_CODEC,)) -> None:
        self.names = tuple(names)

    def load(self) -> None:
        """Loads all of them; raises CheckpointError for one that is not a published codec."""
        _ = self._decoders

    @cached_property
    def ids(self) -> frozenset[str]:
        """Hex ids, as HELLO names them."""
        return frozenset(codec_id.hex() for codec_id in self._decoders)

    def decoder_of(self, payload: bytes) -> SegmentDecoder:
        """The decoder of the codec that wrote a packet; raises CutError for one that is not here, or no packet."""
        codec_id = unpack(payload).model_id
        if codec_id not in self._decoders:
            raise CutError(f"got codes of codec {codec_id.hex()}, expected {', '.join(sorted(self.ids)) or 'none'}")
        return self._decoders[codec_id]

    @cached_property
    def _decoders(self) -> dict[bytes, SegmentDecoder]:
        from streamsplit.codec.tinystream.segment_decoder import SegmentDecoder
        from streamsplit.weights.codec_file import read_codec

        decoders = [SegmentDecoder(read_codec(name).model) for name in self.names]
        return {decoder.model_id: decoder for decoder in decoders}
