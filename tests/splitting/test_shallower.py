"""In place of a cut without its blocks: the deepest that is allowed, and never one that the constraints forbid."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.shallower import Shallower
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.wire.media import Encoding

ROWS = [
    CutRow(Cut(0, Encoding.PCM16), 1, 1, 16_000, 1, 1.0, 1.0),
    CutRow(Cut(0, Encoding.LOGMEL_INT8), 1, 1, 6_400, 1, 1.0, 0.8),
    CutRow(Cut(3, Encoding.FP32), 1, 1, 9_000, 1, 1.0, 0.4, fetch_bytes=30_000),
    CutRow(Cut(3, Encoding.INT8), 1, 1, 2_300, 1, 0.999, 0.4, fetch_bytes=30_000),
    CutRow(Cut(3, Encoding.EXIT_FP16), 1, 1, 280, 1, 0.5, 0.1, fetch_bytes=30_000),
    CutRow(Cut(6, Encoding.INT8), 1, 1, 2_000, 1, 1.0, 0.2, fetch_bytes=90_000),
    CutRow(Cut(13, Encoding.NONE), 1, 1, 0, 1, 1.0, 0.0, fetch_bytes=400_000),
]
TABLE = make_table(CutTable("mobilenet", "pi4", 1.0, 13, tuple(ROWS), {}))
NOW = Observation(bandwidth_bps=1e6, bandwidth_age_ms=0.0, uncertainty=1.0)


@pytest.mark.parametrize(("blocks", "depth"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (13, 6)])
def test_the_deepest_cut_that_sends_is_taken(blocks: int, depth: int):
    cut = Shallower(ConstraintSettings()).deepest(TABLE, blocks, NOW)
    assert cut is not None and cut.block == depth


def test_of_several_at_that_depth_the_cheapest_is_taken():
    costs = {str(c.row.cut): c.total for c in GreedyPolicy().costs(NOW, TABLE) if c.row.cut.block == 0}
    assert str(Shallower(ConstraintSettings()).deepest(TABLE, 0, NOW)) == min(costs, key=costs.__getitem__)


def test_what_the_constraints_forbid_is_not_done_for_want_of_weights():
    private = Shallower(ConstraintSettings(max_privacy_risk=0.5))
    assert private.deepest(TABLE, 2, NOW) is None
    assert private.deepest(TABLE, 4, NOW).block == 3
    assert Shallower(ConstraintSettings(raw_audio=False)).deepest(TABLE, 0, NOW) == Cut(0, Encoding.LOGMEL_INT8)


def test_the_smallest_of_some_blocks_is_no_exit_that_is_not_sure():
    assert Shallower(ConstraintSettings()).smallest(TABLE, {0, 3}, NOW) == Cut(3, Encoding.INT8)
    assert Shallower(ConstraintSettings(max_privacy_risk=0.05)).smallest(TABLE, {0, 3}, NOW) is None


def test_weights_that_pass_through_for_every_window_are_counted_for_every_window():
    settings = GreedySettings(traffic=2.0, traffic_bytes=1000.0, latency=1.0, latency_ms=100.0)
    policy = GreedyPolicy(settings)
    free = policy.expectation(NOW, TABLE).total
    room = policy.expectation(NOW._replace(blocks=3, room=3), TABLE).total
    expected = [0.0] * 5 + [120.0 + 480.0 / 100.0, 740.0 + 2960.0 / 100.0]  # 2 a kB; 8 ms a kB at 1 Mbit/s
    assert np.allclose(room - free, expected)
    assert np.array_equal(policy.expectation(NOW._replace(blocks=13, room=13), TABLE).total, free)
