"""Gives memory back that the C library holds for nobody."""

from __future__ import annotations

import ctypes


def trim_heap() -> bool:
    """Returns freed heap pages to the system; False where the C library cannot (it is not glibc) or has none to give.

    Fits over hundreds of windows leave tens of megabytes behind in pieces that glibc would otherwise keep.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no handle of the process itself
        return False
    return bool(trim(0))
