"""What all tests share: capped threads, signals that children heed, the folder of real data."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a shell: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real audio and traces, where `data_folder` finds one."""
    from streamsplit.evaluation.datasets import data_folder

    folder = data_folder()
    if folder is None:
        pytest.skip("no real data: set STREAMSPLIT_DATA to a folder with esc10/, fsdd/, speech/ and traces/")
    return folder
