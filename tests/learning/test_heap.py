"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pytest

from streamsplit.learning.heap import trim_heap

PIECES, PIECE_BYTES = 2_000, 20_000  # each below what glibc maps by itself


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")
def test_freed_pieces_below_one_that_is_held_go_back() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("this C library is not glibc")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    process = psutil.Process()
    pieces = [libc.malloc(PIECE_BYTES) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE_BYTES)
    held = pieces.pop()  # at the top of the heap: free alone cannot shrink it
    for piece in pieces:
        libc.free(piece)
    before = process.memory_info().rss
    assert trim_heap()
    assert before - process.memory_info().rss > 0.5 * PIECES * PIECE_BYTES
    libc.free(held)
