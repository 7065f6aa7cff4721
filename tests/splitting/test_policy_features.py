"""What a learned policy looks at: known numbers, and finite ones whatever the device says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import BLOCKS, COSTS, observations, small_table

from streamsplit.splitting.cut import Cut
from streamsplit.splitting.features import STATE_FEATURES, FeatureBuilder
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation

TABLE = small_table()
SETTINGS = GreedySettings(deadline_ms=1000.0)
BUILDER = FeatureBuilder(TABLE, TABLE.cuts, SETTINGS)
SEEN = Observation(
    uncertainty=math.log(8), cpu=0.25, memory=0.5, battery=0.75, thermal=0.125, bandwidth_bps=1e7,
    bandwidth_age_ms=1000.0, rtt_ms=100.0, rtt_age_ms=0.0, backlog_bytes=125_000, last_cut=Cut.parse("2:int8"),
    blocks=1, power_mw=500.0, waiting_ms=200.0, last_rtt_ms=150.0,
)  # fmt: skip


def state(observation: Observation, builder: FeatureBuilder = BUILDER) -> dict[str, float]:
    return dict(zip(STATE_FEATURES, builder.build(observation)[0].tolist(), strict=False))


def test_a_known_state_gives_known_numbers():
    expected = {
        "doubt": 0.5, "doubt unknown": 0.0, "cpu": 0.25, "memory": 0.5, "battery": 0.75, "thermal": 0.125,
        "log10 Mbit/s": 1.0, "trust in the rate": 1.0, "log10 age of the rate in s": 0.0,
        "log10 round trip in 100 ms": 0.0, "log backlog in 100 ms": math.log(2.0),  # 1 Mbit at 10 Mbit/s
        "log bytes waiting in kB": math.log(126.0), "link up": 1.0, "last block": 0.5, "last was audio": 0.0,
        "last was features": 0.0, "last was an activation": 1.0, "last was an embedding": 0.0, "last was nothing": 0.0,
        "blocks on the device": 0.25, "log10 interval in 500 ms": 0.0,
        "log10 full path in intervals": math.log10(28.5 / 500),
        "log10 energy of the full path in 100 mJ": math.log10(0.325), "recent power in W": 0.5,
        "log time without an answer in 100 ms": math.log(3.0), "log10 newest round trip in 100 ms": math.log10(1.5),
    }  # fmt: skip
    assert state(SEEN) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("cut", "kind"),
    [("0:pcm16", "audio"), ("0:opus24", "audio"), ("0:logmel-int8", "features"), ("2:fp16", "an activation"),
     ("4:embedding-int8", "an embedding"), ("3:exit-fp16", "an embedding"), ("4:none", "nothing")],
)  # fmt: skip
def test_the_last_cut_is_of_one_kind(cut, kind):
    kinds = {name: value for name, value in state(SEEN._replace(last_cut=Cut.parse(cut))).items() if "last was" in name}
    assert kinds == {name: float(name == f"last was {kind}") for name in kinds}
    assert sum(value for name, value in state(SEEN._replace(last_cut=None)).items() if name.startswith("last")) == 0


def test_the_costs_are_the_greedy_policys_above_the_least():
    vector, costs = BUILDER.build(SEEN)
    greedy = [cost.total for cost in GreedyPolicy(SETTINGS).costs(SEEN, TABLE)]
    assert costs.tolist() == pytest.approx(greedy)
    above = np.minimum(np.array(greedy) - min(greedy), 12.0) / 4.0
    np.testing.assert_allclose(vector[len(STATE_FEATURES) :], above, rtol=1e-5, atol=1e-6)
    assert BUILDER.costs(SEEN).tolist() == costs.tolist()


def test_actions_keep_their_places_when_the_table_lacks_some():
    wanted = (Cut.parse("4:none"), Cut.parse("1:int8"), Cut.parse("0:opus24"))
    vector, costs = FeatureBuilder(TABLE, wanted, SETTINGS).build(SEEN)
    whole = dict(zip(map(str, TABLE.cuts), BUILDER.costs(SEEN), strict=True))
    assert costs.tolist() == pytest.approx([whole["4:none"], math.inf, whole["0:opus24"]])
    assert vector[-2] == pytest.approx(3.0)  # as dear as anything gets


@settings(deadline=None)
@given(observations, st.sets(st.sampled_from(sorted(COSTS)), min_size=1))
def test_every_number_is_finite_and_bounded_whatever_is_observed(observation, present):
    part = TABLE.only([Cut.parse(text) for text in present])
    vector, costs = FeatureBuilder(part, TABLE.cuts, SETTINGS).build(observation)
    assert vector.dtype == np.float32 and vector.shape == (len(STATE_FEATURES) + len(TABLE.cuts),)
    assert np.isfinite(vector).all() and np.abs(vector).max() <= 100.0
    assert np.isfinite(costs).sum() == len(present) and not np.isnan(costs).any()
    assert vector[STATE_FEATURES.index("last block")] <= 1.0


@settings(deadline=None)
@given(observations)
def test_a_rate_of_unknown_age_counts_as_an_old_one(observation):
    unknown = state(observation._replace(bandwidth_age_ms=math.nan))
    assert unknown == state(observation._replace(bandwidth_age_ms=math.inf))
    assert unknown["trust in the rate"] == 0.0


def test_a_device_with_all_blocks_and_one_that_says_so_look_the_same():
    assert state(SEEN._replace(blocks=-1)) == state(SEEN._replace(blocks=BLOCKS))
