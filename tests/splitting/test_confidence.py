"""The rule of the early exit: compared with the newest of its own block, unsure while little is known."""

from __future__ import annotations

import math

import numpy as np

from streamsplit.splitting.confidence import ExitRule, ExitSettings


def test_about_the_chosen_share_of_a_steady_stream_is_confident():
    values = np.random.default_rng(0).normal(2.0, 0.5, 3000)
    rule = ExitRule(ExitSettings(percentile=30.0))
    sure = [rule.confident(4, value) for value in values]
    assert not any(sure[:20]) and abs(np.mean(sure[20:]) - 0.3) < 0.03
    assert values[sure].max() < np.percentile(values, 45)


def test_each_block_is_held_against_itself_and_the_stream_is_followed():
    rule = ExitRule(ExitSettings(percentile=50.0, warm_up_windows=2, memory_windows=8))
    for _ in range(10):
        rule.confident(2, 1.0)
        rule.confident(9, 5.0)
    assert rule.confident(9, 4.9) and not rule.confident(2, 4.9)
    drifted = [rule.confident(2, 3.0) for _ in range(10)]
    assert not drifted[0] and drifted[-1]


def test_nothing_is_confident_that_is_unknown_or_new():
    rule = ExitRule(ExitSettings(warm_up_windows=1))
    assert not rule.confident(1, math.nan) and not rule.confident(1, 1.0) and rule.confident(1, 1.0)
    rule.restart()
    assert not rule.confident(1, 0.5)
