"""Traces in one place: what they are, read from files, made up."""

from __future__ import annotations

from streamsplit.network.bandwidth import DEFAULT_RTT_MS, DOWNLINK_FACTOR, BandwidthTrace, constant_trace, make_trace
from streamsplit.network.generator import generate_trace
from streamsplit.network.reader import read_trace, trace_runs

__all__ = [
    "DEFAULT_RTT_MS",
    "DOWNLINK_FACTOR",
    "BandwidthTrace",
    "constant_trace",
    "generate_trace",
    "make_trace",
    "read_trace",
    "trace_runs",
]
