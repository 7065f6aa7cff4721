"""The weight stream over a slow link, and one server with many clients.

    python -m benchmarks.weight_link [--seconds 5]

The link is the live shaper's: 20 Mbit/s, 50 ms round trip; its floor is the received bytes at that rate. The clients
run in processes of their own; what one core of the server can do is read from the processor time that it took.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import record
from benchmarks.weight_stream import running_server
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import constant_trace

SEED = 0
RATE_BPS, RTT_MS = 20e6, 50.0
CLIENTS, PROCESSES = 50, 2


def main() -> int:
    """Both parts; writes benchmarks/results/weight_link.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the many clients")
    parser.add_argument("--clients", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clients:
        print(json.dumps(_load(args.url, args.clients, args.seconds)))
        return 0
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder)
        figures |= _link(folder)
        figures |= _many(folder, args.seconds)
    settings = {
        "rate_bps": RATE_BPS, "rtt_ms": RTT_MS, "clients": CLIENTS, "seconds": args.seconds,
        "model": "BERT, 12 layers of 256, random weights",
    }  # fmt: skip
    for item, value in figures.items():
        print(f"{item:32s} {value:10.4g}")
    print(f"written to {record('weight_link', figures, settings, [SEED])}")
    return 0


def _make(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    from streamsplit.weights.streaming.chunker import ModelChunker

    torch.manual_seed(SEED)
    config = BertConfig(hidden_size=256, num_attention_heads=4, intermediate_size=1024, vocab_size=5000)
    BertModel(config).save_pretrained(folder / "model")
    for dtype in ("fp32", "int8"):
        ModelChunker(str(folder / "model"), folder / dtype, dtype=dtype).chunk_model()


def _link(folder: Path) -> dict[str, Any]:
    """Cold forwards over the shaped link, fp32 with and without prefetch, and int8 with its error on the output."""
    import torch
    from transformers import BertModel

    from streamsplit.facade.streaming import StreamingModel

    plain = BertModel.from_pretrained(folder / "model", dtype=torch.float32).eval()
    inputs = {"input_ids": torch.randint(2, 5000, (1, 32), generator=torch.Generator().manual_seed(SEED))}
    figures: dict[str, Any] = {}
    with torch.no_grad():
        expected = plain(**inputs)[0]
        for label, dtype, prefetch in (("fp32", "fp32", 1), ("fp32_no_prefetch", "fp32", 0), ("int8", "int8", 1)):
            with running_server(folder / dtype) as url:
                host, port = url.removeprefix("ws://").rsplit(":", 1)
                trace = constant_trace(RATE_BPS, RTT_MS)
                proxy = ShapedProxy((host, int(port)), trace, trace).start_in_thread()
                try:
                    with StreamingModel.open(f"ws://{proxy.address[0]}:{proxy.address[1]}", prefetch=prefetch) as model:
                        before, started = model.monitor.get_metrics()["bytes_received"], time.monotonic()
                        output = model(**inputs)[0]
                        took = time.monotonic() - started
                        received = model.monitor.get_metrics()["bytes_received"] - before
                finally:
                    proxy.stop_thread()
            figures |= {
                f"{label}_forward_s": took, f"{label}_received_mb": received / 1e6,
                f"{label}_over_link_floor": took / (8 * received / RATE_BPS),
                f"{label}_output_error": float((output - expected).norm() / expected.norm()),
            }  # fmt: skip
    return figures


def _many(folder: Path, seconds: float) -> dict[str, Any]:
    """Bytes that one server gives 50 clients, per second and per second of its processor time."""
    with running_server(folder / "fp32") as url:
        server = next(p for p in psutil.Process().children() if "serve" in p.cmdline())
        before, started = sum(server.cpu_times()[:2]), time.monotonic()
        command = [sys.executable, "-m", "benchmarks.weight_link", "--clients", str(CLIENTS // PROCESSES)]
        loads = [
            subprocess.Popen([*command, "--url", url, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]
        results = [json.loads(load.communicate()[0]) for load in loads]
        cpu_s = sum(server.cpu_times()[:2]) - before
        with urllib.request.urlopen(url.replace("ws://", "http://") + "/metrics") as answer:
            text = answer.read().decode()
    total_mb = sum(result["bytes"] for result in results) / 1e6
    waits = sorted(wait for result in results for wait in result["first_ms"])
    return {
        "many_mb_per_s": total_mb / max(result["seconds"] for result in results),
        "many_mb_per_server_cpu_s": total_mb / cpu_s, "many_requests": len(waits),
        "many_whole_chunk_p50_ms": waits[len(waits) // 2],
        "server_first_piece_p99_at_most_ms": 1e3 * _quantile(text, 0.99),
        "many_wall_s": time.monotonic() - started,
    }  # fmt: skip


def _load(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Clients in one process that fetch layer after layer."""
    from streamsplit.edge.weight_client import WeightClient
    from streamsplit.edge.weight_link import WeightLinkSettings

    devices = [WeightClient(url, WeightLinkSettings(device_id=f"d{os.getpid()}-{n}")) for n in range(clients)]
    layers = devices[0].manifest().of_role("layer")
    for device in devices:
        device.manifest()
    started, total, waits, turn = time.monotonic(), 0, [], 0
    while time.monotonic() - started < seconds:
        begun = time.monotonic()
        chunk = layers[turn % len(layers)]
        futures = [device.fetch(chunk.digest, chunk.stored_bytes) for device in devices]
        for future in futures:
            total += len(future.result(60))
            waits.append(1e3 * (time.monotonic() - begun))
        turn += 1
    took = time.monotonic() - started
    for device in devices:
        device.close()
    return {"bytes": total, "seconds": took, "first_ms": waits}


def _quantile(text: str, share: float) -> float:
    """Upper bound of a quantile of the server's time to the first piece, from its histogram."""
    found = re.findall(r'first_piece_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    total = float(found[-1][1])
    return next(float(bound) for bound, count in found if float(count) >= share * total)


if __name__ == "__main__":
    sys.exit(main())
