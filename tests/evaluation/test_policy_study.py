"""The policy study: statistics with known answers, cells recounted by hand, settling times of a scripted policy."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.evaluation.adaptation import PHASE_S, PHASES, measure_adaptation, table_at_stride
from streamsplit.evaluation.policy_plots import reward_bars
from streamsplit.evaluation.policy_report import write_policy_report
from streamsplit.evaluation.policy_run import PolicyRunSettings, goals, run_policy_study, study_traces
from streamsplit.evaluation.policy_study import (
    Cell,
    Material,
    StudySettings,
    paired_difference,
    plain,
    run_cell,
    run_study,
    simulated_run,
    verdict,
)
from streamsplit.network.trace import generate_trace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.load import recorded_loads
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.policy_file import packaged_policy
from streamsplit.splitting.table import packaged_table
from streamsplit.splitting.useful import useful_cuts
from streamsplit.wire.media import MEDIA_HEADER_BYTES

TABLE = packaged_table("mobilenet")
TRACES = (generate_trace(30.0, 1), generate_trace(30.0, 2, level=0.1))
MATERIAL = Material(TABLE, TRACES, tuple(recorded_loads()), packaged_policy("mobilenet").to_bytes())


def cell(policy: str, seed: int, rewards: list[float], cut: str = "") -> Cell:
    return Cell(
        policy, "pi4", seed, cut, float(np.mean(rewards)), rewards, {"p50": 1.0, "p95": 2.0, "p99": math.inf},
        1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, {},
    )  # fmt: skip


def test_the_gap_is_closed_on_the_seeds_that_the_oracle_ran() -> None:
    cells = [cell("best-fixed", s, [1.0, 3.0], "5:int8") for s in range(3)]
    cells += [cell("look-ahead", s, [3.0, 5.0]) for s in range(2)]
    cells += [cell("ppo", 0, [2.5, 4.5]), cell("ppo", 1, [2.5, 4.5]), cell("ppo", 2, [-90.0, -90.0])]
    found = verdict(cells, "pi4")
    assert found["gap_closed"] == pytest.approx(0.75) and found["seeds_compared"] == [0, 1]
    assert found["best_fixed"] == "5:int8" and "over_bandit" not in found


def test_rivals_are_beaten_by_intervals_that_do_not_touch_and_compared_run_by_run() -> None:
    cells = [cell("ppo", s, [2.0 + 0.01 * s, 6.0 + 0.01 * s]) for s in range(3)]
    cells += [cell("bandit", s, [1.9, 5.7 + 0.01 * s]) for s in range(3)]
    cells += [cell("argmin", s, [2.0, 2.0 + 8.0 * (s == 2)]) for s in range(3)]
    found = verdict(cells, "pi4")
    assert found["over_bandit"]["intervals_apart"] and not found["over_argmin"]["intervals_apart"]
    # runs differ by 0.11 and 0.30: over two runs, t(0.975, 1) = 12.706
    low = 0.205 - 12.7062 * np.std([0.11, 0.30], ddof=1) / math.sqrt(2)
    assert found["over_bandit"]["over_runs"]["mean"] == pytest.approx(0.205)
    assert found["over_bandit"]["over_runs"]["low"] == pytest.approx(low, abs=1e-4)
    assert paired_difference(cells[:3], cells[:3]).mean == 0.0


def test_a_cell_is_what_its_windows_come_to() -> None:
    settings = StudySettings()
    made = run_cell("best-fixed", "pi4", 3, "5:int8", MATERIAL, settings)
    table = TABLE.for_device(device_profile("pi4"))
    action = table.cuts.index(Cut.parse("5:int8"))
    steps, means = [], []
    for index, trace in enumerate(TRACES):
        device = simulated_run(table, device_profile("pi4"), trace, MATERIAL.loads, settings.simulation, 3, index)
        run = []
        while not device.done:
            device.observe()
            run.append(device.step(action))
        steps += run
        means.append(sum(step.reward for step in run) / len(run))
    assert made.run_rewards == pytest.approx(means) and made.reward == pytest.approx(np.mean(means))
    assert made.uplink_mb_per_h == pytest.approx(sum(step.uplink_bytes for step in steps) / 60.0 * 3600.0 / 1e6)
    late = sum(step.consequence.latency_ms > 1000.0 for step in steps)
    assert made.deadline_misses == pytest.approx(late / len(steps)) and made.changes_per_h == 0.0
    assert made.cuts == {"5:int8": 1.0} and made.seen == pytest.approx(np.mean([s.consequence.seen for s in steps]))
    latencies = sorted(step.consequence.latency_ms for step in steps)
    assert made.latency_ms["p50"] in latencies and made.latency_ms["p95"] == latencies[math.ceil(0.95 * 119)]


def test_keeping_everything_sends_nothing_but_probes() -> None:
    made = run_cell("edge-only", "m2", 0, "", MATERIAL, StudySettings())
    assert made.seen == 0.0 and made.cuts == {"13:none": 1.0}
    assert made.uplink_mb_per_h == pytest.approx(44 * 2 * 3600 / 1e6, rel=0.1)  # a probe before every window


def test_the_best_fixed_cut_is_the_best_and_the_oracle_is_better() -> None:
    settings = StudySettings(policies=("best-fixed", "greedy", "look-ahead"), devices=("pi4",), seeds=1)
    seen = []
    cells = run_study(MATERIAL, settings, lambda done, total, one: seen.append((done, total, one.policy)))
    fixed, greedy, oracle = cells
    everyone = [run_cell("best-fixed", "pi4", 0, str(cut), MATERIAL, settings) for cut in useful_cuts(TABLE)]
    best = max(everyone, key=lambda one: one.reward)
    assert (fixed.policy, fixed.cut, fixed.reward) == ("best-fixed", best.cut, pytest.approx(best.reward))
    assert oracle.reward > max(fixed.reward, greedy.reward)
    assert run_cell("greedy", "pi4", 0, "", MATERIAL, settings) == greedy  # another process, the same numbers
    assert [done for done, *_ in seen] == list(range(1, len(seen) + 1)) and seen[-1][0] == seen[-1][1]


class Scripted:
    """Takes another cut from the fourth window of every phase on: it settles 1.5 s after the step."""

    def __init__(self, late: int) -> None:
        self.window, self.late = 0, late

    def decide(self, observation: object, table: object) -> Decision:
        phase = (self.window - self.late) // round(PHASE_S / 0.5)
        self.window += 1
        return Decision(Cut.parse("13:none" if phase % 2 else "13:embedding-int8"), 1.0, "scripted")


@pytest.mark.parametrize(("late", "expected_ms"), [(0, 0.0), (3, 1500.0)])
def test_settling_takes_as_long_as_the_script_says(late: int, expected_ms: float) -> None:
    table = TABLE.for_device(device_profile("m2"))
    made = measure_adaptation(Scripted(late), table, device_profile("m2"), "cpu", SimulationSettings())
    assert made.changes == PHASES - 1 and made.settled == ("13:embedding-int8", "13:none")
    assert made.median_ms == pytest.approx(expected_ms) and made.p95_ms == pytest.approx(expected_ms)


def test_a_policy_that_never_changes_has_no_settling_time() -> None:
    class Always:
        def decide(self, observation: object, table: object) -> Decision:
            return Decision(Cut.parse("13:none"), 1.0, "always")

    table = TABLE.for_device(device_profile("m2"))
    made = measure_adaptation(Always(), table, device_profile("m2"), "bandwidth", SimulationSettings())
    assert made.changes == 0 and math.isnan(made.median_ms)


def test_at_a_fifth_of_the_stride_block_0_carries_a_fifth() -> None:
    short = table_at_stride(TABLE, 100.0)
    for old, new in zip(TABLE.rows, short.rows, strict=True):
        if old.cut.block:
            assert new.payload_bytes == old.payload_bytes
        else:
            data = old.payload_bytes - MEDIA_HEADER_BYTES
            assert new.payload_bytes == pytest.approx(MEDIA_HEADER_BYTES + data / 5)
    assert table_at_stride(TABLE, 500.0) is TABLE and table_at_stride(short, 100.0) is short


@pytest.fixture(scope="module")
def found() -> dict:
    study = StudySettings(policies=("server-only", "heuristic", "greedy", "ppo"), devices=("pi4",), seeds=2)
    settings = PolicyRunSettings(study=study, generated=2, sensitivity_runs=1)
    return run_policy_study(TABLE, MATERIAL.policy, settings, about={"command": "a test"})


def test_a_study_holds_everything_that_the_report_shows(found: dict, tmp_path) -> None:
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["meta"]["command"] == "a test"
    assert {row["policy"] for row in found["summary"]} == {"server-only", "heuristic", "greedy", "ppo"}
    assert len(found["adaptation"]) == 3 * 2 * 2 and len(found["timelines"][0]["rows"]) == 240
    assert {row["joule_per_mb"] for row in found["sensitivity"]} == {0.3, 1.0, 3.5}
    for row in found["maps"]:
        assert np.shape(row["blocks"]) == (len(row["cpu"]), len(row["mbps"]))
    report = write_policy_report(found, tmp_path / "report.html").read_text()
    assert report.count("data:image/png") >= 3 and "server-only" in report and "http" not in report.split("<body")[0]


def test_goals_are_ratios_of_the_summary(found: dict) -> None:
    by_name = {row["policy"]: row for row in found["summary"]}
    (row,) = goals(found)
    mine, pcm = by_name["ppo"], by_name["server-only"]
    assert row["uplink_of_pcm"] == pytest.approx(mine["uplink_mb_per_h"] / pcm["uplink_mb_per_h"], abs=1e-4)
    if mine["latency_ms"]["p95"] and pcm["latency_ms"]["p95"]:
        assert row["p95_below_pcm"] == pytest.approx(pcm["latency_ms"]["p95"] / mine["latency_ms"]["p95"], abs=0.01)
    assert row["p95_below_best_fixed"] is None and row["gap_closed"] is None  # not in this study


def test_bars_far_below_zero_do_not_flatten_the_others() -> None:
    rows = [
        {"policy": name, "device": "pi4", "reward": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}}
        for name, mean in (("awful", -40.0), ("good", 5.0))
    ]
    (axes,) = reward_bars(rows, ["pi4"]).axes
    assert axes.get_ylim()[0] == pytest.approx(-6.0)
    assert [text.get_text() for text in axes.texts] == ["-40"]


def test_latencies_that_never_came_are_none_in_json() -> None:
    assert plain([cell("ppo", 0, [1.0])])[0]["latency_ms"] == {"p50": 1.0, "p95": 2.0, "p99": None}


def test_comparing_policies_needs_nothing_that_only_training_needs() -> None:
    code = "import sys; sys.modules['gymnasium'] = sys.modules['stable_baselines3'] = None; "
    code += "import streamsplit.evaluation.policy_run, streamsplit.evaluation.policy_report"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="got policy 'pp0'; did you mean 'ppo'"):
        StudySettings(policies=("pp0",))
    with pytest.raises(ConfigError, match="no devices"):
        StudySettings(devices=())
    with pytest.raises(ConfigError, match="needs a trained file"):
        run_cell("ppo", "pi4", 0, "", MATERIAL._replace(policy=b""), StudySettings())


def test_runs_of_the_drives_are_spread_evenly(data_dir) -> None:
    some, name = study_traces(PolicyRunSettings(data=str(data_dir), runs=5))
    every, _ = study_traces(PolicyRunSettings(data=str(data_dir)))
    assert name == "measured drives 3" and len(every) > 100
    assert [trace.name for trace in some] == [every[i * (len(every) - 1) // 4].name for i in range(5)]
