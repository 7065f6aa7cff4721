"""A streamed transformer against the plain one: cold and warm forwards, bytes, memory, tokens; random weights.

    python -m benchmarks.weight_stream [--quick]

Everything runs over loopback, the server in a process of its own, every measured client in a fresh one. The floor of a
cold forward is the transfer of the layers' bytes through a bare TCP socket, into fresh memory, plus the plain model's
forward, measured in the same process. Times are the best of the repeats; what counts is their ratio within one run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import record

SEED = 0
TOKENS = 32
GOALS = {
    "cold_over_floor": 1.3, "bytes_over_layers": 1.01, "warm_over_plain": 1.05, "two_layer_peak_mb": 120.0,
    "token_over_plain": 1.10,
}  # fmt: skip


def main() -> int:
    """Runs the parts one after the other; writes benchmarks/results/weight_stream.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models: does it run at all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args.folder, args.url, args.repeats)))
        return 0
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, parts in (("bert", ("cold", "two_layers", "accelerate")), ("gpt2", ("tokens", "tied"))):
            _child("make_" + kind + ("_small" if args.quick else ""), folder, "", args)
            with running_server(folder / kind / "chunks") as url:
                for part in parts:
                    figures |= _child(part, folder / kind, url, args)
    for item, goal in GOALS.items():
        print(f"{item:18s} {figures[item]:8.3f}  (goal: at most {goal})")
    settings = {"quick": args.quick, "repeats": args.repeats, "tokens_of_input": TOKENS}
    if not args.quick:
        print(f"written to {record('weight_stream', figures, settings, [SEED])}")
    return 0 if all(figures[item] <= goal for item, goal in GOALS.items()) else 1


# -- parts, each in a process of its own ---------------------------------------------------------------------------


def make_bert(folder: Path, small: bool = False) -> dict[str, Any]:
    """bert-base's shape, or a fraction of it, chunked."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512} if small else {}
    return _make(folder / "bert", BertModel, BertConfig(**sizes))


def make_gpt2(folder: Path, small: bool = False) -> dict[str, Any]:
    """GPT-2 small's shape, or a fraction of it, chunked."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 128, "n_head": 4, "n_layer": 4, "vocab_size": 5000} if small else {}
    return _make(folder / "gpt2", GPT2LMHeadModel, GPT2Config(**sizes, bos_token_id=1, eos_token_id=None))


def cold(folder: Path, url: str, repeats: int) -> dict[str, Any]:
    """Cold and warm forwards with room for all layers, against the floor."""
    import torch
    from transformers import BertModel

    from streamsplit.facade.streaming import StreamingModel

    plain = BertModel.from_pretrained(folder / "model", dtype=torch.float32).eval()
    inputs = _inputs()
    layer_bytes = sum(p.numel() * 4 for p in plain.encoder.layer.parameters())
    plain_s, transfer_s, cold_s, open_s, warm_s, cold_cpu_s, floor_cpu_s, received = [], [], [], [], [], [], [], 0
    hash_s = _hash(folder / "model" / "model.safetensors", layer_bytes, repeats)
    with torch.no_grad():
        expected = plain(**inputs)[0]
        for _ in range(repeats):
            started_cpu = time.process_time()
            transfer_s.append(_transfer(folder / "model" / "model.safetensors", layer_bytes))
            plain(**inputs)
            floor_cpu_s.append(time.process_time() - started_cpu)
            started, started_cpu = time.perf_counter(), time.process_time()
            with StreamingModel.open(url) as model:
                open_s.append(time.perf_counter() - started)
                output = model(**inputs)[0]
                cold_s.append(time.perf_counter() - started)
                cold_cpu_s.append(time.process_time() - started_cpu)
                if not torch.equal(output, expected):
                    raise SystemExit("the streamed model's output differs from the plain one's")
                received = model.monitor.get_metrics()["bytes_received"]
                output = None
                for _ in range(10):
                    plain_s.append(_timed(lambda: plain(**inputs)))
                    warm_s.append(_timed(lambda model=model: model(**inputs)))
    floor_s = min(transfer_s) + min(plain_s)
    return {
        "layer_mb": layer_bytes / 1e6, "received_mb": received / 1e6, "bytes_over_layers": received / layer_bytes,
        "plain_forward_s": min(plain_s), "hash_s": hash_s, "transfer_s": min(transfer_s), "open_s": min(open_s),
        "cold_cpu_s": min(cold_cpu_s), "floor_cpu_s": min(floor_cpu_s),
        "cold_forward_s": min(cold_s), "warm_forward_s": min(warm_s), "cold_over_floor": min(cold_s) / floor_s,
        "warm_over_plain": min(warm_s) / min(plain_s),
    }  # fmt: skip


def two_layers(folder: Path, url: str, repeats: int) -> dict[str, Any]:
    """Peak memory above the imports with room for two layers, over a few forwards."""
    import torch
    import transformers

    from streamsplit.facade.streaming import StreamingModel

    transformers.BertModel(transformers.BertConfig(hidden_size=64, num_attention_heads=2))(
        torch.tensor([[1]])
    )  # warms up
    probe = _largest(folder)
    before_mb = _rss_mb()
    Path("/proc/self/clear_refs").write_text("5")
    took = []
    with StreamingModel.open(url, cache_bytes=2 * probe) as model:
        for _ in range(repeats):
            took.append(_timed(lambda: model(**_inputs())))
        metrics = model.monitor.get_metrics()
    return {
        "two_layer_peak_mb": _peak_mb() - before_mb, "two_layer_forward_s": min(took),
        "two_layer_hit_rate": metrics["cache_hit_rate"], "two_layer_budget_mb": 2 * probe / 1e6,
    }  # fmt: skip


def accelerate(folder: Path, url: str, repeats: int) -> dict[str, Any]:
    """A forward with accelerate's disk offload, which has the weights on this machine; nothing where it is missing."""
    import torch
    from transformers import BertModel

    try:
        from accelerate import disk_offload
    except ImportError:
        return {}
    model = BertModel.from_pretrained(folder / "model", dtype=torch.float32).eval()
    model = disk_offload(model, str(folder / "offloaded"), execution_device=torch.device("cpu"))
    return {"accelerate_disk_forward_s": min(_timed(lambda: model(**_inputs())) for _ in range(repeats))}


def tokens(folder: Path, url: str, repeats: int) -> dict[str, Any]:
    """Seconds a generated token, in turns with the plain model."""
    import torch
    from transformers import GPT2LMHeadModel

    from streamsplit.facade.streaming import StreamingModel

    plain = GPT2LMHeadModel.from_pretrained(folder / "model", dtype=torch.float32).eval()
    ids = _inputs()["input_ids"][:, :8]
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    took: dict[str, list[float]] = {"plain": [], "streamed": []}
    with StreamingModel.open(url) as model:
        if not torch.equal(model.generate(ids, **options), plain.generate(ids, **options)):
            raise SystemExit("the streamed model's tokens differ from the plain one's")
        for _ in range(repeats):
            took["plain"].append(_timed(lambda: plain.generate(ids, **options)) / 24)
            took["streamed"].append(_timed(lambda: model.generate(ids, **options)) / 24)
    return {
        "plain_token_ms": 1e3 * min(took["plain"]), "streamed_token_ms": 1e3 * min(took["streamed"]),
        "token_over_plain": min(took["streamed"]) / min(took["plain"]),
    }  # fmt: skip


def tied(folder: Path, url: str, repeats: int) -> dict[str, Any]:
    """Peak memory above the imports with room for two layers, of a model whose head is its embedding's matrix."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from streamsplit.facade.streaming import StreamingModel

    GPT2LMHeadModel(GPT2Config(n_embd=64, n_head=2, n_layer=1))(torch.tensor([[1]]))  # warms up
    before_mb = _rss_mb()
    Path("/proc/self/clear_refs").write_text("5")
    with StreamingModel.open(url, cache_bytes=2 * _largest(folder)) as model:
        model(**_inputs())
        matrix_mb = model.model.lm_head.weight.nbytes / 1e6
    return {
        "tied_peak_mb": _peak_mb() - before_mb, "tied_matrix_mb": matrix_mb,
        "tied_budget_mb": 2 * _largest(folder) / 1e6,
    }  # fmt: skip


PARTS: dict[str, Any] = {
    "make_bert": lambda folder, url, repeats: make_bert(folder),
    "make_gpt2": lambda folder, url, repeats: make_gpt2(folder),
    "make_bert_small": lambda folder, url, repeats: make_bert(folder, small=True),
    "make_gpt2_small": lambda folder, url, repeats: make_gpt2(folder, small=True),
    "cold": cold, "two_layers": two_layers, "tokens": tokens, "tied": tied, "accelerate": accelerate,
}  # fmt: skip


def _make(folder: Path, kind: Any, config: Any) -> dict[str, Any]:
    import torch

    from streamsplit.weights.streaming.chunker import ModelChunker

    torch.manual_seed(SEED)
    kind(config).save_pretrained(folder / "model")
    return ModelChunker(str(folder / "model"), folder / "chunks").chunk_model()


def _inputs() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return {"input_ids": torch.randint(2, 5000, (1, TOKENS), generator=generator)}


def _largest(folder: Path) -> int:
    from streamsplit.weights.streaming.manifest import read_manifest

    return read_manifest(folder / "chunks").largest_layer_bytes


def _timed(work: Any) -> float:
    import torch

    with torch.no_grad():
        started = time.perf_counter()
        work()
        return time.perf_counter() - started


def _transfer(file: Path, size: int) -> float:
    """Seconds in which another process sends `size` bytes of a file that it has read through a TCP socket on loopback,
    into memory that nothing was in before."""
    import numpy as np

    sender = (
        "import pathlib, socket, sys\n"
        "data = memoryview(pathlib.Path(sys.argv[3]).read_bytes())[: int(sys.argv[2])]\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "s.recv(1)\n"
        "s.sendall(data)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        child = subprocess.Popen([sys.executable, "-c", sender, str(port), str(size), str(file)])
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"x")
            started, at = time.perf_counter(), 0
            buffer = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]
            while at < size:
                at += connection.recv_into(buffer[at:])
            took = time.perf_counter() - started
    child.wait()
    return took


def _hash(file: Path, size: int, repeats: int) -> float:
    """Seconds that SHA-256 of `size` bytes takes in one thread."""
    data = file.read_bytes()[:size]
    return min(_timed(lambda: hashlib.sha256(data).digest()) for _ in range(repeats))


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _peak_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


@contextlib.contextmanager
def running_server(chunks: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "streamsplit.cli.main", "weights", "serve", "--chunks-dir", str(chunks)]
    process = subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise SystemExit("the server has no output")
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(20)


def _child(part: str, folder: Path, url: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "benchmarks.weight_stream", "--part", part, "--folder", str(folder), "--url", url,
        "--repeats", str(args.repeats),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    figures: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print(f"{part}: {json.dumps({k: v for k, v in figures.items() if isinstance(v, (int, float))})}", file=sys.stderr)
    return figures if not part.startswith("make_") else {}


if __name__ == "__main__":
    sys.exit(main())
