"""Old chunks are thrown away, needed ones never, whatever happens in between."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from streamsplit.cli.main import main
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import ConfigError, ManifestError
from streamsplit.server.chunk_pruning import Pruned, prune
from streamsplit.server.chunk_storage import FolderStorage, StoredFile
from streamsplit.weights.streaming.encoder import chunk_encoder
from streamsplit.weights.streaming.folder_lock import sole_writer
from streamsplit.weights.streaming.history import NAME as HISTORY
from streamsplit.weights.streaming.manifest import FORMAT, NAME, Chunk, Delta, Manifest, encode_manifest, file_name
from streamsplit.weights.streaming.publish import publish, read_history, remember

SMALL = EncoderSettings(name="mobilenet", width=0.25, embedding_dim=16)


def write(folder: Path, text: str) -> tuple[str, int]:
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / file_name(digest)).write_text(text)
    return digest, len(text)


def serve(folder: Path, number: int, before: Manifest | None) -> Manifest:
    """Revision `number`: one chunk that all share, one of its own, and a delta from the one before."""
    chunks = []
    for name, text in (("layer.0", "the same in all"), ("layer.1", f"revision {number} alone")):
        digest, size = write(folder, text)
        chunks.append(
            Chunk(
                name=name, role="layer", digest=digest, stored_bytes=size, raw_bytes=size, memory_bytes=4,
                tensors=(f"{name}.weight",),
            )
        )  # fmt: skip
    deltas: tuple[Delta, ...] = ()
    if before is not None:
        digest, size = write(folder, f"delta {number}")
        base = before.chunk("layer.1").digest
        deltas = (Delta(base=base, target=chunks[1].digest, digest=digest, stored_bytes=size, kind="exact"),)
        remember(folder, before)
    manifest = Manifest(
        format=FORMAT, model="m", model_type="bert", architecture="BertModel", dtype="fp32", config={},
        stacks=("layer",), chunks=tuple(chunks), deltas=deltas,
    )  # fmt: skip
    (folder / NAME).write_bytes(encode_manifest(manifest))
    return manifest


@pytest.fixture
def served(tmp_path: Path) -> tuple[Path, list[Manifest]]:
    manifests: list[Manifest] = []
    for number in range(4):
        manifests.append(serve(tmp_path, number, manifests[-1] if manifests else None))
    (tmp_path / "notes.txt").write_text("not ours")
    return tmp_path, manifests


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == ".chunk"}


def needed(*manifests: Manifest) -> set[str]:
    return {file_name(digest) for manifest in manifests for digest in manifest.stored}


def locked(folder: Path) -> AbstractContextManager[None]:
    return sole_writer(folder, "weights publish")


def pruned(folder: Path, keep: int, grace_s: float = 0.0) -> Pruned:
    return asyncio.run(prune(FolderStorage(folder), keep=keep, now_s=time.time() + 10, grace_s=grace_s))


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_what_the_present_revision_and_some_before_it_need_stays(served, keep: int):
    folder, manifests = served
    all_files, kept = names(folder), needed(*manifests[-(keep + 1) :])
    freed = sum((folder / name).stat().st_size for name in all_files - kept)
    result = pruned(folder, keep)
    assert names(folder) == kept
    assert result == (len(all_files - kept), freed, len(kept), min(keep, 3) + 1)
    assert (folder / "notes.txt").exists()
    assert pruned(folder, keep).files == 0


def test_young_files_stay_for_they_may_be_on_the_way_to_a_manifest(served):
    folder, _ = served
    before = names(folder)
    assert pruned(folder, 0, grace_s=3600).files == 0 and names(folder) == before


def test_a_crash_in_the_middle_loses_nothing_that_is_needed(served, monkeypatch: pytest.MonkeyPatch):
    folder, manifests = served
    delete, done = FolderStorage.delete, []

    async def dies(self: FolderStorage, name: str) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(name)
        await delete(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStorage, "delete", dies)
        with pytest.raises(KeyboardInterrupt):
            pruned(folder, 1)
    assert needed(*manifests[-2:]) < names(folder)
    pruned(folder, 1)
    assert names(folder) == needed(*manifests[-2:])


def test_who_publishes_while_a_place_is_pruned_is_told_and_no_manifest_names_a_chunk_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, other = make_encoder(SMALL), make_encoder(SMALL.replace(seed=1))
    chunk_encoder(first, SMALL, tmp_path)
    present = chunk_encoder(other, SMALL, tmp_path)  # the first's chunks are old now
    listed, may_delete = threading.Event(), threading.Event()
    delete = FolderStorage.delete

    async def late(self: FolderStorage, name: str) -> None:
        listed.set()
        assert await asyncio.to_thread(may_delete.wait, 20)
        await delete(self, name)

    monkeypatch.setattr(FolderStorage, "delete", late)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(pruned, tmp_path, 0)
        try:
            assert listed.wait(20)
            with pytest.raises(ManifestError, match=rf"'weights prune', process {os.getpid()} on .* is changing it"):
                chunk_encoder(first, SMALL, tmp_path)  # needs what is about to be deleted
            with pytest.raises(ManifestError, match="is changing it"):
                publish(tmp_path, tmp_path)
        finally:
            may_delete.set()
        assert under_way.result(20).files > 10
    manifest = chunk_encoder(first, SMALL, tmp_path)
    assert needed(manifest) <= names(tmp_path)
    assert [past.revision for past in read_history(tmp_path).revisions] == [present.revision]


def test_what_is_published_past_the_lock_ends_a_pruning(served, monkeypatch: pytest.MonkeyPatch):
    folder, manifests = served
    listing = FolderStorage.files

    async def then_another(self: FolderStorage) -> list[StoredFile]:
        found = await listing(self)
        (folder / "new").write_bytes(encode_manifest(manifests[0]))  # as a copy from elsewhere would
        (folder / "new").replace(folder / NAME)
        return found

    monkeypatch.setattr(FolderStorage, "files", then_another)
    with pytest.raises(ManifestError, match="replaced meanwhile"):
        pruned(folder, 0)
    assert needed(*manifests) == names(folder)


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path):
    code = (
        "import pathlib, sys, time\nfrom streamsplit.weights.streaming.folder_lock import sole_writer\n"
        "with sole_writer(pathlib.Path(sys.argv[1]), 'weights chunk'):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ManifestError, match=f"'weights chunk', process {holder.pid} on"), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / ".lock").read_text()  # is left behind, and locks nothing
    with locked(tmp_path), pytest.raises(ManifestError, match="is changing it"), locked(tmp_path):
        pass


def test_without_a_readable_manifest_or_history_nothing_is_deleted(served):
    folder, _ = served
    before = names(folder)
    (folder / HISTORY).write_text("{")
    with pytest.raises(ManifestError, match=r"history\.json does not parse"):
        pruned(folder, 1)
    (folder / HISTORY).unlink()
    (folder / NAME).rename(folder / "elsewhere")
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        pruned(folder, 0)
    with pytest.raises(ConfigError, match="'keep': got -1"):
        pruned(folder, -1)
    assert names(folder) == before


def test_the_command_says_what_it_freed(served, capsys: pytest.CaptureFixture[str]):
    folder, manifests = served
    assert main(["weights", "prune", "--chunks-dir", str(folder), "--keep", "0", "--grace-s", "0"]) == 0
    said = capsys.readouterr().out
    assert "5 files deleted" in said and "3 stay, for this revision and 0 before it" in said
    assert names(folder) == needed(manifests[-1]) and read_history(folder).revisions == ()
