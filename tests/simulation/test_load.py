"""Recorded processor load: what is replayed, what a monitor shows of it, and damaged recordings."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.simulation.load import STEP_S, constant_load, make_load, recorded_loads, step_load


def test_the_share_at_a_time_is_that_of_its_tenth_of_a_second_and_repeats():
    load = make_load([0.1, 0.2, 0.3, 0.4])
    assert load.duration_s == pytest.approx(0.4)
    assert [load.at(t) for t in (0.0, 0.05, 0.1, 0.25, 0.3, 0.39)] == [0.1, 0.1, 0.2, 0.3, 0.4, 0.4]
    assert [load.at(k * STEP_S) for k in range(40)] == [0.1, 0.2, 0.3, 0.4] * 10  # 3 x 0.1 is a hair less than 0.3


def test_a_step_changes_where_it_is_told_to():
    load = step_load(0.2, 0.9, at_s=3.0, duration_s=10.0)
    assert (load.at(2.95), load.at(3.0), load.at(9.9), load.at(10.0)) == (0.2, 0.9, 0.9, 0.2)
    assert load.duration_s == pytest.approx(10.0)


def test_scaled_work_is_the_same_work_and_may_not_pass_all_cores():
    load = make_load([0.2, 0.8])
    assert load.scaled(0.5).share.tolist() == pytest.approx([0.1, 0.4])
    assert load.scaled(0.5) is load.scaled(0.5)
    with pytest.raises(ConfigError, match=r"in 0\.\.1"):
        load.scaled(2.0)


def test_a_monitor_shows_the_exponential_mean():
    rng = np.random.default_rng(0)
    load = make_load(rng.random(50))
    value, expected = load.share.mean(), []
    for share in load.share:
        value = 0.3 * share + 0.7 * value
        expected.append(value)
    assert load.smoothed(0.3) == pytest.approx(expected)
    assert constant_load(0.4).smoothed(0.3) == pytest.approx([0.4])


@pytest.mark.parametrize("bad", [[], [0.5, 1.2], [-0.1], [float("nan")], [[0.1, 0.2]]])
def test_what_is_no_share_is_refused(bad):
    with pytest.raises(ConfigError, match="each in 0"):
        make_load(bad, "mine")


def test_a_recording_reads_back_by_name(tmp_path):
    percent = np.array([0, 50, 100], np.uint8)
    np.savez(tmp_path / "building.npz", percent=percent, about=np.array(json.dumps({"note": "a build"})))
    (load,) = recorded_loads(tmp_path)
    assert (load.name, load.note, load.shares) == ("building", "a build", [0.0, 0.5, 1.0])


def test_no_recording_and_every_damaged_one_are_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="no load recording there"):
        recorded_loads(tmp_path)
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, percent=np.arange(100), about=np.array('{"note": "x"}'))
    whole = path.read_bytes()
    damaged = [b"", b"PK\x03\x04 no archive", whole[: len(whole) // 2], whole[:60] + b"\xff" * 30 + whole[90:]]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"bad\.npz: not a load recording"):
            recorded_loads(tmp_path)
    for arrays in ({"percent": np.arange(3)}, {"percent": np.arange(3), "about": np.array("[1]")},
                   {"percent": np.array([{}], dtype=object), "about": np.array("{}")}):  # fmt: skip
        np.savez(path, **arrays)
        with pytest.raises(ConfigError, match=r"bad\.npz: not a load recording"):
            recorded_loads(tmp_path)
