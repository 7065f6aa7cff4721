"""Measured drives as traces: recordings written here with a known answer, and the real ones where they are."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.network.drives import PINGS, read_drives, read_pings


def written(path: Path, text: str) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def test_a_ping_that_is_missing_on_the_steady_clock_of_sending_was_lost(tmp_path: Path) -> None:
    sent = np.arange(PINGS) * 0.2008
    rtt_ms = np.full(PINGS, 50.0)
    rtt_ms[40:43] = (700.0, 499.0, 298.0)  # a stall: three replies come in the same moment
    rows = [f"7,{sent[i] + rtt_ms[i] / 1000:.2f},{rtt_ms[i]}" for i in range(PINGS) if i not in (10, 11, 149)]
    recording = read_pings(written(tmp_path / "rtt.csv.gz", "run,t_s,rtt_ms\n" + "\n".join(rows) + "\n"))[0]
    assert np.flatnonzero(recording.lost).tolist() == [10, 11, 149]
    assert recording.rtt_ms[40:43].tolist() == [700.0, 499.0, 298.0]
    assert recording.rtt_ms[10] == 50.0  # holds the one before


def small_data(folder: Path) -> Path:
    runs = [f"atnt_drive{drive}_run{run}" for drive in (1, 2, 3) for run in (1, 2)]
    (folder / "uplink_index.csv").write_text(
        "run,operator,drive\n" + "".join(f"{run},atnt,{run.split('_')[1]}\n" for run in runs)
    )
    lines = [f"{run},{step * 0.5},{number + 1},LTE," for number, run in enumerate(runs) for step in range(80)]
    written(folder / "uplink_runs.csv.gz", "run,t_s,uplink_mbps,tech,handover\n" + "\n".join(lines) + "\n")
    pings = [f"{run},{i * 0.2008 + run / 100:.3f},{run * 10}" for run in range(1, 7) for i in range(PINGS)]
    written(folder / "rtt_atnt.csv.gz", "run,t_s,rtt_ms\n" + "\n".join(pings) + "\n")
    return folder


def test_runs_come_with_their_rate_and_with_round_trips_that_no_other_drive_has(tmp_path: Path) -> None:
    folder = small_data(tmp_path)
    training, validation = read_drives(folder, (1, 2)), read_drives(folder, (3,))
    assert [trace.name for trace in validation] == ["atnt_drive3_run1", "atnt_drive3_run2"]
    assert [trace.rate_bps[0] for trace in training] == [1e6, 2e6, 3e6, 4e6]
    assert {trace.duration_s for trace in training} == {40.0}
    seen = [{float(rtt) for trace in traces for rtt in trace.rtt_ms} for traces in (training, validation)]
    assert seen == [{10.0, 20.0, 30.0, 40.0}, {50.0, 60.0}]
    assert training[0].at(29.9) == (1e6, 10.0) and training[0].at(30.1) == (1e6, 20.0)  # recordings end to end


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    folder = small_data(tmp_path)
    with pytest.raises(ConfigError, match="no drive '4'"):
        read_drives(folder, (1, 4))
    with pytest.raises(ConfigError, match="no operator 'atn'; did you mean 'atnt'"):
        read_drives(folder, (1,), ["atn"])
    (folder / "rtt_atnt.csv.gz").unlink()
    with pytest.raises(ConfigError, match=r"rtt_atnt.csv.gz: cannot be read"):
        read_drives(folder, (1,))


def test_the_measured_drives_read_quickly_and_keep_validation_apart(data_dir: Path) -> None:
    started = time.process_time()
    training, validation = read_drives(data_dir), read_drives(data_dir, (3,))
    assert time.process_time() - started < 10  # twice a whole reading
    assert (len(training), len(validation)) == (207, 125)
    assert not any("drive3" in trace.name for trace in training)
    losses = np.concatenate([trace.loss for trace in training + validation if trace.loss is not None])
    assert 0.004 < losses.mean() < 0.018
