"""Shaping a whole interface with Linux's `tc`: a token bucket (TBF), and netem for delay and loss where there is."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from streamsplit.errors import ConfigError, StreamSplitError
from streamsplit.network.bandwidth import BandwidthTrace

_FRAME_BYTES, _HEADER_BYTES = 14, 52  # of Ethernet, before a packet; of IP and TCP with time stamps, in it
_USUAL_MTU = 1500
_EXPERIMENTAL_ETHERTYPE = b"\x88\xb5"  # IEEE 802, for local experiments
_LEAST_BPS = 1000  # TBF knows no 0: an outage lets a full packet through every 12 s
_BURST_S, _BURST_PACKETS = 0.010, 2  # sent at once at most, whichever is more
_BUFFER_S, _BUFFER_BYTES = 0.1, 128 << 10  # waits in the modem at most; less, and TCP's bursts of 64 KiB are lost
_SHORTEST_STEP_S = 0.1  # a call of `tc` costs a few ms
_CALL_S = 10.0  # a call of `tc` may take
_UNKNOWN = ("unknown", "not found", "no such file")  # what tc says when the kernel lacks a discipline


class TrafficControl:
    """What leaves `interface` goes over the link of `trace` from entering to leaving a `with` block.

    Only the way out is shaped, so the whole round trip's delay and loss lie there (half of each on lo, which carries
    both ways). `delay_shaped` is False where the kernel has no netem: then the rate alone is. Rates are of payload in
    full TCP packets. Whatever ends the block, the discipline is removed. Raises ConfigError (no tc, not root, no such
    interface, a discipline of the user's own) and StreamSplitError.
    """

    def __init__(self, interface: str, trace: BandwidthTrace) -> None:
        if not interface or interface.startswith("-") or len(interface.encode()) > 15:
            raise ConfigError(f"got interface '{interface}', expected a name such as eth0; `ip link` lists them")
        self.interface = interface
        self.trace = trace
        self.delay_shaped = False
        self._tc = ""
        self._set: tuple[int, int, float] | None = None
        self._present = False
        # No call is under way. Not join(): interrupted, that takes a running thread for ended (CPython 3.10, 3.11).
        self._idle = threading.Event()
        self._idle.set()
        self._mtu = _USUAL_MTU
        self._part = 0.5 if interface == "lo" else 1.0

    def __enter__(self) -> TrafficControl:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Removes the discipline, if there is one of ours; an interruption is raised after that. StreamSplitError."""
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                self._remove()
                break
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def _start(self) -> None:
        self._tc = find_tc()
        with contextlib.suppress(OSError, ValueError):  # what is wrong with the interface, tc says
            self._mtu = max(int(Path("/sys/class/net", self.interface, "mtu").read_text()), 2 * _HEADER_BYTES)
        target = ("qdisc", "add", "dev", self.interface)
        first = self._figures(0.0)
        failure = self._call(*target, "root", "handle", "1:", *self._netem(first))
        if not failure:
            self.delay_shaped = True
            failure = self._call(*target, "parent", "1:1", "handle", "10:", *self._tbf(first))
        elif any(word in failure.lower() for word in _UNKNOWN):
            failure = self._call(*target, "root", "handle", "1:", *self._tbf(first))
        if failure:
            raise ConfigError(self._explained(failure))
        self._set = first

    def follow(
        self, duration_s: float, show: Callable[[float], None] = lambda _: None, stop: threading.Event | None = None
    ) -> None:
        """Changes rate, delay and loss as the trace does, for a while; `show` gets the seconds since the start."""
        stop = stop or threading.Event()
        started = time.monotonic()
        while (now_s := time.monotonic() - started) < duration_s and not stop.is_set():
            self.apply(now_s)
            show(now_s)
            stop.wait(max(0.001, min(self._next_change_s(now_s), duration_s) - (time.monotonic() - started)))

    def apply(self, now_s: float) -> None:
        """Sets what the trace offers at a time; nothing is called where nothing changes. Raises StreamSplitError."""
        figures = self._figures(now_s)
        before, self._set = self._set, figures
        assert before is not None, "use inside a with block"
        failure = ""
        place = ("parent", "1:1", "handle", "10:") if self.delay_shaped else ("root", "handle", "1:")
        if figures[0] != before[0]:
            failure = self._call("qdisc", "change", "dev", self.interface, *place, *self._tbf(figures))
        if not failure and self.delay_shaped and figures[1:] != before[1:]:
            failure = self._call(
                "qdisc", "change", "dev", self.interface, "root", "handle", "1:", *self._netem(figures)
            )  # fmt: skip
        if failure:
            raise StreamSplitError(f"the shaping of {self.interface} could not be changed ({failure})")
        if figures[0] > before[0]:
            self._wake()

    def _wake(self) -> None:
        """The bucket set its alarm by the old rate, after an outage many seconds ahead: a frame makes it look anew."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((self.interface, 0))
            raw.send(bytes(12) + _EXPERIMENTAL_ETHERTYPE + bytes(46))  # to nobody

    def _figures(self, now_s: float) -> tuple[int, int, float]:
        """(bit/s on the wire, delay in us, loss in percent) as they are set."""
        index = int(np.searchsorted(self.trace.t_s, now_s % self.trace.duration_s, side="right")) - 1
        wire_share = (self._mtu + _FRAME_BYTES) / (self._mtu - _HEADER_BYTES)  # over the payload of a full packet
        rate = max(round(float(self.trace.rate_bps[index]) * wire_share), _LEAST_BPS)
        delay_us = round(float(self.trace.rtt_ms[index]) * self._part * 1000)
        loss = 0.0 if self.trace.loss is None else float(self.trace.loss[index]) * self._part
        return rate, delay_us, round(loss * 100, 3)

    def _next_change_s(self, now_s: float) -> float:
        cycle, phase = divmod(now_s, self.trace.duration_s)
        index = int(np.searchsorted(self.trace.t_s, phase, side="right"))
        change = float(self.trace.t_s[index]) if index < len(self.trace.t_s) else self.trace.duration_s
        return max(cycle * self.trace.duration_s + change, now_s + _SHORTEST_STEP_S)

    def _tbf(self, figures: tuple[int, int, float]) -> list[str]:
        rate = figures[0]
        burst = max(_BURST_PACKETS * (self._mtu + _FRAME_BYTES), round(rate / 8 * _BURST_S))
        limit = burst + max(_BUFFER_BYTES, burst, round(rate / 8 * _BUFFER_S))
        return ["tbf", "rate", f"{rate}bit", "burst", f"{burst}b", "limit", f"{limit}b"]

    def _netem(self, figures: tuple[int, int, float]) -> list[str]:
        return ["netem", "delay", f"{figures[1]}us", "loss", f"{figures[2]}%", "limit", "100000"]

    def _explained(self, failure: str) -> str:
        if "Cannot find device" in failure:
            return f"there is no interface '{self.interface}'; `ip link` lists them"
        if any(word in failure for word in ("File exists", "Exclusivity", "override")):
            return (
                f"{self.interface} has a queueing discipline already; remove it first: tc qdisc del dev "
                f"{self.interface} root"
            )
        if "not permitted" in failure:
            return f"tc may not shape {self.interface} (no CAP_NET_ADMIN); run as root or use --method proxy"
        if any(word in failure.lower() for word in _UNKNOWN):
            return f"this kernel has neither netem nor TBF (tc: {failure}); use --method proxy"
        return f"tc cannot shape {self.interface} ({failure}); use --method proxy"

    def _remove(self) -> None:
        self._idle.wait(2 * _CALL_S)  # the call that was interrupted, if one was
        if not self._present:
            return
        failure = self._call("qdisc", "del", "dev", self.interface, "root")
        if failure and "Cannot find device" not in failure:  # where it has gone, the discipline went with it
            raise StreamSplitError(
                f"the shaping of {self.interface} could not be removed ({failure}); run: tc qdisc del dev "
                f"{self.interface} root"
            )

    def _call(self, *words: str) -> str:
        """What tc complains of, '' where it does not.

        It runs in a thread, and in a session of its own: Ctrl-C ends neither it nor the note of what it has done.
        """
        failures: list[str] = []

        def work() -> None:
            try:
                done = subprocess.run(
                    [self._tc, *words],
                    capture_output=True,
                    text=True,
                    start_new_session=True,
                    timeout=_CALL_S,
                    check=False,
                )
                said = " ".join((done.stderr or done.stdout).split())
                failures.append("" if done.returncode == 0 else said or "no reason given")
                if done.returncode == 0 and words[1] in ("add", "del"):
                    self._present = words[1] == "add"
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(str(error))
            finally:
                self._idle.set()

        self._idle.clear()
        try:
            threading.Thread(target=work, name="tc").start()
        except RuntimeError:  # no thread to be had
            work()
        self._idle.wait()
        return failures[0]


def find_tc() -> str:
    """Where `tc` is; raises ConfigError where it is missing or may not be used."""
    path = shutil.which("tc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if path is None:
        raise ConfigError(
            "shaping an interface needs the program tc (package iproute2, Linux only); use --method proxy"
        )
    if os.geteuid() != 0:
        raise ConfigError("shaping an interface with tc needs root; run with sudo or use --method proxy")
    return path
