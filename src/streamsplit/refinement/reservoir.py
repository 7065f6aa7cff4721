"""Reservoir: training windows of all devices in fp16, a fair sample of the streams within a byte budget."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from streamsplit.errors import EncoderError

_OVERHEAD_BYTES = 400  # Python objects around one stored window


@dataclass(slots=True)
class StoredWindow:
    """One training window: log-mel features (block 0) or what crossed after `block`, in fp16."""

    device: str
    window: int
    block: int
    h: np.ndarray  # float16: [f, t] at block 0, [c, f, t] after block k >= 1
    partial: np.ndarray | None = None  # float32 [d], k >= 1
    revision: str = ""  # that computed the crossing; "" at block 0
    label: str = ""
    starts: bool = False  # first after a gap or of a new clip
    target: np.ndarray | None = None  # float16 [d]: the frozen embedding, once computed
    at_ms: float = 0.0  # when it arrived: tells it from another window of this number, of an earlier count

    @property
    def held_bytes(self) -> int:
        """Memory that this window takes, its target (present or to come) included."""
        partial = 0 if self.partial is None else 3 * self.partial.nbytes // 2
        return self.h.nbytes + (partial or 256) + _OVERHEAD_BYTES


class Reservoir:
    """Keeps whole stretches of consecutive windows, because positives are windows close in time.

    A stretch is `stretch` windows of one device. Each has a fixed random priority (a hash of seed, device and number);
    when the budget is full the lowest priorities go and never come back. What stays is a uniform sample of all
    stretches that ever came, the same whatever order they came in.
    """

    def __init__(self, budget_bytes: int, seed: int = 0, stretch: int = 16) -> None:
        self.budget_bytes, self.seed, self.stretch = budget_bytes, seed, stretch
        self.held_bytes = 0
        self.refused_below = -1  # stretches with a priority up to this one do not fit
        self._stretches: dict[tuple[str, int], dict[int, StoredWindow]] = {}
        self._by_priority: list[tuple[int, str, int]] = []

    def add(self, item: StoredWindow) -> bool:
        """Takes a window; False where its stretch is not in the sample. A window number that comes again means that the
        device counts anew: the old stretch goes."""
        if item.h.dtype != np.float16 or not np.isfinite(item.h).all():
            raise EncoderError(f"got {item.h.dtype} with NaN or out of half precision's range, expected finite float16")
        key = (item.device, item.window // self.stretch)
        priority = self._priority(key)
        if priority <= self.refused_below:
            return False
        held = self._stretches.get(key)
        if held is not None and item.window in held:
            self.held_bytes -= sum(old.held_bytes for old in held.values())
            held.clear()
        if held is None:
            held = self._stretches[key] = {}
            heapq.heappush(self._by_priority, (priority, *key))
        held[item.window] = item
        self.held_bytes += item.held_bytes
        while self.held_bytes > self.budget_bytes and self._by_priority:
            lowest, device, number = heapq.heappop(self._by_priority)
            self.refused_below = max(self.refused_below, lowest)
            gone = self._stretches.pop((device, number))
            self.held_bytes -= sum(old.held_bytes for old in gone.values())
        return key in self._stretches

    def pairs(
        self, rng: np.random.Generator, count: int, *, min_gap: int = 1, max_gap: int = 4, decay: float = 0.5
    ) -> list[tuple[StoredWindow, StoredWindow]]:
        """Up to `count` pairs (window, temporally close window of the same device), anchors all different.

        Devices take turns, so a chatty one does not crowd out the others. The gap g is drawn ~ exp(-decay g) from the
        partners that are there, in both directions, not across a window that `starts`; windows without a partner are
        passed over.
        """
        by_device = self._by_device()
        anchors = {device: list(rng.permutation(sorted(held))) for device, held in by_device.items()}
        pairs: list[tuple[StoredWindow, StoredWindow]] = []
        turn = list(rng.permutation(sorted(anchors)))
        while turn and len(pairs) < count:
            for name in list(turn):
                device = str(name)
                held = by_device[device]
                partner = None
                while anchors[device] and partner is None:
                    anchor = int(anchors[device].pop())
                    partner = _draw_partner(rng, held, anchor, min_gap, max_gap, decay)
                if partner is None:
                    turn.remove(name)
                    continue
                pairs.append((held[anchor], held[partner]))
                if len(pairs) == count:
                    break
        return pairs

    def partner(
        self, rng: np.random.Generator, item: StoredWindow, *, min_gap: int = 1, max_gap: int = 4, decay: float = 0.5
    ) -> StoredWindow | None:
        """A window close in time to `item`, which need not be held itself, drawn as in `pairs`; None without one."""
        held: dict[int, StoredWindow] = {}
        first, last = item.window - max_gap, item.window + max_gap
        for number in range(first // self.stretch, last // self.stretch + 1):
            held.update(self._stretches.get((item.device, number), {}))
        held[item.window] = item
        partner = _draw_partner(rng, held, item.window, min_gap, max_gap, decay)
        return None if partner is None else held[partner]

    def items(self) -> Iterator[StoredWindow]:
        """Every window, by device and number."""
        for device, held in sorted(self._by_device().items()):
            for window in sorted(held):
                assert held[window].device == device
                yield held[window]

    def label(self, device: str, window: int, at_ms: float, label: str) -> bool:
        """Names a window that arrived at `at_ms`; False where it is not held."""
        item = self._stretches.get((device, window // self.stretch), {}).get(window)
        if item is None or item.at_ms != at_ms:
            return False
        item.label = label
        return True

    def drop(self, unwanted: Callable[[StoredWindow], bool]) -> int:
        """Removes every window for which `unwanted` is true; gives their number."""
        gone = 0
        for held in self._stretches.values():
            for window in [window for window, item in held.items() if unwanted(item)]:
                self.held_bytes -= held.pop(window).held_bytes
                gone += 1
        return gone

    def devices(self) -> list[str]:
        """Devices with at least one window, sorted."""
        return sorted(self._by_device())

    def __len__(self) -> int:
        return sum(len(held) for held in self._stretches.values())

    def _by_device(self) -> dict[str, dict[int, StoredWindow]]:
        by_device: dict[str, dict[int, StoredWindow]] = {}
        for (device, _), held in self._stretches.items():
            if held:
                by_device.setdefault(device, {}).update(held)
        return by_device

    def _priority(self, key: tuple[str, int]) -> int:
        text = f"{self.seed}\0{key[0]}\0{key[1]}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _draw_partner(
    rng: np.random.Generator, held: dict[int, StoredWindow], anchor: int, min_gap: int, max_gap: int, decay: float
) -> int | None:
    gaps: list[int] = []
    for side in (-1, 1):
        for size in range(1, max_gap + 1):
            entered = held.get(anchor + size if side > 0 else anchor - size + 1)  # what lies after the border crossed
            if entered is not None and entered.starts:
                break
            if size >= min_gap and anchor + side * size in held:
                gaps.append(side * size)
    if not gaps:
        return None
    law = np.exp(-decay * np.abs(gaps))
    return anchor + int(rng.choice(gaps, p=law / law.sum()))
