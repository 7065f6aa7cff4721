"""Traces from files: each format with a known answer, and each way in which a file can be bad."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.network.trace import read_trace, trace_runs


def file(folder: Path, text: str, name: str = "link.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_measured_drives_read_as_traces(data_dir: Path) -> None:
    path = data_dir / "traces" / "uplink_runs.csv.gz"
    runs = trace_runs(path)
    assert len(runs) == 332
    for run in runs[::110]:
        trace = read_trace(path, run)
        assert trace.name == run and 60 < trace.duration_s < 300
    assert read_trace(path).at(0.6)[0] == pytest.approx(29.14e6)


def test_a_table_with_a_header_reads(tmp_path: Path) -> None:
    path = file(tmp_path, "t,mbps,rtt\n0,1.5,40\n2,0.25,90\n")
    trace = read_trace(path)
    assert trace.at(3.0) == (0.25e6, 90.0) and trace.duration_s == 4.0 and trace_runs(path) == []
    assert trace.loss is None


def test_units_in_a_headers_names_are_converted(tmp_path: Path) -> None:
    header = "# a comment\ntime_ms; downlink (kbps); uplink (kbps); rtt_s; loss_percent\n"
    text = header + "0;9;1500;0.04;0\n\n500;9;250;0.09;2\n"
    trace = read_trace(file(tmp_path, text))
    assert trace.at(0.6) == (0.25e6, 90.0) and trace.duration_s == 1.0
    assert trace.loss is not None and trace.loss.tolist() == [0.0, 0.02]
    assert read_trace(file(tmp_path, "t_s,bps\n0,1e10\n1,1e10\n")).at(0.0)[0] == 1e10


def test_the_run_asked_for_is_read_and_the_first_by_default(tmp_path: Path) -> None:
    path = file(tmp_path, "run,t_s,uplink_mbps,tech\na,0,1,LTE\nb,0,3,LTE\na,1,2,LTE\nb,1,4,LTE\n")
    assert trace_runs(path) == ["a", "b"]
    assert read_trace(path).rate_bps.tolist() == [1e6, 2e6]
    assert read_trace(path, "b").rate_bps.tolist() == [3e6, 4e6]


@pytest.mark.parametrize("text", ["0 1.5 40\n2 0.25 90\n", "0,1.5,40\n2,0.25,90\n", "0\t1.5\t40\r\n2\t0.25\t90\r\n"])
def test_a_plain_table_reads(tmp_path: Path, text: str) -> None:
    trace = read_trace(file(tmp_path, text, "link.txt"))
    assert trace.at(1.9) == (1.5e6, 40.0) and trace.at(2.1) == (0.25e6, 90.0)


def test_a_plain_table_without_round_trips_gets_the_given_one(tmp_path: Path) -> None:
    path = tmp_path / "link.txt.gz"
    path.write_bytes(gzip.compress(b"1600000000.5 1\n1600000001.5 2\n"))
    trace = read_trace(path, rtt_ms=70.0)
    assert trace.at(1.5) == (2e6, 70.0) and trace.name == "link"


def test_a_mahimahi_file_lets_its_bytes_through_when_it_says(tmp_path: Path) -> None:
    # One packet a ms for 200 ms, none until 1000 ms, then three in the last ms.
    lines = [*range(1, 201), 1000, 1000, 1000]
    trace = read_trace(file(tmp_path, "\n".join(map(str, lines)) + "\n", "link.up"))
    assert trace.duration_s == 1.0
    assert trace.at(0.05)[0] == trace.at(0.15)[0] == pytest.approx(1504 * 8 * 1000)
    assert trace.at(0.5)[0] == 0.0
    assert trace.finish_s(0.0, 1504 * 8 * 203) == pytest.approx(1.0)  # all of a cycle's packets take the cycle


def test_a_mahimahi_file_whose_end_is_no_whole_bin_keeps_its_bytes(tmp_path: Path) -> None:
    trace = read_trace(file(tmp_path, "0\n10\n250\n250\n", "link.up"))
    bits = np.sum(trace.rate_bps * np.diff(np.append(trace.t_s, trace.duration_s)))
    assert bits == pytest.approx(4 * 1504 * 8) and trace.duration_s == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"link.csv: the file is empty; give a CSV"),
        ("# nothing\n\n", r"link.csv: the file is empty"),
        ("t,mbps\n", r"the file holds no rows"),
        ("t,mbps\n0,1\n1,fast\n", r"link.csv:3: got 'fast' for 'mbps', expected a number"),
        ("t,rate\n0,1\n", r"link.csv:1: .*expected a rate with its unit in its name"),
        ("x,mbps\n0,1\n", r"link.csv:1: .*expected one for time"),
        ("t,mbps\n0,1\n1,-1\n", r"link.csv:3: got -1 for 'mbps', .*not negative"),
        ("t,mbps\n0,1\n1,inf\n", r"link.csv:3: got inf .*finite"),
        ("t,mbps\n0,1\n1,\n2,1\n", r"link.csv:3: the value of 'mbps' is missing; fill it in"),
        ("t,mbps\n0,1\n1\n", r"link.csv:3: the value of 'mbps' is missing"),
        ("t,mbps\n0,1\nnan,2\n", r"link.csv:3: the value of 't' is missing"),
        ("t,mbps,rtt_ms\n0,1,50\n1,1,\n", r"link.csv:3: the value of 'rtt_ms' is missing; write the last known one"),
        ("t,mbps,loss\n0,1,0\n1,1,5\n", r"link.csv:3: got a loss of 5, expected a share .*loss_percent"),
        ("t,mbps\n0,1\n1,1\n\n1,2\n", r"link.csv:5: the time 1 s does not rise above 1 s"),
        ("t,mbps\n0,1\n2,1\n1,2\n", r"link.csv:4: the time 1 s does not rise above 2 s .*sort the rows"),
        ("t,mbps\n0,1\n1,1\n2,1\n3,1\n60,1\n", r"link.csv:6: a gap of 57 s after 3 s, where rows are 1 s apart"),
        ("t,mbps\n0,900\n1,2500\n2,12000\n", r"'mbps' .* look like kbit/s, not Mbit/s; name the column 'kbps'"),
        ("0 2500000\n1 12000000\n", r"look like bit/s, not Mbit/s; name the column 'bps' in a header"),
        ("run,t_s,uplink_mbps\nabc,0,1\n", r"no run 'abd'; did you mean 'abc'"),
        ("0 1 2 3\n", r"link.csv:1: got 4 columns and no header"),
        ("1\n3\n2\n", r"link.csv:3: 2 ms does not rise above 3 ms"),
        ("1\n2.5\n", r"link.csv:2: got '2.5', expected one whole number of ms"),
        ("0\n0\n", r"the last delivery is at 0 ms"),
    ],
)
def test_a_bad_trace_is_one_clear_error_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_trace(path, "abd" if text.startswith("run") else None)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_trace_and_one_that_is_no_text_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "bytes.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"t,mbps\n0,1\n")[:-6])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "cut.csv.gz")


def test_a_run_of_a_file_without_runs_is_refused(tmp_path: Path) -> None:
    for text in ("t,mbps\n0,1\n", "0 1\n1 2\n", "1\n2\n"):
        with pytest.raises(ConfigError, match=r"leave .*out"):
            read_trace(file(tmp_path, text), "drive")
