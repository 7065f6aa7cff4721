"""`streamsplit weights serve` as a process: says when it is ready, serves, ends in order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamsplit.facade.streaming import StreamingModel

from weight_stream_harness import client  # isort: skip
from streamed_models import VOCABULARY, chunked, saved  # isort: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_a_folder_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals):
    plain = saved(tmp_path / "model", "BertModel")
    chunked(tmp_path / "model", tmp_path / "chunks")
    command = [
        sys.executable,
        "-m",
        "streamsplit.cli.main",
        "weights",
        "serve",
        "--chunks-dir",
        str(tmp_path / "chunks"),
    ]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        ids = {"input_ids": torch.arange(2, 9)[None] % VOCABULARY}
        with StreamingModel.open(ready["url"]) as model, torch.no_grad():
            assert torch.equal(model(**ids)[0], plain(**ids)[0])
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and errors == ""
        with client(ready["url"]) as device, pytest.raises(ConnectionError):
            device.manifest()
    finally:
        process.kill()
        process.wait()
