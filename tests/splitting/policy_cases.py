"""A small cut table, any observation, and an untrained policy file, that the policies' tests build with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from streamsplit.splitting.cut import Cut, all_cuts
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy_file import Layer, PolicyFile
from streamsplit.splitting.table import CutRow, CutTable, make_table

BLOCKS = 4
META = {"encoder": {"name": "tiny", "width": 0.5, "embedding_dim": 16, "seed": 3}}
# edge_ms, server_ms, payload_bytes, energy_mj, agreement
COSTS = {
    "0:pcm16": (0.5, 12.0, 16_020.0, 8.5, 1.0),
    "0:opus24": (6.0, 14.0, 1_520.0, 8.0, 0.95),
    "0:logmel-int8": (1.0, 11.0, 6_420.0, 4.5, 0.999),
    "2:fp16": (12.0, 6.0, 8_000.0, 17.0, 1.0),
    "2:int8": (13.0, 6.5, 4_000.0, 16.0, 0.98),
    "3:int8": (20.0, 3.0, 1_200.0, 23.0, 0.97),
    "4:embedding-fp16": (28.0, 0.1, 276.0, 32.0, 1.0),
    "4:embedding-int8": (28.5, 0.1, 152.0, 32.5, 0.999),
    "4:none": (27.5, 0.0, 0.0, 31.0, 1.0),
}


def small_table(costs: dict[str, tuple[float, ...]] = COSTS, **columns: dict[str, float]) -> CutTable:
    """Nine cuts of an encoder of four blocks; `columns` (accuracy, privacy_risk, fetch_bytes) by cut."""
    rows = [
        CutRow(Cut.parse(text), *values, **{name: by_cut[text] for name, by_cut in columns.items() if text in by_cut})
        for text, values in costs.items()
    ]
    return make_table(CutTable("tiny", "pi4", 1.0, BLOCKS, tuple(rows), META))


def _share(draw_beyond: bool = True) -> st.SearchStrategy[float]:
    inside = st.floats(0.0, 1.0)
    return inside | st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 7.0]) if draw_beyond else inside


_numbers = st.floats(0.0, 1e12) | st.floats(allow_nan=True, allow_infinity=True)

observations = st.builds(
    Observation,
    uncertainty=_numbers,
    cpu=_share(),
    memory=_share(),
    battery=_share(),
    thermal=_share(),
    bandwidth_bps=_numbers,
    bandwidth_age_ms=_numbers,
    rtt_ms=_numbers,
    rtt_age_ms=_numbers,
    backlog_bytes=st.integers(0, 2**40),
    last_cut=st.none() | st.sampled_from([*all_cuts(BLOCKS), Cut(12, all_cuts(20)[-6].encoding)]),
    link_up=st.booleans(),
    blocks=st.integers(-1, 300),
    power_mw=_numbers,
    waiting_ms=_numbers,
    last_rtt_ms=_numbers,
)


def untrained_file(
    cuts: tuple[Cut, ...], *, hidden: int = 8, scale: float = 0.0, seed: int = 0, **changes: Any
) -> PolicyFile:
    """A policy for `small_table`: random weights of size `scale` (0: it follows the expected costs), every state known.

    The weights are fp16 numbers, as a file holds them.
    """
    rng = np.random.default_rng(seed)
    width = len(STATE_FEATURES) + len(cuts)
    layers = tuple(
        Layer(
            (scale * rng.standard_normal((n, m))).astype(np.float16).astype(np.float32),
            (scale * rng.standard_normal(m)).astype(np.float16).astype(np.float32),
        )
        for n, m in ((width, hidden), (hidden, hidden), (hidden, len(cuts)))
    )
    values: dict[str, Any] = {
        "encoder": "tiny",
        "architecture": {"name": "tiny", "width": 0.5, "embedding_dim": 16},
        "num_blocks": BLOCKS,
        "cuts": cuts,
        "settings": GreedySettings(deadline_ms=1000.0),
        "layers": layers,
        "cost_weight": 2.0,
        "low": np.full(len(STATE_FEATURES), -100.0, np.float32),
        "high": np.full(len(STATE_FEATURES), 100.0, np.float32),
        "about": {"seed": seed, "training": {"environment": {"constraints": {"energy_budget_mw": 200.0}}}},
        **changes,
    }
    return PolicyFile(**values)
