"""A new revision beside an old one: the chunks that changed, and the deltas that lead to them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from streamsplit.errors import ConfigError, ManifestError
from streamsplit.weights.streaming.folder_lock import sole_writer
from streamsplit.weights.streaming.history import NAME as HISTORY
from streamsplit.weights.streaming.history import History, decode_history, encode_history
from streamsplit.weights.streaming.manifest import (
    NAME,
    Chunk,
    Delta,
    Manifest,
    encode_manifest,
    file_name,
    read_manifest,
    sign,
)
from streamsplit.weights.streaming.revision_delta import WORTH, exact_delta, int8_delta
from streamsplit.weights.streaming.signer import check_signer

KINDS = ("exact", "int8")


def publish(
    served: str | Path, new: str | Path, *, kind: Literal["exact", "int8"] = "exact", signing_key: bytes = b"",
    replace_signer: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Makes `served`, a folder of chunks, serve the model in `new`, another one; its manifest changes last.

    With 'int8' the weights that are published are those of the old revision plus the rounded change. Gives 'revision',
    'changed' (names), 'chunk_bytes' (of what changed) and 'delta_bytes' (where there is a delta, instead). Raises
    ManifestError where the two are not the same model in the same form, where one is signed and the result would not
    be with the same key (unless `replace_signer`), and while another process changes the folder; ConfigError for an
    unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"'kind': got '{kind}', allowed {', '.join(KINDS)}")
    served, new = Path(served), Path(new)
    read_manifest(served)  # says what is wrong with a place that is no folder of chunks
    with sole_writer(served, "weights publish"):
        old, wanted = read_manifest(served), read_manifest(new)
        _check_pair(old, wanted)
        for folder, manifest in ((served, old), (new, wanted)):
            check_signer(folder, manifest, signing_key, replace_signer)
        return _replace(served, new, old, wanted, kind, signing_key)


def _replace(served: Path, new: Path, old: Manifest, wanted: Manifest, kind: str, signing_key: bytes) -> dict[str, Any]:
    chunks: list[Chunk] = []
    deltas: list[Delta] = []
    changed: list[str] = []
    for before, after in zip(old.chunks, wanted.chunks, strict=True):
        chunk, delta = after, None
        if before.digest != after.digest:
            changed.append(after.name)
            chunk, delta = _publish(served, new, before, after, kind)
        chunks.append(chunk)
        if delta is not None:
            deltas.append(delta)
    manifest = msgspec.structs.replace(wanted, chunks=tuple(chunks), deltas=tuple(deltas), signature=None)
    if signing_key:
        manifest = sign(manifest, signing_key)
    put_manifest(served, manifest)
    small = {delta.target: delta.stored_bytes for delta in deltas}
    moved = [chunk for chunk in chunks if chunk.name in changed]
    return {
        "revision": manifest.revision,
        "changed": changed,
        "chunk_bytes": sum(chunk.stored_bytes for chunk in moved),
        "delta_bytes": sum(small.get(chunk.digest, chunk.stored_bytes) for chunk in moved),
    }


def _check_pair(old: Manifest, new: Manifest) -> None:
    forms = [
        (m.model_type, m.architecture, m.dtype, m.tied, [(c.name, c.role, c.tensors) for c in m.chunks])
        for m in (old, new)
    ]
    if forms[0] != forms[1]:
        raise ManifestError(
            f"got {new.architecture} in {new.dtype}, expected the {old.architecture} in {old.dtype} that is served, "
            "with the same chunks; serve another model from another folder"
        )


def _publish(served: Path, new: Path, before: Chunk, after: Chunk, kind: str) -> tuple[Chunk, Delta | None]:
    """The chunk as it is published, and its delta, where one is worth it; both written."""
    base, wanted = _read(served, before), _read(new, after)
    data: bytes | None = None
    chunk, used = after, "exact"
    if before.encoding == after.encoding == "none":
        rounded = int8_delta(base, wanted) if kind == "int8" and after.rows is None else None
        if rounded is not None and len(rounded[0]) < WORTH * len(wanted):
            (data, wanted), used = rounded, "int8"
            chunk = msgspec.structs.replace(
                after, digest=hashlib.sha256(wanted).hexdigest(), stored_bytes=len(wanted), raw_bytes=len(wanted)
            )
        else:
            data = exact_delta(base, wanted)
    write_whole(served, file_name(chunk.digest), wanted)
    if data is None:
        return chunk, None
    digest = hashlib.sha256(data).hexdigest()
    write_whole(served, file_name(digest), data)
    delta = Delta(base=before.digest, target=chunk.digest, digest=digest, stored_bytes=len(data), kind=used)  # type: ignore[arg-type]
    return chunk, delta


def _read(folder: Path, chunk: Chunk) -> bytes:
    path = folder / file_name(chunk.digest)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error}); chunk the model again") from None
    if hashlib.sha256(data).hexdigest() != chunk.digest:
        raise ManifestError(f"{path}: is damaged; chunk the model again")
    return data


def read_history(folder: str | Path) -> History:
    """The revisions that a folder served before; none where nobody wrote them down. Raises ManifestError."""
    path = Path(folder) / HISTORY
    try:
        return decode_history(path.read_bytes())
    except FileNotFoundError:
        return History()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error})") from None


def remember(folder: Path, manifest: Manifest) -> None:
    """Writes down what a revision needs, before its manifest is replaced."""
    write_whole(folder, HISTORY, encode_history(read_history(folder).remembering(manifest)))


def put_manifest(folder: Path, manifest: Manifest) -> None:
    """Makes a manifest, whose chunks are there, the folder's present one; the one before goes into its history."""
    if (folder / NAME).is_file():
        remember(folder, read_manifest(folder))
    write_whole(folder, NAME, encode_manifest(manifest))


def write_whole(folder: Path, name: str, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    partial = folder / f".{name}.partial"
    partial.write_bytes(data)
    partial.replace(folder / name)
