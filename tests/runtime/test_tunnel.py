"""The kernel's own TCP over a link that loses packets: late, and whole. Needs user namespaces and /dev/net/tun."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

ALONE = ["unshare", "--user", "--map-root-user", "--net"]
# The far end sends back what it gets; the near end sends 60 KB at a time until the link has lost some.
PROGRAM = """
import json, os, socket, sys, threading, time
from streamsplit.network.packets import PacketLinkSettings
from streamsplit.network.tunnel import FAR, Tunnel
far = (
    "import socket\\n"
    f"server = socket.create_server(('{FAR}', 7000))\\n"
    "peer, _ = server.accept()\\n"
    "while data := peer.recv(65536): peer.sendall(data)\\n"
)
link = PacketLinkSettings(one_way_ms=10.0, loss=0.1, burst_ms=5.0)
with Tunnel([sys.executable, "-c", far], link, seed=2) as tunnel:
    while True:
        try:
            peer = socket.create_connection((FAR, 7000), timeout=20)
            break
        except OSError:
            time.sleep(0.05)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    began, whole, rounds = time.monotonic(), True, 0
    while whole and rounds < 50 and not tunnel.up.lost + tunnel.down.lost:
        data, got, rounds = os.urandom(60_000), b"", rounds + 1
        threading.Thread(target=peer.sendall, args=(data,)).start()
        while len(got) < len(data):
            got += peer.recv(65536)
        whole = got == data
    print(json.dumps({
        "whole": whole, "lost": tunnel.up.lost + tunnel.down.lost, "took_s": time.monotonic() - began,
    }))
    peer.close()
"""


def test_tcp_repeats_what_the_link_loses() -> None:
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*ALONE, sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    if "no TUN device" in done.stderr:
        pytest.skip("/dev/net/tun cannot be opened here")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] and found["lost"] > 0 and found["took_s"] >= 0.02
