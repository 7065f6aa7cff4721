"""Weight transfers: resumable, checked, and none that nobody wants."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.edge.sync import WeightDownload, WeightUpload
from streamsplit.errors import RevisionError
from streamsplit.weights.delta import Packed, make_delta, pack_full
from streamsplit.weights.revision import Weights, revision_of
from streamsplit.weights.transfer import WeightTransfer, chunks
from streamsplit.wire.messages import Revision, WeightsRequest

RNG = np.random.default_rng(3)
OLD: Weights = {"a": RNG.normal(size=(64, 400)).astype(np.float32), "b": np.zeros(7, np.float32)}
NEW: Weights = {name: value + RNG.normal(size=value.shape).astype(np.float32) * 0.01 for name, value in OLD.items()}
HAVE = revision_of(OLD)


def delta() -> tuple[Packed, Revision]:
    packed = make_delta(OLD, NEW)
    announced = Revision(revision=revision_of(packed.result), base=HAVE, kind="delta", total_bytes=len(packed.payload))
    return packed, announced


def test_a_delta_comes_down_in_chunks_and_survives_a_reconnect() -> None:
    packed, announced = delta()
    download = WeightDownload(HAVE)
    assert download.announced(announced) == WeightsRequest(revision=announced.revision, base=HAVE, offset=0)
    pieces = list(chunks(packed.payload, announced.revision, size=5000))
    assert len(pieces) > 4
    for piece in pieces[:2]:
        assert download.chunk(piece) is None
        assert download.confirmation() == download.resume()
    assert download.chunk(pieces[0]) is None and download.confirmation() is None  # nothing new
    assert download.resume() == WeightsRequest(revision=announced.revision, base=HAVE, offset=10_000)
    arrived = None
    for piece in chunks(packed.payload, announced.revision, 10_000, size=5000):
        arrived = download.chunk(piece)
    assert arrived is not None and not download.under_way
    whole = WeightsRequest(revision=announced.revision, base=HAVE, offset=len(packed.payload))
    assert download.confirmation() == whole
    weights = arrived.finish(OLD)
    assert revision_of(weights) == announced.revision
    assert download.received_bytes == len(packed.payload)
    download.adopted(announced.revision)
    assert download.announced(announced) is None


def test_full_weights_need_no_base() -> None:
    packed = pack_full(NEW)
    announced = Revision(
        revision=revision_of(packed.result), base="", kind="full", total_bytes=len(packed.payload), breaks_space=True
    )
    download = WeightDownload(HAVE)
    download.announced(announced)
    arrived = [download.chunk(piece) for piece in chunks(packed.payload, announced.revision)][-1]
    assert arrived is not None and arrived.announced.breaks_space
    assert revision_of(arrived.finish(OLD)) == announced.revision


def test_announcing_the_same_again_goes_on_instead_of_starting_over() -> None:
    packed, announced = delta()
    download = WeightDownload(HAVE)
    download.announced(announced)
    download.chunk(next(chunks(packed.payload, announced.revision, size=5000)))
    assert download.announced(announced) == WeightsRequest(revision=announced.revision, base=HAVE, offset=5000)


def test_a_newer_revision_replaces_one_under_way_and_stray_chunks_are_ignored() -> None:
    packed, announced = delta()
    download = WeightDownload(HAVE)
    download.announced(announced)
    newer = pack_full(OLD | {"b": np.ones(7, np.float32)})
    second = Revision(revision=revision_of(newer.result), base="", kind="full", total_bytes=len(newer.payload))
    assert download.announced(second) == WeightsRequest(revision=second.revision, base="", offset=0)
    assert download.chunk(next(chunks(packed.payload, announced.revision))) is None
    assert download.confirmation() is None  # of the one given up: the server must not take it for a start
    assert download.wanted == second.revision
    arrived = [download.chunk(piece) for piece in chunks(newer.payload, second.revision)][-1]
    assert arrived is not None and revision_of(arrived.finish(OLD)) == second.revision


def test_a_delta_on_another_base_is_not_asked_for() -> None:
    _, announced = delta()
    assert WeightDownload("f" * 64).announced(announced) is None


def test_a_damaged_transfer_is_refused_and_after_three_failures_left_alone() -> None:
    packed, announced = delta()
    download = WeightDownload(HAVE)
    broken = bytearray(packed.payload)
    broken[-3] ^= 0xFF
    for _ in range(3):
        assert download.announced(announced) is not None
        arrived = [download.chunk(piece) for piece in chunks(bytes(broken), announced.revision)][-1]
        with pytest.raises(RevisionError):
            arrived.finish(OLD)
        download.failed(announced.revision)
    assert download.announced(announced) is None


def test_local_learning_goes_up_when_the_server_asks_and_goes_on_after_a_reconnect() -> None:
    packed, announced = delta()
    upload = WeightUpload()
    offer = upload.offer(packed, announced.revision, HAVE, samples=40)
    assert (offer.kind, offer.base, offer.samples, offer.total_bytes) == ("local", HAVE, 40, len(packed.payload))
    assert upload.next_chunk(0) is None  # not asked yet
    receiver = WeightTransfer(offer.revision, offer.total_bytes, offer.base)

    def request() -> WeightsRequest:
        return WeightsRequest(revision=offer.revision, base=HAVE, offset=receiver.received)

    assert upload.requested(request(), 0)
    first = upload.next_chunk(0)
    assert first is not None and upload.next_chunk(1) is None  # one chunk until it is confirmed
    receiver.add(first[0])
    assert upload.reconnected() == offer
    assert upload.next_chunk(2) is None  # a new connection: the server asks again
    now_ms = 10
    assert upload.requested(request(), now_ms)
    while not receiver.complete:
        piece = upload.next_chunk(now_ms)
        assert piece is not None
        data, last = piece
        assert receiver.add(data) == last
        assert upload.under_way  # the server may not have it yet
        now_ms += 5
        assert upload.requested(request(), now_ms)
    assert revision_of(receiver.finish(OLD)) == offer.revision
    assert not upload.under_way and upload.sent_bytes == len(packed.payload)
    assert upload.requested(request(), now_ms)  # a confirmation that is late is no error


def test_an_upload_whose_last_confirmation_was_lost_is_offered_again_and_then_over() -> None:
    packed, announced = delta()
    upload = WeightUpload()
    offer = upload.offer(packed, announced.revision, HAVE, samples=40)
    assert upload.reconnected() == offer
    assert upload.requested(WeightsRequest(revision=offer.revision, base=HAVE, offset=offer.total_bytes), 0)
    assert not upload.under_way and upload.next_chunk(0) is None


def test_a_request_for_something_else_is_refused() -> None:
    packed, announced = delta()
    upload = WeightUpload()
    assert not upload.requested(WeightsRequest(revision="a" * 64), 0)
    upload.offer(packed, announced.revision, HAVE, 1)
    assert not upload.requested(WeightsRequest(revision="a" * 64), 0)
    assert not upload.requested(WeightsRequest(revision=announced.revision, offset=len(packed.payload) + 1), 0)
