"""Chunked transfers: in order, resumed, doubled, damaged."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.errors import RevisionError
from streamsplit.weights.delta import make_delta, pack_full
from streamsplit.weights.revision import Weights, revision_of
from streamsplit.weights.transfer import CHUNK_DATA_BYTES, Chunk, WeightTransfer, chunks, pack_chunk, unpack_chunk
from streamsplit.wire.types import MAX_CHUNK_BYTES


def weights(seed: int) -> Weights:
    return {"w": np.random.default_rng(seed).standard_normal((100, 300)).astype(np.float32)}


@pytest.fixture
def full() -> tuple[bytes, str, Weights]:
    payload, result = pack_full(weights(0))
    return payload, revision_of(result), result


def test_full_weights_arrive_in_chunks_of_at_most_32_kib(full):
    payload, revision, result = full
    sent = list(chunks(payload, revision))
    assert len(sent) == -(-len(payload) // CHUNK_DATA_BYTES) > 1
    assert max(map(len, sent)) == MAX_CHUNK_BYTES == 32 << 10
    transfer = WeightTransfer(revision, len(payload))
    assert [transfer.add(chunk) for chunk in sent] == [False] * (len(sent) - 1) + [True]
    assert np.array_equal(transfer.finish()["w"], result["w"])


def test_a_delta_arrives_on_its_base_and_on_no_other():
    base = weights(0)
    payload, result = make_delta(base, weights(1))
    transfer = WeightTransfer(revision_of(result), len(payload), revision_of(base))
    for chunk in chunks(payload, revision_of(result), size=1000):
        transfer.add(chunk)
    for wrong in (None, weights(2)):
        with pytest.raises(RevisionError, match="was not given"):
            transfer.finish(wrong)
    assert np.array_equal(transfer.finish(base)["w"], result["w"])


def test_a_lost_connection_resumes_at_the_next_byte_and_repeats_do_no_harm(full):
    payload, revision, result = full
    transfer = WeightTransfer(revision, len(payload))
    sent = list(chunks(payload, revision, size=7_000))
    for chunk in sent[:3]:
        transfer.add(chunk)
    assert transfer.received == 21_000 and not transfer.complete
    transfer.add(sent[1])  # replayed
    assert transfer.received == 21_000
    for chunk in chunks(payload, revision, offset=transfer.received - 500, size=5_000):  # overlaps what is here
        transfer.add(chunk)
    assert np.array_equal(transfer.finish()["w"], result["w"])


def test_gaps_overruns_and_other_revisions_are_refused_and_do_no_harm(full):
    payload, revision, result = full
    transfer = WeightTransfer(revision, len(payload))
    sent = list(chunks(payload, revision))
    with pytest.raises(RevisionError, match="expected 0: ask again"):
        transfer.add(sent[1])
    with pytest.raises(RevisionError, match="announced"):
        transfer.add(pack_chunk(Chunk(int(revision[:8], 16), len(payload) - 1, b"xx")))
    with pytest.raises(RevisionError, match="of revision"):
        transfer.add(next(chunks(payload, "f" * 64)))
    assert transfer.received == 0
    for chunk in sent:
        transfer.add(chunk)
    assert np.array_equal(transfer.finish()["w"], result["w"])


def test_damage_is_noticed_and_the_transfer_starts_over(full):
    payload, revision, result = full
    transfer = WeightTransfer(revision, len(payload))
    damaged = payload[:-1] + bytes([payload[-1] ^ 1])
    for chunk in chunks(damaged, revision):
        transfer.add(chunk)
    with pytest.raises(RevisionError, match="damaged"):
        transfer.finish()
    assert transfer.received == 0
    for chunk in chunks(payload, revision):
        transfer.add(chunk)
    assert np.array_equal(transfer.finish()["w"], result["w"])


def test_a_sound_payload_of_another_revision_with_the_same_prefix_is_refused(full):
    payload, revision, _ = full
    other = revision[:8] + "0" * 56
    transfer = WeightTransfer(other, len(payload))
    for chunk in chunks(payload, revision):
        transfer.add(chunk)
    with pytest.raises(RevisionError, match="announced was"):
        transfer.finish()


def test_finishing_early_is_refused(full):
    payload, revision, _ = full
    transfer = WeightTransfer(revision, len(payload))
    with pytest.raises(RevisionError, match="got 0 of"):
        transfer.finish()


@pytest.mark.parametrize("total", [0, -1, (1 << 30) + 1])
def test_senseless_announcements_are_refused(total):
    with pytest.raises(RevisionError, match="transfer of"):
        WeightTransfer("0" * 64, total)
    with pytest.raises(RevisionError, match="hex digits"):
        WeightTransfer("0" * 63, 100)


@pytest.mark.parametrize("size", [0, 7, 8, MAX_CHUNK_BYTES + 1])
def test_chunks_of_senseless_size_are_refused(size):
    with pytest.raises(RevisionError, match="chunk of"):
        unpack_chunk(bytes(size))


def test_chunk_bytes_are_prefix_offset_and_data():
    assert pack_chunk(Chunk(0x01020304, 5, b"ab")) == bytes([4, 3, 2, 1, 5, 0, 0, 0]) + b"ab"
    assert unpack_chunk(bytes([4, 3, 2, 1, 5, 0, 0, 0]) + b"ab") == Chunk(0x01020304, 5, b"ab")
    for data in (b"", bytes(CHUNK_DATA_BYTES + 1)):
        with pytest.raises(RevisionError, match="chunk of"):
            pack_chunk(Chunk(0, 0, data))


def test_offsets_outside_of_the_payload_are_refused(full):
    payload, revision, _ = full
    assert list(chunks(payload, revision, offset=len(payload))) == []
    for offset in (-1, len(payload) + 1):
        with pytest.raises(RevisionError, match="offset"):
            list(chunks(payload, revision, offset=offset))
