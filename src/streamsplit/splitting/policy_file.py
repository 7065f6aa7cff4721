"""A trained policy as a file: numpy arrays and a description in one .npz, checked before anything is used."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.config import nearest
from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.table import CutTable

POLICY_FORMAT = 1
MAX_POLICY_BYTES = 1 << 20
MAX_UNITS = 1024  # of a layer, and of the input
Floats32 = NDArray[np.float32]


class Layer(NamedTuple):
    """One affine map: y = x weight + bias."""

    weight: Floats32  # [inputs, outputs]
    bias: Floats32  # [outputs]


class PolicyFile(NamedTuple):
    """What `streamsplit train-policy` writes and a device loads."""

    encoder: str
    architecture: Mapping[str, Any]  # of the table it was trained on
    num_blocks: int
    cuts: tuple[Cut, ...]  # the actions, in the order of the outputs
    settings: GreedySettings  # of the expected costs among the inputs
    layers: tuple[Layer, ...]  # tanh between them
    cost_weight: float  # how much a unit of expected cost lowers an action's logit before anything is learned
    low: Floats32  # [f], smallest state features seen in training
    high: Floats32  # [f], largest
    about: Mapping[str, Any]  # command, seeds, steps, validation figures: its card
    version: int = 1

    @property
    def saw_masks(self) -> bool:
        """Whether constraints took actions away in training; False where the card says nothing of them."""
        held: Any = self.about
        for name in ("training", "environment", "constraints"):
            held = held.get(name) if isinstance(held, Mapping) else None
        try:
            return isinstance(held, Mapping) and not ConstraintSettings.from_mapping(held).forbids_nothing
        except ConfigError:  # settings of another version: nothing that can be relied on
            return False

    def to_bytes(self) -> bytes:
        """The .npz; fp16 weights."""
        described = {
            "format": POLICY_FORMAT, "encoder": self.encoder, "architecture": dict(self.architecture),
            "num_blocks": self.num_blocks, "cuts": [str(cut) for cut in self.cuts],
            "settings": self.settings.as_dict(), "cost_weight": self.cost_weight, "layers": len(self.layers),
            "about": dict(self.about), "version": self.version,
        }  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {"described": np.array(json.dumps(described, sort_keys=True))}
        arrays |= {"low": self.low.astype(np.float32), "high": self.high.astype(np.float32)}
        for index, layer in enumerate(self.layers):
            arrays[f"weight{index}"] = layer.weight.astype(np.float16)
            arrays[f"bias{index}"] = layer.bias.astype(np.float16)
        held = io.BytesIO()
        np.savez_compressed(held, **arrays)  # type: ignore[arg-type]
        return held.getvalue()

    def save(self, path: str | Path) -> None:
        """Writes the .npz; raises CutError."""
        try:
            Path(path).write_bytes(self.to_bytes())
        except OSError as error:
            raise CutError(f"{path}: policy cannot be written ({error.strerror or error})") from error

    def check_table(self, table: CutTable) -> None:
        """Raises CutError unless the policy was trained for tables like this one, whole."""
        self.check_kind(table)
        present = set(table.cuts)
        found = [cut for cut in self.cuts if cut in present]
        if len(found) < 2:
            raise CutError(
                f"this policy was trained for another cut table: {len(found)} of its {len(self.cuts)} cuts "
                f"({', '.join(map(str, self.cuts[:4]))}, ...) have a row; train one with `streamsplit train-policy`"
            )

    def check_kind(self, table: CutTable) -> None:
        """Raises CutError unless the policy was trained for this encoder; `table` may be a part of one."""
        for what, own, theirs in (
            ("encoder", self.encoder, table.encoder), ("number of blocks", self.num_blocks, table.num_blocks),
            ("architecture", dict(self.architecture), architecture_of(table)),
        ):  # fmt: skip
            if own != theirs:
                raise CutError(
                    f"this policy was trained for another cut table: got {what} {theirs}, expected {own}; train one "
                    "with `streamsplit train-policy --table FILE`"
                )


def architecture_of(table: CutTable) -> dict[str, Any]:
    """What of the encoder decides what its blocks cost, as far as the table's profile said it."""
    said = table.meta.get("encoder")
    known = said if isinstance(said, Mapping) else {}
    return {name: known[name] for name in ("name", "width", "embedding_dim") if name in known}


def policy_from_bytes(data: bytes, source: str = "policy") -> PolicyFile:
    """Reads and checks a policy; raises CutError naming `source`. Nothing in it is ever unpickled."""
    if len(data) > MAX_POLICY_BYTES:
        raise CutError(f"{source}: got {len(data)} bytes, expected at most {MAX_POLICY_BYTES} for a policy")
    try:
        _check_sizes(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            described = json.loads(str(held["described"]))
            if described["format"] != POLICY_FORMAT:
                raise CutError(f"got policy format {described['format']}, expected {POLICY_FORMAT}")
            layers = tuple(
                Layer(_finite(held[f"weight{index}"], 2), _finite(held[f"bias{index}"], 1))
                for index in range(int(described["layers"]))
            )
            file = PolicyFile(
                encoder=str(described["encoder"]), architecture=dict(described["architecture"]),
                num_blocks=int(described["num_blocks"]),
                cuts=tuple(Cut.parse(text).check(int(described["num_blocks"])) for text in described["cuts"]),
                settings=GreedySettings.from_mapping(described["settings"]), layers=layers,
                cost_weight=float(described["cost_weight"]), low=_finite(held["low"], 1),
                high=_finite(held["high"], 1), about=dict(described["about"]), version=int(described["version"]),
            )  # fmt: skip
        _check_shapes(file)
    except (CutError, ConfigError) as error:
        raise CutError(f"{source}: {error}") from None
    except Exception as error:  # zipfile, zlib, json and numpy each raise their own on bytes that are none of theirs
        about = " ".join(f"{type(error).__name__}: {error}".split())
        raise CutError(
            f"{source}: not a policy file ({about}); give one that `streamsplit train-policy` wrote"
        ) from None
    return file


def load_policy(path: str | Path) -> PolicyFile:
    """Reads a policy file; raises CutError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CutError(f"{path}: policy cannot be read ({error.strerror or error})") from error
    return policy_from_bytes(data, str(path))


def packaged_policy(encoder: str) -> PolicyFile:
    """The policy that ships for `encoder`; raises CutError naming what ships."""
    folder = resources.files("streamsplit.splitting") / "policies"
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    shipped = sorted(name.removesuffix(".npz") for name in names if name.endswith(".npz"))
    if encoder not in shipped:
        raise CutError(
            f"no trained policy ships for encoder '{encoder}' ({nearest(encoder, shipped)}); "
            "train one with `streamsplit train-policy`, or use policy 'greedy'"
        )
    return policy_from_bytes((folder / f"{encoder}.npz").read_bytes(), f"packaged policy {encoder}")


def digest(data: bytes) -> str:
    """Hex SHA-256 of a policy's bytes: its name in logs."""
    return hashlib.sha256(data).hexdigest()


def _check_sizes(data: bytes) -> None:
    """A small archive may claim large members: look at their sizes before anything is unpacked."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > 8 * MAX_POLICY_BYTES:
        raise CutError(f"got {total} bytes inside, expected at most {8 * MAX_POLICY_BYTES}")


def _finite(array: NDArray[Any], dims: int) -> Floats32:
    values = np.asarray(array, np.float32)
    if values.ndim != dims or not np.isfinite(values).all():
        raise CutError(f"got an array of shape {values.shape}, expected {dims} dimensions and finite numbers")
    return values


def _check_shapes(file: PolicyFile) -> None:
    states, actions = len(STATE_FEATURES), len(file.cuts)
    width = states + actions
    if not (file.low.shape == file.high.shape == (states,)):
        raise CutError(f"got ranges of {len(file.low)} and {len(file.high)} features, expected {states}")
    if (file.low > file.high).any():
        raise CutError("got a range of features that ends before it begins, expected low <= high")
    if not file.layers or len(set(file.cuts)) != actions or not math.isfinite(file.cost_weight):
        raise CutError(
            f"got {len(file.layers)} layers for {actions} actions, expected at least one and no action twice"
        )
    for layer in file.layers:
        if layer.weight.shape[0] != width or layer.bias.shape != (layer.weight.shape[1],) or width > MAX_UNITS:
            raise CutError(f"got a layer {layer.weight.shape} after {width} values, expected [{width}, n]")
        width = layer.weight.shape[1]
    if width != actions:
        raise CutError(f"got {width} outputs, expected one for each of {actions} actions")
