"""Throws away chunks that no revision of late needs. What is needed is never touched, so a crash loses nothing."""

from __future__ import annotations

from typing import NamedTuple

from streamsplit.errors import ConfigError, ManifestError
from streamsplit.server.chunk_storage import FolderStorage
from streamsplit.server.object_storage import ObjectStorage
from streamsplit.weights.streaming.history import CHUNK_FILE, encode_history

GRACE_S = 3600.0  # a file younger than this may belong to a revision that is being published


class Pruned(NamedTuple):
    """What became of a place."""

    files: int  # that were deleted
    bytes: int
    kept_files: int
    kept_revisions: int  # the present one included


async def prune(storage: FolderStorage | ObjectStorage, *, keep: int, now_s: float, grace_s: float = GRACE_S) -> Pruned:
    """Deletes chunks and deltas that neither the present revision nor the `keep` before it need.

    `now_s` is Unix time. Raises ManifestError where manifest or history cannot be read, or another process changes the
    folder: then nothing is deleted; and where the manifest is another one all at once, as in a bucket, which has no
    lock: then nothing more is.
    """
    if keep < 0:
        raise ConfigError(f"'keep': got {keep}, allowed >= 0")
    await storage.manifest()  # says what is wrong with a place that holds no chunks
    with storage.sole_writer("weights prune"):
        return await _prune(storage, keep, now_s, grace_s)


async def _prune(storage: FolderStorage | ObjectStorage, keep: int, now_s: float, grace_s: float) -> Pruned:
    manifest = await storage.manifest()
    known = await storage.history()
    history = known.only(keep)
    needed = history.needed(manifest)
    found = [file for file in await storage.files() if CHUNK_FILE.fullmatch(file.name)]
    old = [file for file in found if file.name not in needed and now_s - file.modified_s >= grace_s]
    if history != known:
        await storage.write_history(encode_history(history))
    for file in old:
        if await storage.changed():
            raise ManifestError("the manifest was replaced meanwhile; what it needs is looked up anew: prune again")
        await storage.delete(file.name)
    return Pruned(len(old), sum(file.size for file in old), len(found) - len(old), len(history.revisions) + 1)
