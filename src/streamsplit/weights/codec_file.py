"""Published codecs: one file of half-precision weights with the codec's settings and its card (no pickle).

What is packaged lies in codec/tinystream/pretrained/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from streamsplit.codec.tinystream.integer import IntegerEncoder
from streamsplit.codec.tinystream.integer_file import PACKAGED
from streamsplit.codec.tinystream.integerise import integerise
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.settings import TinyStreamSettings
from streamsplit.errors import CheckpointError, ConfigError, RevisionError
from streamsplit.weights.container import seal, unseal
from streamsplit.weights.pretrained import SUFFIX, check_card

_SETTINGS, _CARD, _PEAKS, _FORMAT = "codec", "card", "peaks", "streamsplit-codec-1"


class PublishedCodec(NamedTuple):
    """A codec in evaluation mode, its card, and the encoder's largest activations on what it was trained on."""

    model: TinyStream
    card: dict[str, Any]
    peaks: tuple[float, ...]

    def integer_encoder(self) -> IntegerEncoder:
        """The encoder in whole numbers, as microcontrollers run it."""
        return integerise(self.model, self.peaks)


def pack_codec(model: TinyStream, peaks: Sequence[float], card: Mapping[str, Any]) -> bytes:
    """The bytes of a published file, weights rounded to half precision; `peaks` as of `activation_peaks`.

    Raises ConfigError for a card that lacks something, CheckpointError for codebooks that hold no data yet.
    """
    check_card(card)
    if not bool(model.quantizer.filled):
        raise CheckpointError("got a codec whose codebooks hold no data, expected a trained one")
    arrays = {name: array.astype(np.float16) for name, array in _arrays(model).items()}
    record = {
        "format": _FORMAT, _CARD: json.dumps(dict(card), sort_keys=True, allow_nan=False),
        _SETTINGS: json.dumps(model.settings.as_dict(), sort_keys=True), _PEAKS: json.dumps([float(p) for p in peaks]),
    }  # fmt: skip
    return seal(arrays, record)


def read_codec(name: str | Path) -> PublishedCodec:
    """A published codec by its packaged name or by path; raises CheckpointError for anything else."""
    path = codec_path(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); give a published codec's {SUFFIX} file"
        ) from None
    try:
        arrays, record = unseal(data)
        if record.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: got weights of another kind, expected a published codec")
        values, card = json.loads(record[_SETTINGS]), json.loads(record[_CARD])
        peaks = tuple(float(peak) for peak in json.loads(record[_PEAKS]))
        check_card(card)
        model = TinyStream.from_settings(TinyStreamSettings.from_mapping(values))
        expected = {key: array.shape for key, array in _arrays(model).items()}
        if {key: array.shape for key, array in arrays.items()} != expected:
            raise CheckpointError(f"{path}: got weights of another architecture than its settings say")
    except (RevisionError, ConfigError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not a codec that this version can read, or is damaged ({error}); fetch it anew"
        ) from None
    state = model.state_dict()
    for key, array in arrays.items():
        state[key] = torch.from_numpy(array.astype(np.float32))
    model.load_state_dict(state)
    model.quantizer.restart()
    return PublishedCodec(model.eval(), card, peaks)


def codec_path(name: str | Path) -> Path:
    """The file of a packaged codec, or `name` itself as a path; raises CheckpointError for an unknown name."""
    path = Path(name)
    packaged = sorted(file.stem for file in PACKAGED.glob(f"*{SUFFIX}") if "." not in file.stem)
    if str(name) in packaged:
        return PACKAGED / f"{name}{SUFFIX}"
    if path.suffix == SUFFIX or path.name != str(name) or path.is_file():
        return path
    raise CheckpointError(
        f"got '{name}', expected a packaged codec (here: {', '.join(packaged) or 'none'}) or a {SUFFIX} file's path"
    )


def _arrays(model: TinyStream) -> dict[str, np.ndarray]:
    """Everything that coding depends on; what only training needs stays behind."""
    kept = {name for name, _ in model.named_parameters()} | {"quantizer.codebooks"}
    return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items() if name in kept}
