"""A cache with a budget in bytes that keeps what its user's order of access makes worth keeping.

A forward pass asks for the layers 0, 1, ... L-1 and begins again. The least recently used one is then the one that is
needed next: with room for 6 of 12, LRU never hits, and keeping the first 6 hits 6 times. Other users come back to
what they just had, and there LRU is right. So both rules are played on names and sizes alone, and the one that would
have hit more of late decides what is really kept.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Generic, Literal, TypeVar

from streamsplit.errors import ConfigError

V = TypeVar("V")
Rule = Literal["pin", "lru"]
WINDOW = 64  # accesses by which the rules are judged


class ByteCache(Generic[V]):
    """Values by name, of at most `budget_bytes` together."""

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ConfigError(f"'cache_bytes': got {budget_bytes}, allowed >= 0")
        self.budget_bytes = budget_bytes
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()  # the most recently used one last
        self._used_bytes = 0
        self._expired: set[str] = set()
        self._pin, self._lru = _Played(budget_bytes, "pin"), _Played(budget_bytes, "lru")

    def __contains__(self, name: str) -> bool:
        return name in self._values and name not in self._expired

    def __len__(self) -> int:
        return len(self._values)

    @property
    def used_bytes(self) -> int:
        """Size of what is kept, expired or not."""
        return self._used_bytes

    @property
    def rule(self) -> Rule:
        """What decides at present; 'pin' until LRU would have hit more often."""
        return "lru" if self._lru.recent_hits > self._pin.recent_hits else "pin"

    @property
    def hit_rate(self) -> float:
        """Share of accesses that found their value; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    def get(self, name: str, size_bytes: int) -> V | None:
        """The value, or None; counts an access to something of this size."""
        self._pin.access(name, size_bytes)
        self._lru.access(name, size_bytes)
        found = self._values.get(name)
        if found is None or name in self._expired:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(name)
        return found[0]

    def expire(self, name: str) -> None:
        """The value is out of date: it is not found any more, but keeps its place for the one that replaces it."""
        if name in self._values:
            self._expired.add(name)

    def put(self, name: str, value: V, size_bytes: int, staying: Collection[str] = ()) -> list[str]:
        """Keeps a value if the rule wants it; gives the names that had to leave. See `name in cache` for the rest.

        `staying` are names that may not leave.
        """
        self.drop(name)
        evicted: list[str] = []
        if size_bytes > self.budget_bytes:
            return evicted
        wanted = self._pin.names
        stale = [held for held in self._values if held not in wanted] if name in wanted else []
        stale = [held for held in stale if held not in staying]
        while self._used_bytes + size_bytes > self.budget_bytes:
            oldest = next((held for held in self._values if held not in staying), None)
            if self.rule == "lru" and oldest is not None:
                leaving = oldest
            elif self.rule == "pin" and stale:
                leaving = stale.pop(0)
            else:
                return evicted
            self.drop(leaving)
            self.evictions += 1
            evicted.append(leaving)
        self._values[name] = (value, size_bytes)
        self._used_bytes += size_bytes
        return evicted

    def drop(self, name: str) -> None:
        """Forgets a value, if it is there."""
        self._expired.discard(name)
        found = self._values.pop(name, None)
        if found is not None:
            self._used_bytes -= found[1]


class _Played:
    """One rule, played without values."""

    def __init__(self, budget_bytes: int, rule: Rule) -> None:
        self.names: OrderedDict[str, int] = OrderedDict()
        self._budget_bytes = budget_bytes
        self._rule = rule
        self._used_bytes = 0
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)

    @property
    def recent_hits(self) -> int:
        return sum(self._outcomes)

    def access(self, name: str, size_bytes: int) -> None:
        hit = name in self.names
        self._outcomes.append(hit)
        if hit:
            self.names.move_to_end(name)
            return
        if self._rule == "pin" and len(self._outcomes) == WINDOW and not any(self._outcomes):
            self.names.clear()  # what was pinned is not asked for any more
            self._used_bytes = 0
            self._outcomes.clear()
        if size_bytes > self._budget_bytes:
            return
        while self._rule == "lru" and self._used_bytes + size_bytes > self._budget_bytes:
            self._used_bytes -= self.names.popitem(last=False)[1]
        if self._used_bytes + size_bytes <= self._budget_bytes:
            self.names[name] = size_bytes
            self._used_bytes += size_bytes
