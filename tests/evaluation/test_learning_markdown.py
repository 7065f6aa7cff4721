"""The comparison's tables as Markdown."""

from __future__ import annotations

from streamsplit.evaluation.learning_markdown import results_markdown
from streamsplit.evaluation.learning_report import paired_rows, summarise

EFFORT = {
    "heard": 100, "heard_s": 50.0, "windows": 1000, "updates": 3, "server_windows": 512, "server_updates": 2,
    "cpu_s": 1.5,
    "uplink_bytes": 1000, "downlink_bytes": 0, "sent": 24, "uplink_mb_per_h": 1.25, "downlink_mb_per_h": 0.0,
    "share_sent": 0.24,
}  # fmt: skip


def cell(method: str, seed: int, probe: float) -> dict:
    figures = dict.fromkeys(
        ("precision_at_10", "precision_at_10_all", "silhouette", "effective_rank", "alignment", "uniformity"), 0.5
    )
    return {
        "data": "sounds", "method": method, "seed": seed, "about": method, "effort": EFFORT, "notes": ["a note"],
        "figures": {**figures, "probe": probe, "probe_standard_error": 0.04},
    }  # fmt: skip


def results(seeds: int) -> dict:
    cells = [cell("streamsplit", seed, 0.8 + 0.02 * seed) for seed in range(seeds)]
    cells += [cell("edge_only", seed, 0.7 + 0.01 * seed) for seed in range(seeds)]
    return {
        "settings": {"seeds": seeds}, "cells": cells,
        "data": [{"name": "sounds", "held_out": "fold 4", "precision_at_10_possible": 0.635}],
        "summary": summarise(cells), "paired": paired_rows(cells), "start": "default@1234",
        "meta": {"command": "streamsplit evaluate", "cells_code": ["0.2 abc"], "cpu_s": 7200.0,
                 "machine": {"processor": "a processor"}},
    }  # fmt: skip


def test_a_table_holds_means_with_half_intervals_and_paired_differences():
    page = results_markdown(results(3))
    assert "| streamsplit | 0.820 ± 0.050 | 0.500 ± 0.000 |" in page, "t(2) = 4.303, s = .02: half is .0497"
    assert "| 3 | 2 | 1.5k | 1.2 | 24% |" in page
    assert "| streamsplit | edge_only | 11.0 ± 2.5 |" in page
    assert "P@10 can be 0.635 at most" in page
    assert "2.0 CPU hours" in page and "default@1234" in page and "- streamsplit: a note" in page


def test_one_seed_has_no_interval_and_no_test():
    page = results_markdown(results(1))
    assert "| streamsplit | 0.800 | 0.500 |" in page
    assert "minus" not in page


def test_the_uncertainty_s_table_averages_over_seeds_and_counts_intervals_above_chance():
    held = results(2)
    for seed, cell_ in enumerate(held["cells"][:2]):
        curve = {
            "shares": [0.0, 0.26, 1.0], "by_uncertainty": [0.5, 0.7 + 0.02 * seed, 0.8], "random": [0.5, 0.575, 0.8],
            "oracle": [0.5, 0.75, 0.8], "edge_accuracy": 0.5, "server_accuracy": 0.8,
        }  # fmt: skip
        worth = {
            "quality": {"auroc_error": 0.6 + 0.1 * seed, "auroc_benefit": None, "spearman_error": 0.2,
                        "spearman_benefit": 0.1},
            "curve": curve, "area_interval": {"mean": 0.03, "low": 0.01 - 0.02 * seed, "high": 0.05},
        }  # fmt: skip
        cell_["uncertainty"] = {"block": 4, **worth, "measures": {"v2": worth}}
    run = {"holds": True, "paper_violations": 0.25, "sigma2": [0.5, 0.25], "bias2": [0.0, 0.125]}
    held["theory"] = {"sounds": {"rows": 40, "convergence": run}}
    page = results_markdown(held)
    assert "| v2 | 0.65 | – | 0.20 | 0.10 | 0.710 | 3.00 | 1 of 2 |" in page
    assert "right on 0.500, the server on 0.800" in page and "0.575 at random and 0.750" in page
    assert "the corrected bound holds at every step" in page and "at 25% of the steps" in page
    assert "sigma^2 is 0.5 at the first step and 0.25 at the last, epsilon^2 0 and 0.12." in page
