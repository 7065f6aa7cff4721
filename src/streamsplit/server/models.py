"""Encoder revisions on the server: their files, and the few that are held ready to complete windows."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import CheckpointError, ConfigError, RevisionError
from streamsplit.server.checkpoint import read_file, write_atomic
from streamsplit.weights.revision import Weights, check_revision, load_weights, revision_of, revision_prefix
from streamsplit.wire.media import Resolution

KEPT_REVISIONS = 12


class RevisionFiles:
    """`<folder>/<revision>/`: weights.safetensors, full.bin and delta.bin as devices get them, base (a text file)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, revision: str, weights: bytes, full: bytes, delta: bytes | None, base: str) -> None:
        """Keeps a revision; its weights last, so that a folder with weights is complete. Raises CheckpointError."""
        folder = self._folder(revision)
        write_atomic(folder / "full.bin", full)
        if delta is not None:
            write_atomic(folder / "delta.bin", delta)
            write_atomic(folder / "base", base.encode())
        write_atomic(folder / "weights.safetensors", weights)

    def weights(self, revision: str) -> Weights:
        """The weights of a revision; raises RevisionError or CheckpointError."""
        return read_weights(self.weights_bytes(revision), revision)

    def weights_bytes(self, revision: str) -> bytes:
        """The safetensors file of a revision."""
        return read_file(self._folder(revision) / "weights.safetensors")

    def payload(self, revision: str, base: str) -> bytes | None:
        """What a device is sent to get from `base` ('' = nothing) to `revision`; None where there is no such way."""
        folder = self._folder(revision)
        try:
            if not base:
                return (folder / "full.bin").read_bytes()
            if (folder / "base").read_text() != base:
                return None
            return (folder / "delta.bin").read_bytes()
        except OSError:
            return None

    def __contains__(self, revision: str) -> bool:
        return (self._folder(revision) / "weights.safetensors").is_file()

    def prune(self, keep: list[str]) -> None:
        """Deletes all but the newest of `keep` (oldest first)."""
        wanted = set(keep[-KEPT_REVISIONS:])
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.is_dir() and folder.name not in wanted:
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, revision: str) -> Path:
        return self.folder / check_revision(revision)  # hex digits only: never a path out of the folder


def weights_file(weights: Weights) -> bytes:
    """A safetensors file of the weights."""
    from safetensors.numpy import save

    return bytes(save(weights))


def read_weights(data: bytes, revision: str) -> Weights:
    """Reads a safetensors file and checks that it is what its name says."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        weights: Weights = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"revision {revision[:12]}: not a safetensors file ({error})") from None
    found = revision_of(weights)
    if found != revision:
        raise RevisionError(f"revision {revision[:12]}: the file holds {found[:12]}; delete its folder")
    return weights


class Served(NamedTuple):
    """One revision, ready to run. Embeddings of revisions with the same `space` compare."""

    revision: str
    space: int
    encoder: SplitEncoder


class EncoderShelf:
    """The current revision and the last few before it; used by the compute worker alone."""

    def __init__(
        self, settings: EncoderSettings, device: str, size: int, load: Callable[[int], tuple[str, int, Weights] | None]
    ) -> None:
        """`load` finds an older revision by its 32-bit prefix: revision, space, weights."""
        self._settings = settings
        self._device = torch.device(device)
        self._size = size
        self._load = load
        self._held: OrderedDict[int, Served] = OrderedDict()
        self._current: Served | None = None
        self._shapes: dict[tuple[int, Resolution, int], tuple[int, ...]] = {}

    @property
    def current(self) -> Served:
        """The newest revision."""
        if self._current is None:
            raise RevisionError("no encoder revision yet")
        return self._current

    def adopt(self, revision: str, space: int, weights: Weights) -> Served:
        """Makes a revision the current one."""
        self._current = self._put(revision, space, weights)
        return self._current

    def find(self, prefix: int) -> Served | None:
        """The revision that a media header names; None if the server does not know it."""
        served = self._held.get(prefix)
        if served is not None:
            self._held.move_to_end(prefix)
            return served
        found = self._load(prefix)
        return None if found is None else self._put(*found)

    def crossing_shape(self, block: int, resolution: Resolution, frames: int) -> tuple[int, ...]:
        """Shape [c, f, t] of what crosses after `block`, for windows of `frames` full-rate frames."""
        key = (block, resolution, frames)
        if key not in self._shapes:
            bands, t = (128, frames) if resolution is Resolution.FULL else (64, frames // 2)
            encoder = self.current.encoder
            shapes = [(1, bands, t), *(cost.output_shape for cost in encoder.block_costs(bands, t))]
            for k, shape in enumerate(shapes):
                self._shapes[k, resolution, frames] = shape
        return self._shapes[key]

    def _put(self, revision: str, space: int, weights: Weights) -> Served:
        encoder = make_encoder(self._settings)
        load_weights(encoder, weights)
        served = Served(revision, space, encoder.to(self._device).eval())
        prefix = revision_prefix(revision)
        self._held[prefix] = served
        self._held.move_to_end(prefix)
        while len(self._held) > max(self._size, 2):
            del self._held[next(p for p, held in self._held.items() if held is not self._current and p != prefix)]
        return served


def torch_device(name: str) -> str:
    """'cpu' or 'cuda' from the setting 'device'; raises ConfigError when there is no GPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("'device': got cuda, but PyTorch sees no GPU; use device: cpu (or --cpu-only)")
    return name
