"""The Python examples of the streaming-weights sketch, word for word except for their import lines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="needs the extra 'weights'")

CHUNK = """
from streamsplit import ModelChunker

# Chunk a model for streaming
chunker = ModelChunker("prajjwal1/bert-tiny", "./chunks/bert-tiny")
chunk_info = chunker.chunk_model()
print(f"Model chunked into {len(chunk_info['chunks'])} pieces")
"""

SERVE = """
from streamsplit import WeightServer
import asyncio

async def start_server():
    server = WeightServer("./chunks/bert-tiny", port=8765)
    await server.start_server()

# Run server
asyncio.run(start_server())
"""

INFER = """
import asyncio
import torch
from transformers import AutoTokenizer
from streamsplit import StreamingBertModel

async def run_inference():
    # Initialize streaming model
    model = StreamingBertModel(
        model_name="prajjwal1/bert-tiny",
        websocket_uri="ws://localhost:8765",
        cache_size=2
    )

    # Prepare input
    tokenizer = AutoTokenizer.from_pretrained("prajjwal1/bert-tiny")
    inputs = tokenizer("Hello world!", return_tensors="pt")

    # Run inference
    with torch.no_grad():
        outputs = await model.forward_async(**inputs)

    print(f"Output shape: {outputs[0].shape}")
    return outputs

# Run inference
outputs = asyncio.run(run_inference())
"""

CONFIGURE = """
from streamsplit import StreamingConfig, StreamingBertModel

config = StreamingConfig(
    server_host="your-server.com",
    server_port=8765,
    cache_size=5,
    enable_compression=True,
    prefetch_layers=True
)

model = StreamingBertModel(config=config)
"""

MONITOR = """
from streamsplit import StreamingMonitor, StreamingBertModel

monitor = StreamingMonitor()
model = StreamingBertModel("bert-base", monitor=monitor)

# After inference
metrics = monitor.get_metrics()
print(f"Cache hit rate: {metrics['cache_hit_rate']:.2%}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a hub name is a local one: a BERT of two layers with its tokenizer."""
    place = tmp_path / "prajjwal1" / "bert-tiny"
    place.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "!"]
    (place / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=len(words))).save_pretrained(place)
    transformers.BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs a script in the folder and gives what it printed; in this process, which has read transformers already."""
    monkeypatch.chdir(folder)

    def output(code: str) -> str:
        capsys.readouterr()
        exec(compile(code, "example.py", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    return output


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_the_quick_start_chunks_serves_and_infers(folder: Path, run: Callable[[str], str]):
    if not is_free(8765):
        pytest.skip("port 8765, which the example names, is taken on this machine")
    assert run(CHUNK).startswith("Model chunked into ")
    server = subprocess.Popen([sys.executable, "-c", SERVE], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(10):  # the example does not wait for the server; the client tries again by itself
            if not is_free(8765):
                break
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(1.0)
        assert "Output shape: torch.Size([1, 5, 128])" in run(INFER)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()


def test_configuration_and_monitor_are_as_sketched(run: Callable[[str], str]):
    assert run(CONFIGURE) == ""
    assert run(MONITOR) == "Cache hit rate: 0.00%\n"
