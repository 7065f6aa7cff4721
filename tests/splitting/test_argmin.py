"""Neurosurgeon's rule against a search over all rows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import COSTS, small_table

from streamsplit.errors import CutError
from streamsplit.splitting.argmin import ArgminPolicy
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.greedy import LEAST_FREE_CPU
from streamsplit.splitting.observation import Observation

TABLE = small_table()


@settings(deadline=None)
@given(st.floats(0.0, 0.95), st.floats(1e3, 1e9), st.floats(0.0, 2000.0), st.booleans())
def test_it_takes_the_row_with_the_least_latency(cpu, bps, rtt_ms, keeps):
    seen = Observation(
        cpu=cpu, bandwidth_bps=bps, bandwidth_age_ms=0.0, rtt_ms=rtt_ms, rtt_age_ms=0.0, backlog_bytes=10**6
    )  # fmt: skip
    decision = ArgminPolicy(keeps=keeps).decide(seen, TABLE)
    times = {
        text: edge / max(1 - cpu, LEAST_FREE_CPU) + (size * 8000 / bps + rtt_ms + server if text != "4:none" else 0.0)
        for text, (edge, server, size, _, _) in COSTS.items()
        if keeps or text != "4:none"
    }
    assert times[str(decision.cut)] == pytest.approx(min(times.values()))


def test_known_answers():
    fast = Observation(bandwidth_bps=1e9, bandwidth_age_ms=0.0, rtt_ms=10.0, rtt_age_ms=0.0)
    assert str(ArgminPolicy().decide(fast, TABLE).cut) == "0:logmel-int8"
    assert str(ArgminPolicy().decide(fast._replace(bandwidth_bps=3e4), TABLE).cut) == "4:embedding-int8"
    assert str(ArgminPolicy(keeps=True).decide(fast._replace(bandwidth_bps=3e4), TABLE).cut) == "4:none"
    assert str(ArgminPolicy(minimise="energy").decide(fast, TABLE).cut) == "0:logmel-int8"
    assert "10" in ArgminPolicy().decide(fast, TABLE).reason


def test_nothing_is_sent_over_a_link_that_is_down_when_keeping_is_faster():
    down = Observation(link_up=False, bandwidth_bps=1e3, bandwidth_age_ms=0.0, rtt_ms=100.0)
    assert str(ArgminPolicy().decide(down, TABLE).cut) == "4:none"


def test_a_tie_goes_to_the_shallower_cut():
    equal = small_table(dict.fromkeys(("2:int8", "3:int8", "4:embedding-int8"), (1.0, 1.0, 100.0, 1.0, 1.0)))
    assert ArgminPolicy().decide(Observation(), equal).cut == Cut.parse("2:int8")


def test_what_is_not_known_is_assumed_and_never_an_error():
    for seen in (Observation(), Observation(cpu=math.nan, bandwidth_bps=math.inf, rtt_ms=-1.0)):
        assert ArgminPolicy().decide(seen, TABLE).cut in TABLE.cuts


def test_a_table_without_a_cut_that_sends_and_an_unknown_target_are_one_clear_error():
    with pytest.raises(CutError, match="without a cut that sends"):
        ArgminPolicy().decide(Observation(), TABLE.only([Cut.parse("4:none")]))
    with pytest.raises(CutError, match="expected 'latency' or 'energy'"):
        ArgminPolicy(minimise="bytes")
