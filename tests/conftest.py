"""Fixtures shared by all tests: capped threads, the folder of real data, seeded generators."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real audio and traces, where `data_folder` finds one."""
    from streamsplit.evaluation.datasets import data_folder

    folder = data_folder()
    if folder is None:
        pytest.skip("no real data: set STREAMSPLIT_DATA to a folder with esc10/, fsdd/, speech/ and traces/")
    return folder
