"""`tc` for real, in two network namespaces of its own joined by a virtual cable: rates, outages, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest

from streamsplit.errors import ConfigError
from streamsplit.network.trace import constant_trace
from streamsplit.network.traffic_control import TrafficControl

pytestmark = pytest.mark.realtime

HERE, THERE = "10.77.3.1", "10.77.3.2"
# Prints (seconds since its first byte, bytes) of what comes in, and ends with the connection.
RECEIVER = """
import json, socket, sys, time
server = socket.create_server((sys.argv[1], 7777))
print("ready", flush=True)
peer, _ = server.accept()
got = []
while data := peer.recv(65536):
    got.append((time.monotonic(), len(data)))
print(json.dumps([(at - got[0][0], size) for at, size in got]))
"""
# Shapes `wire` by the trace given and sends all that goes for a while; prints whether delay is shaped.
SENDER = """
import json, socket, sys, threading
from streamsplit.network.traffic_control import TrafficControl
from streamsplit.network.trace import make_trace
times, rates, seconds = json.loads(sys.argv[2])
trace = make_trace(times, rates, 20.0, duration_s=100.0)
with TrafficControl("wire", trace) as control:
    link = socket.create_connection((sys.argv[1], 7777))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    link.settimeout(0.2)
    done = threading.Event()
    def send():
        while not done.is_set():
            try:
                link.send(bytes(8192))
            except TimeoutError:
                pass
    thread = threading.Thread(target=send)
    thread.start()
    control.follow(seconds)
    done.set()
    thread.join()
    print(control.delay_shaped)
"""


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"ip {words} failed")
    return done.stdout


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[str, str]]:
    """(with the interface `wire` and HERE, with THERE)."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("needs Linux, root, ip and tc")
    near, far = (f"streamsplit-{uuid.uuid4().hex[:8]}" for _ in range(2))
    made = []
    try:
        for name in (near, far):
            ip("netns", "add", name)
            made.append(name)
        ip("-n", near, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", far)
        for name, address in ((near, HERE), (far, THERE)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", name, "link", "set", device, "up")
    except OSError as error:
        for name in made:
            ip("netns", "delete", name)
        pytest.skip(f"no network namespaces here: {error}")
    try:
        yield near, far
    finally:
        for name in made:
            ip("netns", "delete", name)


def inside(namespace: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def discipline(namespace: str) -> str:
    return inside(namespace, "tc", "qdisc", "show", "dev", "wire").communicate(timeout=10)[0]


def shaped(namespaces: tuple[str, str], times: list[float], rates: list[float], seconds: float) -> list[list[float]]:
    near, far = namespaces
    receiver = inside(far, sys.executable, "-c", RECEIVER, THERE)
    assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
    sender = inside(near, sys.executable, "-c", SENDER, THERE, json.dumps([times, rates, seconds]))
    shown, failure = sender.communicate(timeout=60)
    assert shown in ("True\n", "False\n"), failure
    assert "tbf" not in discipline(near) and "netem" not in discipline(near)
    got: list[list[float]] = json.loads(receiver.communicate(timeout=60)[0])
    return got


def rate_mbps(got: list[list[float]], start_s: float, stop_s: float, bin_s: float = 0.2) -> float:
    """Median over bins, so that one loss that TCP answers does not count."""
    bins = [0.0] * int((stop_s - start_s) / bin_s + 1e-6)
    for at, size in got:
        if 0 <= at - start_s < len(bins) * bin_s:
            bins[min(int((at - start_s) / bin_s), len(bins) - 1)] += size * 8e-6 / bin_s
    return statistics.median(bins)


def test_the_payload_rate_is_the_traces_within_5_percent_and_follows_it(namespaces: tuple[str, str]) -> None:
    got = shaped(namespaces, [0.0, 2.0], [4e6, 12e6], 4.0)
    assert rate_mbps(got, 0.4, 1.8) == pytest.approx(4.0, rel=0.05)
    assert rate_mbps(got, 2.4, 3.8) == pytest.approx(12.0, rel=0.05)


def test_an_outage_of_the_trace_is_a_silence(namespaces: tuple[str, str]) -> None:
    got = shaped(namespaces, [0.0, 1.0, 2.0], [8e6, 0.0, 8e6], 4.0)
    # What waits in the bucket's queue goes on with the link; TCP may notice it a retransmission later.
    silent = [size for at, size in got if 1.2 < at < 1.9]
    assert sum(silent) < 10_000  # of a megabyte that the link would have carried
    assert sum(size for at, size in got if at > 3.0) > 500_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGINT])  # it was a race once
def test_an_interrupted_command_leaves_the_interface_as_it_was(
    namespaces: tuple[str, str], number: signal.Signals, tmp_path
) -> None:
    near, _ = namespaces
    code = """
import argparse, sys
from streamsplit.cli import simulate_network
parser = argparse.ArgumentParser()
simulate_network.add_arguments(parser)
simulate_network.run(parser.parse_args())
"""
    before = discipline(near)
    command = inside(
        near, sys.executable, "-c", code, "--duration", "60", "--enable-shaping", "--interface", "wire",
        "--output-dir", str(tmp_path),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while "tbf" not in discipline(near):
            assert time.monotonic() < deadline and command.poll() is None, command.communicate()[1]
        command.send_signal(number)  # `ip netns exec` has become the command
        _, failure = command.communicate(timeout=20)
    finally:
        command.kill()
    assert "KeyboardInterrupt" in failure  # which the command line turns into one word
    assert "could not be removed" not in failure
    assert discipline(near) == before


def test_a_discipline_of_the_users_own_is_left_alone_and_named(namespaces: tuple[str, str]) -> None:
    near, _ = namespaces
    inside(near, "tc", "qdisc", "add", "dev", "wire", "root", "handle", "7:", "tbf", "rate", "1mbit", "burst", "8kb",
           "latency", "1s").communicate(timeout=10)  # fmt: skip
    try:
        code = """
from streamsplit.network.traffic_control import TrafficControl
from streamsplit.network.trace import constant_trace
with TrafficControl("wire", constant_trace(1e6)): pass
"""
        _, failure = inside(near, sys.executable, "-c", code).communicate(timeout=20)
        assert "ConfigError: wire has a queueing discipline already; remove it first" in failure
        assert "tbf 7:" in discipline(near)
    finally:
        inside(near, "tc", "qdisc", "del", "dev", "wire", "root").communicate(timeout=10)


def test_an_interface_that_is_not_there_is_named(namespaces: tuple[str, str]) -> None:
    with (
        pytest.raises(ConfigError, match="there is no interface 'nosuch0'"),
        TrafficControl("nosuch0", constant_trace(1e6)),
    ):
        pass
