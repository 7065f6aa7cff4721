"""Published encoders: files of half-precision weights that say what they are, and encoders that start from one.

A file is a full pack of `weights.delta` whose record also holds the encoder's settings and its card. What is packaged
lies in encoders/pretrained/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from streamsplit import encoders
from streamsplit.config import setting
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import CheckpointError, ConfigError, RevisionError
from streamsplit.weights.container import seal, unseal
from streamsplit.weights.delta import pack_full, unpack_full
from streamsplit.weights.revision import Weights, load_weights, revision_of

if TYPE_CHECKING:
    from streamsplit.encoders.base import SplitEncoder

PACKAGED = Path(encoders.__file__).parent / "pretrained"
DEFAULT = "default"
SUFFIX = ".safetensors"
CARD_FIELDS = ("name", "licence", "data", "hours", "command", "commit", "metrics")  # what every card must say

_SETTINGS, _CARD = "settings", "card"


class Pretrained(NamedTuple):
    """What a published file holds; `weights` are float32 arrays, exactly those that `revision` names."""

    settings: EncoderSettings
    revision: str
    card: dict[str, Any]
    weights: Weights


@dataclass(frozen=True, kw_only=True)
class StartSettings(EncoderSettings):
    """An encoder and the weights it starts from: those of its seed, or published ones, which fix all but the seed."""

    pretrained: str = setting("")  # "": the seed's; "default" or the path of a published .safetensors file

    @property
    def first_space(self) -> int:
        """Number of the embedding space before anything was learned: 0 where the projection is yet to be fitted."""
        return 1 if self.pretrained else 0

    def starting_from(self, name: str) -> StartSettings:
        """These settings with a published encoder's architecture and weights; raises CheckpointError."""
        return self.replace(**architecture(read_pretrained(name).settings), pretrained=name)


def start_encoder(settings: StartSettings) -> SplitEncoder:
    """The encoder as device and server begin with it; both get the same revision.

    Raises CheckpointError where the published file cannot be used, ConfigError where it is of another architecture
    than the settings say, MissingExtraError without torch.
    """
    if not settings.pretrained:
        return make_encoder(settings)
    found = read_pretrained(settings.pretrained)
    wanted = architecture(settings)
    for name, value in architecture(found.settings).items():
        if wanted[name] != value:
            raise ConfigError(
                f"'encoder.{name}': got {wanted[name]}, expected {value} as the published encoder "
                f"'{settings.pretrained}' has it; set it so, or leave encoder.pretrained out"
            )
    return pretrained_encoder(found)


def pretrained_encoder(found: Pretrained) -> SplitEncoder:
    """The encoder with its published weights, in evaluation mode; CheckpointError where this version has none such."""
    encoder = make_encoder(found.settings)
    try:
        load_weights(encoder, found.weights)
    except RevisionError as error:
        raise CheckpointError(
            f"published encoder '{found.card['name']}': got weights of another architecture than {encoder.name} has "
            f"in this version ({error}); use a file that was published for it"
        ) from None
    return encoder


def architecture(settings: EncoderSettings) -> dict[str, Any]:
    """The settings that weights depend on: all but the seed, with the bottlenecks' blocks written out."""
    values = {item.name: getattr(settings, item.name) for item in fields(EncoderSettings) if item.name != "seed"}
    return values | {"bottlenecks": settings.bottleneck_blocks}


def packaged_names() -> list[str]:
    """Names of the encoders that came with the package."""
    return sorted(path.stem for path in PACKAGED.glob(f"*{SUFFIX}"))


def pretrained_file(name: str | Path) -> Path:
    """The file of a packaged encoder, or `name` itself as a path; raises CheckpointError for an unknown name."""
    path = Path(name)
    if str(name) in packaged_names():
        return PACKAGED / f"{name}{SUFFIX}"
    if path.suffix == SUFFIX or path.name != str(name) or path.is_file():
        return path
    packaged = ", ".join(packaged_names()) or "none"
    raise CheckpointError(
        f"got '{name}', expected a packaged encoder (here: {packaged}) or the path of a published {SUFFIX} file"
    )


def is_published(path: Path) -> bool:
    """Whether a file says of itself that it is a published encoder; False for any other, or none at all."""
    try:
        record = unseal(path.read_bytes())[1]
    except (OSError, RevisionError):
        return False
    return _CARD in record


def read_pretrained(name: str | Path) -> Pretrained:
    """A published encoder by name or path, with its hash checked; raises CheckpointError for anything else."""
    path = pretrained_file(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); give a published {SUFFIX} file"
        ) from None
    try:
        record = unseal(data)[1]
        if not {_SETTINGS, _CARD} <= record.keys():
            raise CheckpointError(f"{path}: got weights without settings and card, expected a published encoder")
        weights = unpack_full(data)
        settings = EncoderSettings.from_mapping(json.loads(record[_SETTINGS]))
        card = json.loads(record[_CARD])
        check_card(card)
    except (RevisionError, ConfigError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is not a published encoder that this version can read, or is damaged ({error}); fetch it anew"
        ) from None
    return Pretrained(settings, record["revision"], card, weights)


def pack_pretrained(weights: Weights, settings: EncoderSettings, card: Mapping[str, Any]) -> tuple[bytes, Pretrained]:
    """The bytes of a published file, and what reading them gives: the weights rounded to half precision.

    Raises ConfigError for a card that lacks something, RevisionError for weights that are not finite or not the
    settings' encoder's in number and shape.
    """
    check_card(card)
    try:
        text = json.dumps(dict(card), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"'card': got values that JSON cannot hold ({error}); use texts, numbers, lists, mappings"
        ) from None
    load_weights(make_encoder(settings), weights)
    packed = pack_full(weights, "fp16")
    arrays, record = unseal(packed.payload)
    own = EncoderSettings(**architecture(settings), seed=settings.seed)
    record |= {_SETTINGS: json.dumps(own.as_dict(), sort_keys=True), _CARD: text}
    return seal(arrays, record), Pretrained(own, revision_of(packed.result), json.loads(text), packed.result)


def check_card(card: Any) -> None:
    """Raises ConfigError unless the card is a mapping that says everything in CARD_FIELDS, its metrics as a mapping."""
    if not isinstance(card, Mapping):
        raise ConfigError(f"'card': got a {type(card).__name__}, expected a mapping with {', '.join(CARD_FIELDS)}")
    missing = [name for name in CARD_FIELDS if name not in card]
    if missing:
        raise ConfigError(f"'card': got none of {', '.join(missing)}, expected {', '.join(CARD_FIELDS)}")
    if not isinstance(card["metrics"], Mapping):
        raise ConfigError(
            f"'card.metrics': got {card['metrics']!r}, expected a mapping of what was measured to its value"
        )
