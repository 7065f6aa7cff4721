"""Layers as hex in JSON messages beside the binary stream: bytes and seconds of a cold forward, in one run.

    python -m benchmarks.weight_peer [--quick]

The form of the other side is that of the package `streaming-weights` 0.1.1, re-implemented here from its description,
not the package itself: for every layer a WebSocket connection of its own, a request as a line of text, and one JSON
message whose field holds the layer as torch.save writes it, in hexadecimal digits; the client makes a new layer and
loads it. It is measured as the library's defaults are (the connection is deflated) and without deflate, each layer once
and with the next layer fetched ahead by a task that shares nothing with the one that needs it, so that most layers
travel twice. Both sides serve the same bert-base of random weights, run the same layers of transformers on the same
input and must give the plain model's output. What the package does besides (its dropout, its random layers in place of
missing ones) is left out. Every client and server is a process of its own; times are the best of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.weight_stream import running_server

SEED = 0
TOKENS = 32
FORMS = {  # name -> (deflate, the next layer is fetched ahead)
    "hex_once": (False, False), "hex_ahead": (False, True),
    "hex_deflated_once": (True, False), "hex_deflated_ahead": (True, True),
}  # fmt: skip


def main() -> int:
    """Runs every form and ours one after the other; writes benchmarks/results/weight_peer.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model: does it run at all")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--part", choices=("make", "serve", "hex", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--form", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return _part(args)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _child("make", folder, *(["--quick"] if args.quick else []))
        with running_server(folder / "chunks") as url:
            figures |= {f"ours_{k}": v for k, v in _best(folder, args, "ours", "--url", url).items()}
        for form in FORMS:
            with _hex_server(folder, form) as url:
                found = _best(folder, args, "hex", "--url", url, "--form", form)
            figures |= {f"{form}_{k}": v for k, v in found.items()}
            for what in ("cold_s", "received_mb"):
                figures[f"{form}_over_ours_{what.rpartition('_')[0]}"] = found[what] / figures[f"ours_{what}"]
    for item, value in figures.items():
        print(f"{item:40s} {value:10.4g}")
    settings = {"quick": args.quick, "repeats": args.repeats, "tokens_of_input": TOKENS, "model": "bert-base, random"}
    if not args.quick:
        print(f"written to {record('weight_peer', figures, settings, [SEED])}")
    return 0


def _best(folder: Path, args: argparse.Namespace, part: str, *more: str) -> dict[str, float]:
    """The fastest of the repeats, in a fresh process."""
    found = _child(part, folder, "--repeats", str(args.repeats), *more)
    return dict(min(found["runs"], key=lambda run: run["cold_s"]))


def _child(part: str, folder: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.weight_peer", "--part", part, "--folder", str(folder), *more]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(found)
    return result


@contextlib.contextmanager
def _hex_server(folder: Path, form: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.weight_peer", "--part", "serve", "--folder", str(folder)]
    process = subprocess.Popen([*command, "--form", form], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


# -- parts, each in a process of its own ---------------------------------------------------------------------------


def _part(args: argparse.Namespace) -> int:
    deflate, ahead = FORMS.get(args.form, (False, False))
    if args.part == "serve":
        asyncio.run(_serve(args.folder, deflate))
        return 0
    found: dict[str, Any] = {}
    if args.part == "make":
        _make(args.folder, args.quick)
    elif args.part == "ours":
        _warm()
        found = {"runs": [_ours(args.folder, args.url) for _ in range(args.repeats)]}
    else:
        _warm()
        runs = [asyncio.run(_hex(args.folder, args.url, deflate, ahead)) for _ in range(args.repeats)]
        found = {"runs": runs}
    print(json.dumps(found))
    return 0


def _make(folder: Path, small: bool) -> None:
    import torch
    from transformers import BertConfig, BertModel

    from streamsplit.weights.streaming.chunker import ModelChunker

    torch.manual_seed(SEED)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512} if small else {}
    model = BertModel(BertConfig(**sizes)).eval()
    model.save_pretrained(folder / "model")
    ModelChunker(str(folder / "model"), folder / "chunks").chunk_model()
    with torch.no_grad():
        torch.save(model(**_inputs())[0], folder / "expected.pt")
    for index, layer in enumerate(model.encoder.layer):
        torch.save(layer.state_dict(), folder / f"layer_{index}.pt")


def _ours(folder: Path, url: str) -> dict[str, float]:
    """From opening to the output, with room for all layers."""
    import torch

    from streamsplit.facade.streaming import StreamingModel

    started, started_cpu = time.perf_counter(), time.process_time()
    with StreamingModel.open(url) as model:
        output = model(**_inputs())[0]
        took, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        received = model.monitor.get_metrics()["bytes_received"]
    _same(output, torch.load(folder / "expected.pt"))
    return {"cold_s": took, "cpu_s": cpu, "received_mb": received / 1e6}


async def _serve(folder: Path, deflate: bool) -> None:
    """One message for each request; a layer's digits are made once."""
    from websockets.asyncio.server import ServerConnection, serve

    made: dict[str, str] = {}

    async def answer(socket: ServerConnection) -> None:
        async for line in socket:
            index = str(line).rpartition(" ")[2]
            if index not in made:
                made[index] = (folder / f"layer_{int(index)}.pt").read_bytes().hex()
            await socket.send(json.dumps({"success": True, "component": f"layer_{index}", "weights": made[index]}))

    compression: Any = "deflate" if deflate else None
    async with serve(answer, "127.0.0.1", 0, compression=compression, max_size=None) as server:
        print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.get_running_loop().create_future()


async def _hex(folder: Path, url: str, deflate: bool, ahead: bool) -> dict[str, float]:
    """From the first layer's request to the output; embeddings and pooler are there, as the package has them."""
    import torch
    from transformers import BertModel
    from transformers.models.bert.modeling_bert import BertLayer
    from websockets.asyncio.client import connect

    model = BertModel.from_pretrained(folder / "model", dtype=torch.float32).eval()
    config, count = model.config, len(model.encoder.layer)
    received = [0]
    compression: Any = "deflate" if deflate else None

    async def fetch(index: int) -> Any:
        async with connect(url, max_size=None, compression=compression) as socket:
            _count(socket.protocol, received)
            await socket.send(f"GET LAYER {index}")
            message = json.loads(await socket.recv())
        state = torch.load(io.BytesIO(bytes.fromhex(message["weights"])))
        layer = BertLayer(config)
        layer.load_state_dict(state)
        return layer.eval()

    held: dict[int, Any] = {}

    async def fetch_ahead(index: int) -> None:
        held[index] = await fetch(index)

    started, started_cpu, tasks = time.perf_counter(), time.process_time(), []
    with torch.no_grad():
        for index in range(count):
            if ahead and index + 1 < count:
                tasks.append(asyncio.create_task(fetch_ahead(index + 1)))
            model.encoder.layer[index] = held.get(index) or await fetch(index)
        output = model(**_inputs())[0]
    took, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    await asyncio.gather(*tasks)
    _same(output, torch.load(folder / "expected.pt"))
    return {"cold_s": took, "cpu_s": cpu, "received_mb": received[0] / 1e6}


def _count(protocol: Any, received: list[int]) -> None:
    """Counts what the socket brings, as it comes from the network."""
    take = protocol.receive_data

    def counting(data: bytes) -> None:
        received[0] += len(data)
        take(data)

    protocol.receive_data = counting


def _warm() -> None:
    """What a first forward of a process costs by itself is neither side's."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.no_grad():
        BertModel(BertConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=1))(torch.tensor([[1]]))


def _inputs() -> dict[str, Any]:
    import torch

    return {"input_ids": torch.arange(TOKENS)[None] % 1000 + 2}


def _same(output: Any, expected: Any) -> None:
    import torch

    if not torch.equal(output, expected):
        raise SystemExit(f"the output differs from the plain model's by {float((output - expected).abs().max()):.3g}")


if __name__ == "__main__":
    raise SystemExit(main())
