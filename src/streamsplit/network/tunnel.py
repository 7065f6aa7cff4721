"""A lossy link for the kernel's own TCP and UDP: two network namespaces, a TUN device in each, and this between them.

What a proxy cannot do: a TCP connection through here loses segments, and the kernel repeats them. Needs Linux and user
namespaces: run the whole program under `unshare --user --map-root-user --net`.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from types import TracebackType

from streamsplit.errors import StreamSplitError
from streamsplit.network.packets import PacketDirection, PacketLinkSettings

NEAR, FAR = "10.99.0.1", "10.99.0.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MTU = 1_500
_WAIT_S = 0.2


def open_tun(address: str) -> int:
    """A TUN device in this namespace, up, with an address; its file. Raises StreamSplitError."""
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"lossy", _IFF_TUN | _IFF_NO_PI))
        for words in ("link set lo up", f"addr add {address}/24 dev lossy", f"link set lossy mtu {_MTU} up"):
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StreamSplitError(
            f"no TUN device ({error}); run under: unshare --user --map-root-user --net, where /dev/net/tun is open"
        ) from error
    return device


def run_far(descriptor: int, command: list[str]) -> None:
    """In a process of its own: another namespace, whose TUN device goes to `descriptor`; becomes the command."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise StreamSplitError(f"no network namespace ({os.strerror(ctypes.get_errno())})")
    device = open_tun(FAR)
    with socket.socket(fileno=descriptor) as held:
        socket.send_fds(held, [b"tun"], [device])
    os.execvp(command[0], command)


class Tunnel:
    """The link from here (NEAR) to a process at the other end (FAR), as a context."""

    def __init__(self, command: list[str], settings: PacketLinkSettings, seed: int = 0, log: str = os.devnull) -> None:
        """`command` runs at the far end; both ways have the same settings and their own seeds."""
        self.up, self.down = PacketDirection(settings, 2 * seed), PacketDirection(settings, 2 * seed + 1)
        self._command, self._log = command, log
        self._done = threading.Event()

    def __enter__(self) -> Tunnel:
        self._near = open_tun(NEAR)
        ours, theirs = socket.socketpair()
        with ours, theirs, open(self._log, "ab") as output:  # noqa: PTH123 - for a process
            words = [sys.executable, "-m", __name__, str(theirs.fileno()), *self._command]
            self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdout=output, stderr=output)
            theirs.close()
            _, files, _, _ = socket.recv_fds(ours, 3, 1)
        if not files:
            os.close(self._near)
            raise StreamSplitError(f"the far end did not come up; its log: {self._log}")
        self._far = files[0]
        self._thread = threading.Thread(target=self._carry, name="lossy-link", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._done.set()
        self._thread.join()
        os.close(self._near)
        os.close(self._far)

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []  # arrives, order, to, packet
        order = itertools.count()
        ways = {self._near: (self.up, self._far), self._far: (self.down, self._near)}
        while not self._done.is_set():
            now_s = time.monotonic()
            while under_way and under_way[0][0] <= now_s:
                _, _, device, packet = heapq.heappop(under_way)
                os.write(device, packet)
            wait_s = min(_WAIT_S, max(0.0, under_way[0][0] - now_s)) if under_way else _WAIT_S
            for device in select.select(list(ways), [], [], wait_s)[0]:
                direction, other = ways[device]
                packet = os.read(device, 2 * _MTU)
                arrives_s = direction.arrival_s(time.monotonic(), len(packet))
                if arrives_s is not None:
                    heapq.heappush(under_way, (arrives_s, next(order), other, packet))


if __name__ == "__main__":
    run_far(int(sys.argv[1]), sys.argv[2:])
