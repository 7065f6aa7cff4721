"""A proxy's thread: its processor time is told, and is its own."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from streamsplit.network.bandwidth import constant_trace
from streamsplit.network.shaper import ShapedProxy


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell a thread's time")
def test_what_the_thread_takes_is_told_and_what_others_take_is_not() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        link = constant_trace(10e6, 20.0)
        proxy = ShapedProxy(nobody.getsockname(), link, link).start_in_thread()
        try:
            before_s = proxy.cpu_s
            assert before_s > 0.0
            until_s = time.process_time() + 0.2
            while time.process_time() < until_s:  # this thread's work
                pass
            assert proxy.cpu_s - before_s < 0.1
        finally:
            proxy.stop_thread()
    assert proxy.cpu_s == 0.0
