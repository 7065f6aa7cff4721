"""Fixtures shared by all tests: capped threads, the folder of real data, seeded generators."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real audio and traces (STREAMSPLIT_DATA, or 'data' beside or in the checkout's shared folder)."""
    root = Path(__file__).resolve().parents[1]
    candidates = [Path(os.environ.get("STREAMSPLIT_DATA", "")), root.parent / "shared" / "data", root / "data"]
    for candidate in candidates:
        if candidate.name and candidate.is_dir():
            return candidate
    pytest.skip("no real data: set STREAMSPLIT_DATA to a folder with esc10/, fsdd/, speech/ and traces/")
