"""Pieces of chunks packed on their way, for links that are slower than zstd."""

from __future__ import annotations

from typing import Any

from streamsplit.errors import MissingExtraError, ProtocolError

LEVEL = 1  # of zstd: on the way, every time
WORTH = 0.97  # packed only below this share of the size


def zstandard_module() -> Any:
    """The package zstandard; raises MissingExtraError."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("compressed weights", "weights", str(error)) from error
    return zstandard


def packed_piece(data: bytes | memoryview) -> bytes | None:
    """zstd of a piece where that makes it smaller, else None."""
    packed = bytes(zstandard_module().ZstdCompressor(level=LEVEL).compress(data))
    return packed if len(packed) < WORTH * len(data) else None


def unpacked_piece(data: memoryview, size_bytes: int) -> memoryview:
    """The piece again, never more than announced; raises ProtocolError."""
    zstandard = zstandard_module()
    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            piece = bytes(reader.read(size_bytes + 1))
    except zstandard.ZstdError as error:
        raise ProtocolError("bad_transfer", f"a packed piece does not unpack ({error})") from None
    if len(piece) != size_bytes:
        raise ProtocolError("bad_transfer", f"got a piece of at least {len(piece)} bytes, expected {size_bytes}")
    return memoryview(piece)
