"""The report: one self-contained page from a run's dict, whatever happened in the run."""

from __future__ import annotations

import re
from pathlib import Path

from streamsplit.edge.journal import Journal, read_journal
from streamsplit.evaluation.report import write_report


def a_run(windows: int) -> dict:
    journal = []
    for number in range(windows):
        cut = ("0:logmel-int8", "5:int8", "13:none")[number % 3]
        journal.append(
            {
                "kind": "window",
                "t_ms": 500.0 * number,
                "window": number,
                "cut": cut,
                "bandwidth_bps": 1e6,
                "cpu": 0.4,
                "sequence": None if cut == "13:none" else number,
                "payload_bytes": 100,
            }
        )
        if cut != "13:none":
            journal.append(
                {"kind": "result", "t_ms": 500.0 * number + 50, "window": number, "latency_ms": 50.0 + number}
            )
    device = {
        "id": "pi4-<wifi>",
        "device_class": "pi4",
        "network": "Wi-Fi",
        "live_s": 60.0,
        "windows_seen": windows,
        "windows_sent": 2 * windows // 3,
        "window_bytes": 3600.0,
        "uplink_bytes": 160_000,
        "downlink_bytes": 9_000,
        "energy_mj": 1200.0,
        "cuts": {"5:int8": windows // 3},
        "trace": [[0.0, 1e6], [30.0, 2e5]],
        "journal": journal,
    }
    row = {
        "dim": 128,
        "accuracy": 0.5,
        "clip_accuracy": 0.6,
        "clip_standard_error": 0.02,
        "precision_at_10": 0.4,
        "silhouette": 0.01,
        "effective_rank": 20.0,
    }
    points = [[float(i), float(-i)] for i in range(12)]
    return {
        "meta": {
            "started": "2026-01-01 00:00:00",
            "data": "test",
            "held_out": "fold 4",
            "duration_s": 100.0,
            "num_blocks": 13,
            "machine": {"processor": "cpu"},
        },
        "devices": [device],
        "integrity": {"accepted": windows, "stored": windows, "missing": 0, "duplicated": 0},
        "probe": [
            row | {"name": "encoder, untrained", "kind": "before"},
            row | {"name": "learned", "kind": "after", "accuracy": 0.75},
        ],
        "map": {"method": "t-SNE", "maps": [["untrained", points], ["learned", points]], "labels": ["a", "b"] * 6},
        "refiner": {
            "steps": [
                {"step": 1, "loss": 2.0, "effective_rank": 30.0},
                {"step": 9, "loss": 1.0, "effective_rank": 31.0},
            ],
            "revisions": 2,
        },
    }


def test_the_page_is_one_file_with_the_runs_figures(tmp_path: Path):
    text = write_report(a_run(60), tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "nothing is loaded from elsewhere"
    assert "0.50 → 0.75" in text and "0 lost, 0 doubled" in text
    # 160 kB in 60 s: 9.6 MB/h, 8.3 % of PCM16 at 32 kB/s, 88.9 % of Opus at 3 kB/s
    assert "9.60 MB/h" in text and "8.3%" in text and "88.9%" in text
    assert "pi4-&lt;wifi&gt;" in text and "pi4-<wifi>" not in text
    assert text.count("data:image/png;base64,") == 6


def test_a_run_in_which_nothing_was_sent_still_has_a_report(tmp_path: Path):
    run = a_run(0)
    run["refiner"]["steps"] = []
    assert "StreamSplit run" in write_report(run, tmp_path / "report.html").read_text()


def test_a_journal_cut_off_by_a_kill_reads_up_to_the_last_whole_row(tmp_path: Path):
    journal = Journal(tmp_path / "deep" / "journal.jsonl")
    journal.write("window", 1.26, uncertainty=float("nan"), cut="5:int8")
    journal.write("result", 2.0, latency_ms=12.34567)
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"kind": "wind')
    assert list(read_journal(journal.path)) == [
        {"kind": "window", "t_ms": 1.3, "uncertainty": None, "cut": "5:int8"},
        {"kind": "result", "t_ms": 2.0, "latency_ms": 12.3457},
    ]
