"""ModelChunker: a folder of chunks and a manifest from any transformers model that lies in safetensors files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamsplit.errors import ManifestError
from streamsplit.weights.streaming import chunk_file
from streamsplit.weights.streaming.folder_lock import sole_writer
from streamsplit.weights.streaming.graph import ROWS_OVER_BYTES, Group, LayerGraph, layer_graph, stored_tensors
from streamsplit.weights.streaming.manifest import (
    FORMAT,
    NAME,
    Chunk,
    Manifest,
    RowBlocks,
    file_name,
    read_manifest,
    sign,
)
from streamsplit.weights.streaming.publish import put_manifest
from streamsplit.weights.streaming.quantise import check_dtype, pack_rows, quantise
from streamsplit.weights.streaming.signer import check_signer
from streamsplit.weights.streaming.skeleton import model_class, transformers_module

BLOCK_BYTES = 16 << 10  # of an embedding's rows under one hash: what a single row costs
MAX_BLOCKS = 8192
Progress = Callable[[int, int, str], None]


class ModelChunker:
    """Cuts a model into content-addressed chunks; what lies in the folder already, unchanged, is not written again."""

    def __init__(
        self,
        model_name: str,
        output_dir: str | Path,
        compress: bool = False,
        *,
        dtype: str = "fp32",
        architecture: str = "",
        signing_key: bytes = b"",
        replace_signer: bool = False,
        rows_over_bytes: int = ROWS_OVER_BYTES,
        progress: Progress | None = None,
    ) -> None:
        """`model_name` is a folder with config.json and safetensors files, or a hub name where the hub is reachable.

        `architecture` replaces the class that the configuration names; `signing_key` is an Ed25519 seed of 32 bytes,
        and `replace_signer` says that a folder signed with another key, or with one at all, may lose that signature;
        `progress` is told (chunks done, of how many, the next one's name).
        """
        self.model_name = model_name
        self.output_dir = Path(output_dir)
        self.compress = compress
        self.dtype = check_dtype(dtype)
        self.rows_over_bytes = rows_over_bytes
        self._architecture = architecture
        self._signing_key = signing_key
        self._replace_signer = replace_signer
        self._progress = progress or (lambda done, total, name: None)

    def chunk_model(self) -> dict[str, Any]:
        """Writes chunks and manifest.json; gives 'chunks' (names), 'manifest' (path), 'revision' and sizes.

        Raises ManifestError for a model that cannot be read, is not complete, or has layers that cannot be told apart;
        for a folder that was signed and would not be with the same key; and while another process changes the folder.
        """
        self._check_signer()  # before the long work; again under the lock
        with _quiet():
            model, config = self._load()
        graph = layer_graph(model, config.model_type, rows_over_bytes=self.rows_over_bytes)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.output_dir, "weights chunk"):
            self._check_signer()
            return self._write_all(model, config, graph)

    def _check_signer(self) -> None:
        if (self.output_dir / NAME).is_file():
            check_signer(self.output_dir, read_manifest(self.output_dir), self._signing_key, self._replace_signer)

    def _write_all(self, model: nn.Module, config: Any, graph: LayerGraph) -> dict[str, Any]:
        tensors = {name: tensor.detach() for name, tensor in stored_tensors(model).items()}
        chunks = []
        for done, group in enumerate(graph.groups):
            self._progress(done, len(graph.groups), group.name)
            chunks.append(self._write(group, tensors))
        manifest = self._manifest(model, config, graph, chunks)
        put_manifest(self.output_dir, manifest)
        self._progress(len(chunks), len(chunks), "")
        return {
            "model_name": manifest.model,
            "chunks": [chunk.name for chunk in chunks],
            "manifest": str(self.output_dir / NAME),
            "revision": manifest.revision,
            "stored_bytes": sum(chunk.stored_bytes for chunk in chunks),
            "largest_layer_bytes": manifest.largest_layer_bytes,
        }

    def _load(self) -> tuple[nn.Module, Any]:
        """The whole model in float32, from safetensors only; nothing may be missing, nothing is made up."""
        transformers = transformers_module()
        name = self.model_name
        local = Path(name).is_dir()
        if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):  # no name of the hub
            raise ManifestError(f"{name}: no such folder; give one with config.json and safetensors files")
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            kind = self._kind(config)
            model, found = kind.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            where = "in this folder" if local else "in a folder or on the hub"
            raise ManifestError(
                f"{name}: no model can be read {where} ({_first_line(error)}); give one with config.json and "
                "safetensors files (pickles are never read)"
            ) from None
        missing = sorted({*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])})
        if missing:
            some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            raise ManifestError(
                f"{name}: got no weights for {some}, expected all of a {kind.__name__}; name the class that was saved "
                "with --architecture"
            )
        return model.eval(), config

    def _kind(self, config: Any) -> Any:
        names = [self._architecture] if self._architecture else list(config.architectures or ())
        if not names:
            return transformers_module().AutoModel
        return model_class(names[0])

    def _write(self, group: Group, tensors: dict[str, torch.Tensor]) -> Chunk:
        memory = sum(tensors[name].numel() * 4 for name in group.tensors)
        if group.role == "rows":
            data, rows = self._pack_rows(tensors[group.tensors[0]])
        else:
            data = chunk_file.pack_tensors(quantise({name: tensors[name] for name in group.tensors}, self.dtype))
            rows = None
        packed = chunk_file.compress(data) if self.compress and rows is None else None
        stored = data if packed is None else packed
        digest = hashlib.sha256(stored).hexdigest()
        _write_file(self.output_dir / file_name(digest), stored)
        return Chunk(
            name=group.name, role=group.role, digest=digest, stored_bytes=len(stored), raw_bytes=len(data),
            memory_bytes=memory, encoding="none" if packed is None else "zstd", tensors=group.tensors, rows=rows,
        )  # fmt: skip

    def _pack_rows(self, matrix: torch.Tensor) -> tuple[bytes, RowBlocks]:
        packed = pack_rows(matrix, self.dtype)
        count, row_bytes = packed.shape
        block_rows = max(1, min(self.rows_over_bytes, BLOCK_BYTES) // row_bytes, -(-count // MAX_BLOCKS))
        data = chunk_file.pack_tensors({"rows": packed})
        blocks = packed.numpy()
        digests = b"".join(
            hashlib.sha256(blocks[start : start + block_rows].tobytes()).digest()
            for start in range(0, count, block_rows)
        )
        return data, RowBlocks(
            rows=count, dim=matrix.shape[1], row_bytes=row_bytes, block_rows=block_rows,
            data_offset=chunk_file.header_bytes(data), digests=digests,
        )  # fmt: skip

    def _manifest(self, model: nn.Module, config: Any, graph: LayerGraph, chunks: list[Chunk]) -> Manifest:
        generation = getattr(model, "generation_config", None)
        name = Path(self.model_name).resolve().name if Path(self.model_name).is_dir() else self.model_name
        manifest = Manifest(
            format=FORMAT, model=name, model_type=config.model_type, architecture=type(model).__name__,
            dtype=self.dtype,  # type: ignore[arg-type]
            config=_plain(model.config), generation={} if generation is None else _plain(generation),
            stacks=graph.stacks, chunks=tuple(chunks), tied=graph.tied,
        )  # fmt: skip
        return sign(manifest, self._signing_key) if self._signing_key else manifest


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it: keys are texts; without the place that it was read from."""
    values: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    values.pop("_name_or_path", None)
    return values


def _write_file(path: Path, data: bytes) -> None:
    """Whole or not at all; a chunk of that name and size that is there is the same chunk unless it was damaged."""
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == path.stem:
        os.utime(path)  # as young as what is written now: needed by a manifest that is not there yet
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars: the caller shows one."""
    logging = transformers_module().utils.logging
    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()
