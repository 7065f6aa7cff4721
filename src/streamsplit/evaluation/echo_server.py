"""A server in a process of its own that says what it hears."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from streamsplit.evaluation.processes import Child, wait_until_ready


class EchoServer(NamedTuple):
    """Where it is."""

    port: int
    pid: int
    status_url: str


@contextmanager
def echo_server(folder: Path, transport: str = "websocket") -> Iterator[EchoServer]:
    """For the length of a block, its files in `folder`; neither trains nor learns. For 'quic' UDP has the same port.
    Raises StreamSplitError where it does not come up."""
    with socket.socket() as held, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
        datagrams.bind(("127.0.0.1", port))
    config = folder / "server.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "server": {
                    "port": port,
                    "quic_port": port if transport == "quic" else None,
                    "data_dir": str(folder / "server"),
                },
                "training": {"enabled": False},
                "dialogue": {"responder": "echo", "learn": False, "longest_s": 3_600.0},
            }
        )
    )
    server = Child("the server", ["server", "--config", str(config)], folder / "server.log")
    status_url = f"http://127.0.0.1:{port}/api/status"
    try:
        wait_until_ready(server, status_url)
        yield EchoServer(port, server.pid, status_url)
    finally:
        server.stop()
