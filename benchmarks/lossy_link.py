"""An echo over one lossy link by TCP (WebSocket) and by QUIC: how late it is heard, and how much of it.

The kernel's own TCP meets the loss, in network namespaces:
`unshare --user --map-root-user --net python -m benchmarks.lossy_link`. Bursts of loss last 29 ms on average, one to
three frames of 20 ms; each way loses alike.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import record
from streamsplit.edge.settings import EdgeSettings
from streamsplit.evaluation.processes import read_json_url
from streamsplit.evaluation.talk_latency import measure
from streamsplit.network.packets import PacketLinkSettings
from streamsplit.network.tunnel import FAR, Tunnel
from streamsplit.server.certificate import certificate_files

BURST_MS, PORT, STARTS_S = 29.0, 8888, 120.0
LOSSES = (0.0, 0.05, 0.1, 0.2)
KEPT = ("frames", "total", "buffer", "link_bytes_s", "socket_bytes_s", "client_cpu_share", "message_ms")


def echo(transport: str, loss: float, one_way_ms: float, messages: int, seed: int, folder: Path) -> dict[str, Any]:
    """Latencies and what became of the frames of one conversation."""
    config = folder / "server.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "server": {"bind_address": FAR, "quic_port": PORT, "data_dir": str(folder / "server")},
                "auth": {"allow_open": True},
                "training": {"enabled": False},
                "dialogue": {"responder": "echo", "learn": False, "longest_s": 3_600.0},
            }
        )
    )
    link = PacketLinkSettings(one_way_ms=one_way_ms, loss=loss, burst_ms=BURST_MS)
    command = [sys.executable, "-m", "streamsplit.cli.main", "server", "--config", str(config)]
    fingerprint = certificate_files("", "", folder / "server").fingerprint
    with Tunnel(command, link, seed, str(folder / "server.log")) as tunnel:
        began_s = time.monotonic()
        while read_json_url(f"http://{FAR}:{PORT}/api/status", 5.0) is None:
            if time.monotonic() - began_s > STARTS_S or tunnel.process.poll() is not None:
                raise SystemExit(f"the server did not start: {(folder / 'server.log').read_text()[-1_000:]}")
            time.sleep(0.2)
        url, pin = f"ws://{FAR}:{PORT}/v1/stream", ""
        if transport == "quic":
            url, pin = f"quic://{FAR}:{PORT}", fingerprint
        settings = EdgeSettings.from_mapping(
            {"server": {"url": url, "tls_fingerprint": pin}, "talk": {"frames_per_message": 1, "adapt_bitrate": False}}
        )
        found = measure(settings, messages, url=url)
        lost = [way.lost / max(1, way.packets) for way in (tunnel.up, tunnel.down)]
    return {"transport": transport, "loss": loss, "seed": seed, **{name: found[name] for name in KEPT}, "lost": lost}


def main() -> None:
    """Prints a row for every transport, loss and seed, taking turns, and records them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000)
    parser.add_argument("--one-way-ms", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        for loss in LOSSES:
            for transport in ("websocket", "quic"):
                folder = Path(tempfile.mkdtemp())
                try:
                    rows.append(echo(transport, loss, args.one_way_ms, args.messages, seed, folder))
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                print(rows[-1], flush=True)
    settings = {"one_way_ms": args.one_way_ms, "burst_ms": BURST_MS, "messages": args.messages}
    record(f"lossy_link_{args.one_way_ms:g}ms", {"rows": rows}, settings, range(args.seeds))


if __name__ == "__main__":
    main()
