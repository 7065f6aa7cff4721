"""The cache: its budget holds, and it follows the order of access; optimal replacement is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import ConfigError
from streamsplit.weights.streaming.cache import ByteCache


def play(cache: ByteCache[str], names: list[str], size: int = 1) -> int:
    """Hits of one user that puts in what it did not find."""
    before = cache.hits
    for name in names:
        if (value := cache.get(name, size)) is None:
            cache.put(name, f"value of {name}", size)
        else:
            assert value == f"value of {name}"
    return cache.hits - before


def best_hits(names: list[str], room: int) -> int:
    """Belady's rule with the choice not to keep: what no cache of this room can beat."""
    held: set[str] = set()
    hits = 0
    for at, name in enumerate(names):
        if name in held:
            hits += 1
            continue
        held.add(name)
        if len(held) > room:
            later = names[at + 1 :]
            held.remove(max(held, key=lambda held_name: later.index(held_name) if held_name in later else len(names)))
    return hits


def lru_hits(names: list[str], room: int) -> int:
    held: list[str] = []
    hits = 0
    for name in names:
        hits += name in held
        held = [*[other for other in held if other != name], name][-room:]
    return hits


def test_of_twelve_layers_in_a_cycle_with_room_for_six_half_are_found():
    layers = [f"layer.{i}" for i in range(12)]
    cache: ByteCache[str] = ByteCache(6)
    assert lru_hits(layers * 20, 6) == 0
    assert play(cache, layers) == 0
    assert [play(cache, layers) for _ in range(19)] == [6] * 19
    assert cache.rule == "pin" and cache.evictions == 0


def test_who_comes_back_to_what_it_just_had_is_served_as_by_lru():
    rng = np.random.default_rng(0)
    names, at = [], 0.0
    for _ in range(4000):  # a working set that wanders
        at += 0.02
        names.append(str(int(at + abs(rng.normal(0, 2)))))
    cache: ByteCache[str] = ByteCache(8)
    assert play(cache, names) > 0.93 * lru_hits(names, 8)
    assert cache.rule == "lru"


def test_a_new_cycle_after_another_is_pinned_in_its_turn():
    cache: ByteCache[str] = ByteCache(4)
    play(cache, [f"a{i}" for i in range(8)] * 10)
    second = [f"b{i}" for i in range(8)]
    play(cache, second * 20)
    assert play(cache, second * 5) == 5 * 4


def test_what_is_out_of_date_is_not_found_and_keeps_its_place_for_what_replaces_it():
    cache: ByteCache[int] = ByteCache(3)
    for name in "abc":
        cache.get(name, 1)
        cache.put(name, 1, 1)
    cache.expire("b")
    assert "b" not in cache and cache.get("b", 1) is None and cache.used_bytes == 3
    assert cache.put("b", 2, 1) == [] and cache.get("b", 1) == 2 and cache.get("a", 1) == 1
    cache.expire("c")
    cache._pin.names.pop("c")
    assert cache.put("b", 3, 2, staying={"c"}) == [] and "b" not in cache
    cache._pin.names["b"] = 2
    assert cache.put("b", 3, 2) == ["c"] and cache.get("b", 2) == 3 and cache.used_bytes == 3


def test_when_all_fit_all_are_found():
    layers = [f"layer.{i}" for i in range(12)]
    cache: ByteCache[str] = ByteCache(12)
    play(cache, layers)
    assert play(cache, layers * 3) == 36 and cache.hit_rate == pytest.approx(0.75)


def test_what_is_larger_than_the_budget_is_never_kept_and_drives_nothing_out():
    cache: ByteCache[str] = ByteCache(10)
    cache.put("small", "x", 4)
    assert cache.put("large", "y", 11) == [] and "large" not in cache and "small" in cache
    with pytest.raises(ConfigError, match="got -1, allowed >= 0"):
        ByteCache(-1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7)), max_size=300), st.integers(0, 20))
def test_the_budget_holds_after_every_access(accesses: list[tuple[int, int]], budget: int):
    cache: ByteCache[int] = ByteCache(budget)
    held: dict[str, int] = {}
    for number, size in accesses:
        name = str(number)
        value = cache.get(name, size)
        assert value is None or value == held[name]
        if value is None:
            before = {other for other in held if other in cache}
            left = cache.put(name, size, size)
            held[name] = size
            assert before - {other for other in held if other in cache} - {name} == set(left)
        assert cache.used_bytes == sum(held[other] for other in held if other in cache) <= budget


@given(st.lists(st.integers(0, 9), max_size=120), st.integers(1, 8))
def test_no_order_of_access_gives_more_hits_than_can_be_had(numbers: list[int], room: int):
    names = [str(number) for number in numbers]
    assert play(ByteCache(room), names) <= best_hits(names, room)


@given(st.integers(2, 14), st.integers(1, 8), st.integers(2, 6))
def test_every_cycle_is_served_as_well_as_can_be_without_knowing_the_future(length: int, room: int, passes: int):
    cycle = [str(number) for number in range(length)]
    expected = min(room, length) * (passes - 1)
    assert play(ByteCache(room), cycle * passes) == expected
