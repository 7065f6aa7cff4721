"""A file of codes as sound; packets behind the first that cannot be read are concealed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamsplit.codec.tinystream.bitstream import MODEL_ID_BYTES
from streamsplit.codec.tinystream.coded_file import Lost, file_pieces
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.segments import Floats
from streamsplit.codec.tinystream.streams import DecoderStream


class Decoded(NamedTuple):
    """What was in a file."""

    audio: Floats  # [frames * hop], aligned with what was encoded
    frames: int  # concealed ones too
    lost: tuple[Lost, ...]  # packets that were concealed


def decode_file(data: bytes, model: TinyStream) -> Decoded:
    """The sound of a file; raises CutError as `file_pieces`."""
    settings = model.settings
    stream, late = DecoderStream(model), settings.lookahead * settings.hop
    frames, parts, lost = 0, [np.zeros(0, np.float32)], []
    for piece in file_pieces(data, model.model_id()[:MODEL_ID_BYTES], settings.num_quantizers, settings.index_bits):
        if isinstance(piece, Lost):
            lost.append(piece)
            frames += piece.frames
            parts.append(stream.conceal(piece.frames))
        else:
            frames += piece.shape[1]
            parts.append(stream.push(piece))
    if frames:
        parts.append(stream.finish())
    return Decoded(np.concatenate(parts)[late:], frames, tuple(lost))
