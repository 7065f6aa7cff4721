"""An encoder's first blocks within a byte budget: what stays, what passes, and that nothing waits for what may stay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import LayerUnavailable
from streamsplit.weights.delta import make_delta
from streamsplit.weights.revision import encoder_weights, load_weights
from streamsplit.weights.streaming.buffers import aligned_buffer
from streamsplit.weights.streaming.encoder import encoder_chunks
from streamsplit.weights.streaming.encoder_delta import with_deltas
from streamsplit.weights.streaming.held_blocks import HeldBlocks, plan_blocks
from streamsplit.weights.streaming.layers import Arrival
from streamsplit.weights.streaming.manifest import Chunk

SETTINGS = EncoderSettings(name="mobilenet", width=0.25, embedding_dim=16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 30), st.data())
def test_a_plan_keeps_as_much_as_lets_the_rest_pass_one_at_a_time(sizes: list[int], budget: int, data: st.DataObject):
    block = data.draw(st.integers(0, len(sizes)))
    keep, through = plan_blocks(sizes, budget, block)

    def fits(held: int, until: int) -> bool:
        return all(sum(sizes[:held]) + passing <= budget for passing in [0, *sizes[held:until]])

    assert keep <= through <= block and fits(keep, through)
    assert through == block or not any(fits(held, through + 1) for held in range(through + 2))
    assert keep == through or not fits(keep + 1, through)
    assert plan_blocks(sizes, None, block) == (block, block)


class Post:
    """A source whose chunks come when the test says so."""

    def __init__(self, chunks: dict[str, bytes], *, at_once: bool = False) -> None:
        self.chunks, self.at_once = chunks, at_once
        self.asked: list[str] = []
        self.under_way: dict[str, tuple[Chunk, Future[np.ndarray]]] = {}

    def fetch(self, chunk: Chunk) -> Future[np.ndarray]:
        future: Future[np.ndarray] = Future()
        self.asked.append(chunk.name)
        self.under_way[chunk.name] = chunk, future
        if self.at_once or chunk.role == "resident":
            self.deliver(chunk.name)
        return future

    def deliver(self, name: str, error: Exception | None = None) -> None:
        chunk, future = self.under_way.pop(name)
        if error is not None:
            future.set_exception(error)
            return
        data = self.chunks[chunk.digest]
        buffer = aligned_buffer(len(data))
        buffer[:] = np.frombuffer(data, np.uint8)
        future.set_result(buffer)

    def fetch_rows(self, chunk: Chunk, blocks: list[int]) -> list[Future[np.ndarray]]:
        raise AssertionError("an encoder has no rows")


def budget_for(encoder: SplitEncoder, blocks: int) -> int:
    return sum(array.nbytes for b in range(1, blocks + 1) for array in encoder.block_weights(b).values())


@functools.cache
def plain_names() -> frozenset[str]:
    plain = make_encoder(SETTINGS)
    return frozenset(name for block in range(1, plain.num_blocks + 1) for name in plain.block_weights(block))


def held_bytes(encoder: SplitEncoder) -> int:
    return sum(tensor.nbytes for name, tensor in encoder.state_dict().items() if name in plain_names())


def windows() -> torch.Tensor:
    return torch.randn(1, 128, 100, generator=torch.Generator().manual_seed(1)) - 6


def test_blocks_that_may_stay_are_never_waited_for():
    plain = make_encoder(SETTINGS)
    manifest, chunks = encoder_chunks(plain, SETTINGS)
    post = Post(chunks)
    blocks = HeldBlocks(manifest, post, budget_bytes=budget_for(plain, 3))
    assert (blocks.room, blocks.held, blocks.reach(3)) == (3, 0, 0)
    assert set(post.under_way) == {"block.1", "block.2"}  # two at a time
    post.deliver("block.2")
    assert blocks.reach(3) == 0 and set(post.under_way) == {"block.1", "block.3"}
    post.deliver("block.1")
    assert blocks.reach(3) == 2
    post.deliver("block.3")
    assert blocks.reach(3) == 3 == blocks.held and not post.under_way
    with torch.no_grad():
        crossing = blocks.run_to(windows(), 3, lambda coming: pytest.fail("waited"))
        assert torch.equal(crossing.h, plain.forward_to(windows(), 3).h)


def test_blocks_beyond_the_budget_pass_one_at_a_time_and_the_budget_and_one_block_is_the_most():
    plain = make_encoder(SETTINGS)
    manifest, chunks = encoder_chunks(plain, SETTINGS)
    budget, post = budget_for(plain, 3), Post(chunks, at_once=True)
    blocks = HeldBlocks(manifest, post, budget_bytes=budget)
    blocks.reach(6)
    most = []
    advance = blocks.encoder.advance
    blocks.encoder.advance = lambda crossing, block: (
        most.append(held_bytes(blocks.encoder)),
        advance(crossing, block),
    )[1]
    with torch.no_grad():
        for cut in (6, 6, 1, 3, 6):
            while blocks.reach(cut) < cut:
                pass
            crossing = blocks.run_to(windows(), cut, lambda coming: coming.done())
            assert torch.equal(crossing.h, plain.forward_to(windows(), cut).h)
    assert budget * 0.5 < max(most) <= budget
    assert post.asked.count("block.1") == 1 and post.asked.count("block.6") == 3


def test_a_passing_block_that_is_late_or_fails_is_named_and_nothing_is_made_up():
    plain = make_encoder(SETTINGS)
    manifest, chunks = encoder_chunks(plain, SETTINGS)
    post = Post(chunks)
    blocks = HeldBlocks(manifest, post, budget_bytes=budget_for(plain, 3))
    keep = plan_blocks(
        [budget_for(plain, b) - budget_for(plain, b - 1) for b in range(1, 14)], budget_for(plain, 3), 6
    ).keep
    while blocks.reach(6) < 6:
        for name in list(post.under_way):
            post.deliver(name)
    late = f"block.{keep + 1}"
    with torch.no_grad():
        with pytest.raises(LayerUnavailable, match=rf"layer '{late}'.*on its way"):
            blocks.run_to(windows(), 6, lambda coming: coming.done())
        post.deliver(late, ConnectionError("gone"))
        assert blocks.reach(6) == keep and "gone" in str(blocks.trouble)
        assert not post.under_way  # not asked for again before it is forgotten
        blocks.forget_trouble()
        assert blocks.reach(6) == 6 and set(post.under_way) == {late}


def test_a_passing_block_that_came_after_its_window_is_there_for_the_next_one():
    plain = make_encoder(SETTINGS)
    manifest, chunks = encoder_chunks(plain, SETTINGS)
    post = Post(chunks)
    blocks = HeldBlocks(manifest, post, budget_bytes=budget_for(plain, 3))
    sizes = [budget_for(plain, b) - budget_for(plain, b - 1) for b in range(1, 14)]
    first = plan_blocks(sizes, budget_for(plain, 3), 6).keep + 1
    wait = _delivering(post)
    while blocks.reach(6) < 6:
        wait(Future())
    wait(Future())
    with torch.no_grad():
        with pytest.raises(LayerUnavailable, match=rf"block\.{first + 1}'.*on its way"):
            blocks.run_to(windows(), 6, lambda coming: coming.done())
        wait(Future())  # after its window
        assert blocks.reach(6) == 6 and set(post.under_way) == {f"block.{first}"}
        assert torch.equal(blocks.run_to(windows(), 6, wait).h, plain.forward_to(windows(), 6).h)
        assert post.asked.count(f"block.{first + 1}") == 1 and not post.under_way
        assert blocks.reach(first - 1) == first - 1 and not blocks._coming  # nobody wants them any more


def _delivering(post: Post) -> Callable[[Arrival], bool]:
    def wait(coming: Arrival) -> bool:
        for name in list(post.under_way):
            post.deliver(name)
        return coming.done()

    return wait


@pytest.mark.parametrize("seed", range(2))
def test_late_blocks_and_those_on_their_way_take_no_more_than_the_budget_and_one_block(seed: int):
    plain = make_encoder(SETTINGS)
    manifest, chunks = encoder_chunks(plain, SETTINGS)
    budget, post, most, rng = budget_for(plain, 3), Post(chunks), [0], np.random.default_rng(seed)
    blocks = HeldBlocks(manifest, post, budget_bytes=budget)
    size = {chunk.name: chunk.memory_bytes for chunk in manifest.chunks}
    ran, fetch = 0, post.fetch

    def look() -> None:
        here = sum(blocks._sizes[b - 1] for b, coming in blocks._coming.items() if coming.done())
        most.append(held_bytes(blocks.encoder) + here + sum(size[name] for name in post.under_way))

    def watched(chunk: Chunk) -> Future[np.ndarray]:
        future = fetch(chunk)
        look()
        return future

    def sometimes(coming: Arrival) -> bool:
        for name in list(post.under_way):
            if rng.random() < 0.7:
                post.deliver(name)
        return coming.done()

    post.fetch = watched
    advance = blocks.encoder.advance
    blocks.encoder.advance = lambda crossing, block: (look(), advance(crossing, block))[1]
    with torch.no_grad():
        expected = plain.forward_to(windows(), 6).h
        for _ in range(40):
            sometimes(Future())
            if blocks.reach(6) == 6:
                try:
                    ran += torch.equal(blocks.run_to(windows(), 6, sometimes).h, expected)
                except LayerUnavailable as error:
                    assert "on its way" in str(error)
    assert ran and max(most) <= budget + max(blocks._sizes[:6])


def test_another_revision_takes_over_the_blocks_that_are_the_same():
    plain = make_encoder(SETTINGS)
    manifest, chunks = encoder_chunks(plain, SETTINGS)
    old = HeldBlocks(manifest, Post(chunks, at_once=True), budget_bytes=None)
    while old.reach(13) < 13:
        pass
    with torch.no_grad():
        next(plain.blocks[4].parameters()).add_(0.1)
    manifest, new_chunks = encoder_chunks(plain, SETTINGS)
    assert len(set(new_chunks) - set(chunks)) == 1
    post = Post(new_chunks, at_once=True)
    new = HeldBlocks(manifest, post, budget_bytes=None)
    new.take_over(old)
    assert held_bytes(old.encoder) == 0 and new.held == 4
    while new.reach(13) < 13:
        pass
    assert post.asked == ["resident", "block.5"]
    with torch.no_grad():
        assert torch.equal(new.run_to(windows(), 13, lambda coming: False).h, plain(windows()))


def test_old_blocks_that_a_delta_applies_to_stay_in_the_budget_until_their_successors_have_come():
    plain = make_encoder(SETTINGS)
    before, chunks = encoder_chunks(plain, SETTINGS)
    budget = budget_for(plain, 4)
    old = HeldBlocks(before, Post(chunks, at_once=True), budget_bytes=budget)
    while old.reach(4) < 4:
        pass
    moved = {name: array + np.float32(1e-3) for name, array in encoder_weights(plain).items()}
    whole, exact = make_delta(encoder_weights(plain), moved)
    load_weights(plain, exact)
    after, new_chunks = encoder_chunks(plain, SETTINGS)
    after, deltas = with_deltas(before, after, chunks | new_chunks, whole)
    assert {delta.kind for delta in after.deltas} == {"int8"} and len(after.deltas) == len(after.chunks)
    assert sum(map(len, deltas.values())) < 0.35 * sum(map(len, new_chunks.values()))
    post = Post(new_chunks)
    new = HeldBlocks(after, post, budget_bytes=budget)
    assert new.old_bytes(before.chunk("block.2").digest) is None
    new.take_over(old)
    for name in ("block.1", "block.4"):
        assert new.old_bytes(before.chunk(name).digest).tobytes() == chunks[before.chunk(name).digest]
    assert new.resident_bytes(after.chunk("resident").digest).tobytes() == new_chunks[after.chunk("resident").digest]
    assert new.held == 0 and new.held_bytes == budget
    for number in range(1, 5):
        assert new.reach(4) == number - 1 and set(post.under_way) == {f"block.{number}"}  # one at a time
        assert new.held_bytes == budget
        post.deliver(f"block.{number}")
    assert new.reach(4) == 4 and new.held_bytes == budget and new.old_bytes(before.chunk("block.1").digest) is None
    with torch.no_grad():
        assert torch.equal(new.run_to(windows(), 4, lambda coming: False).h, plain.forward_to(windows(), 4).h)


def test_old_blocks_give_way_to_what_is_deeper_and_to_passing_ones():
    plain = make_encoder(SETTINGS)
    before, chunks = encoder_chunks(plain, SETTINGS)
    budget = budget_for(plain, 4)
    whole, exact = make_delta(
        encoder_weights(plain), {name: array + np.float32(1e-3) for name, array in encoder_weights(plain).items()}
    )
    load_weights(plain, exact)
    after, new_chunks = encoder_chunks(plain, SETTINGS)
    after, _ = with_deltas(before, after, chunks | new_chunks, whole)
    for cut in (2, 6):
        old = HeldBlocks(before, Post(chunks, at_once=True), budget_bytes=budget)
        while old.reach(4) < 4:
            pass
        post = Post(new_chunks, at_once=True)
        new = HeldBlocks(after, post, budget_bytes=budget)
        new.take_over(old)
        with torch.no_grad():
            while new.reach(cut) < cut:
                assert new.held_bytes <= budget
            crossing = new.run_to(windows(), cut, lambda coming: coming.done())
            assert torch.equal(crossing.h, plain.forward_to(windows(), cut).h)
        kept = [name for name in ("block.3", "block.4") if new.old_bytes(before.chunk(name).digest) is not None]
        assert kept == (["block.3", "block.4"] if cut == 2 else [])
