"""TinyStream at a cut, at the server: a piece's codes, decoded in the light of those before them."""

from __future__ import annotations

import numpy as np
import torch

from streamsplit.codec.tinystream.bitstream import MODEL_ID_BYTES, Indices, unpack
from streamsplit.codec.tinystream.decoder import decoder_memory
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.segments import Floats, segment_frames
from streamsplit.errors import CutError


class SegmentDecoder:
    """Decodes pieces that a `SegmentEncoder` coded.

    A piece given with the last `context_frames` codes before it sounds as in one stream, but for its last frames: the
    decoder does not wait for the codes that would come after them.
    """

    def __init__(self, model: TinyStream) -> None:
        self._model = model.eval()
        self._settings = model.settings
        self.context_frames = decoder_memory(model.settings)
        self.model_id = model.model_id()[:MODEL_ID_BYTES]

    @torch.no_grad()
    def decode(
        self, payload: bytes, samples: int, before: Indices | None = None, lead: int = 0
    ) -> tuple[Floats, Indices]:
        """The piece's `samples` samples, and the codes to decode the next one with; `before` None: after silence.

        With `lead`, as many samples before it, too, where `before` holds them: decoded anew, no longer without what
        comes after them.

        Raises CutError if the packet is damaged, of another codec or not `samples` long.
        """
        packet = unpack(payload, self.model_id)
        settings, codes = self._settings, packet.indices
        frames = segment_frames(samples, settings.hop)
        if codes.shape[1] != frames or packet.index_bits != settings.index_bits:
            raise CutError(
                f"tinystream: got {codes.shape[1]} frames of {packet.index_bits} bits an index, expected {frames} of "
                f"{settings.index_bits} for {samples} samples"
            )
        if len(codes) > settings.num_quantizers:
            raise CutError(f"tinystream: got {len(codes)} quantizers, expected 1..{settings.num_quantizers}")
        if not frames:
            return np.zeros(0, np.float32), codes
        if before is not None and len(before) == len(codes):
            codes = np.concatenate([before, codes], 1)
        audio = self._model.decode(torch.from_numpy(codes)[None])[0, 0]
        return audio[max(0, len(audio) - samples - lead) :].numpy(), codes[
            :, max(0, codes.shape[1] - self.context_frames) :
        ]
