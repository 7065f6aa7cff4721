"""What the simulation keeps in memory in place of the live parts: the same answers to the same calls."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from streamsplit.audio.windows import Window
from streamsplit.edge.payload import PieceChain
from streamsplit.edge.queue import OfflineQueue, QueueSettings
from streamsplit.simulation.estimate import WatchedLink
from streamsplit.simulation.queue import MemoryQueue
from streamsplit.simulation.workload import _Chain
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.link import LinkEstimator, LinkSettings
from streamsplit.wire.events import Acked
from streamsplit.wire.media import Encoding, Resolution
from streamsplit.wire.types import FrameType


def test_the_memory_queue_answers_as_the_file_does(tmp_path: Path) -> None:
    """The SQLite queue is the oracle, over 400 random calls with both bounds reached."""
    settings = QueueSettings(max_windows=12, max_bytes=10_000, max_awaited=8)
    live, memory = OfflineQueue(tmp_path / "queue.sqlite", settings), MemoryQueue(settings)
    rng = random.Random(0)
    refused = 0
    for window in range(400):
        what = rng.random()
        if what < 0.6:
            payload = bytes(rng.randrange(20, 2_000))
            call = (FrameType.FEATURES, 1000 * window, window, payload)
            expected = live.accept(*call)
            assert memory.accept(*call) == expected
            refused += expected is None
        elif what < 0.8:
            through = live.next_sequence - rng.randrange(0, 12)
            assert memory.acknowledge(through) == live.acknowledge(through)
        else:
            sequence = live.next_sequence - rng.randrange(1, 12)
            assert memory.take_result(sequence) == live.take_result(sequence)
        names = ("next_sequence", "oldest_sequence", "pending", "pending_bytes", "results_from")
        assert [getattr(memory, name) for name in names] == [getattr(live, name) for name in names]
        after, limit = live.next_sequence - rng.randrange(0, 14), rng.randrange(1, 5)
        assert memory.after(after, limit) == live.after(after, limit)
    assert refused > 20
    live.close()


def test_a_watched_link_sees_what_a_timer_would_have_seen() -> None:
    """Oracle: an estimator asked at every look, in the order of time, between the same events."""
    rng = random.Random(1)
    events: list[tuple[float, int]] = sorted((rng.uniform(0, 5_000), number) for number in range(1, 60))
    asked = sorted(rng.uniform(0, 5_500) for _ in range(80))
    watched, timed = WatchedLink(LinkSettings(), 100.0), LinkEstimator(LinkSettings())
    seen, look, at = timed.estimate(0.0), 100.0, 0

    def tell(link: WatchedLink | LinkEstimator, now_ms: float, number: int) -> None:
        if number == 1:
            link.on_rtt(40.0, now_ms)
        link.on_sent(number, 1_000 + 40 * number, now_ms)
        if number % 3 == 0:
            link.on_ack(Acked(number - 1, 0, 5.0, 0, int(now_ms), now_ms, 40.0), now_ms)

    for question in asked:
        while at < len(events) and events[at][0] <= question:
            now_ms, number = events[at][0], at + 1
            while look <= now_ms:
                seen, look = timed.estimate(look), look + 100.0
            tell(timed, now_ms, number)
            tell(watched, now_ms, number)
            at += 1
        while look <= question:
            seen, look = timed.estimate(look), look + 100.0
        np.testing.assert_equal(watched.estimate(question), seen)


def test_a_window_leaves_out_what_the_live_chain_leaves_out() -> None:
    """Oracle: the live chain, over random cuts, losses and refusals."""
    rng = random.Random(2)
    live, lean = PieceChain(100, 50), _Chain()
    coded = (Encoding.PCM16, Encoding.OPUS24, Encoding.TINYSTREAM, Encoding.LOGMEL_INT8)
    cuts = [Cut(0, e) for e in coded] + [Cut(5, Encoding.INT8)]
    nothing = np.zeros(0, np.float32)
    outcomes = set()
    for index in range(800):
        starts = rng.random() < 0.05
        window = Window(index, nothing, nothing, Resolution.FULL, 0.0, 100 if starts else 50)
        if starts:
            lean.break_off()
        cut = rng.choice(cuts)
        if cut.block == 0:
            continues = live.new_frames(window, cut.encoding) == 50
            assert lean.continues(index, cut) == continues
            outcomes.add(continues)
        what = rng.random()
        if what < 0.75:
            live.accepted(window, cut)
            lean.accepted(index, cut)
        elif what < 0.85:
            live.break_off()
            lean.break_off()
    assert outcomes == {True, False}
