"""The weight stream at /v1/weights: who asks for bytes of a streamed model, and how they come. No IO, no clock.

One WebSocket binary message is one frame with the header of `wire.frame`; its types are this endpoint's own. The
sequence field holds the id of a request: replies may come in any order of requests, but each request's bytes in theirs.

    device                                server
    OPEN (device, token)          ->
                                  <-      READY (revision, size of the manifest)
    MANIFEST_REQ / CHUNK_REQ [id] ->
                                  <-      DATA [id] ... DATA [id] FINAL, or FAULT [id]
"""

from __future__ import annotations

import struct
from collections import deque
from enum import Enum, IntEnum
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from streamsplit.errors import ProtocolError
from streamsplit.wire.messages import U16, U32, U63, Code, DeviceId, Hash, Text
from streamsplit.wire.types import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, PROTOCOL_VERSION

PIECE_BYTES = 256 << 10  # of data in one frame where clients take turns: what the next one's piece waits behind
LONE_PIECE_BYTES = MAX_FRAME_BYTES  # where nobody else waits
MAX_PENDING = 64  # requests of one connection that are not answered yet
FINAL = 2  # the flag, as in wire.types
PACKED = 8  # the payload is zstd; the header's timestamp field holds its size unpacked
_HEADER = struct.Struct("<BBBBIII")
HEADER_BYTES = _HEADER.size
_MAX_ID = 0xFFFF_FFFF
_T = TypeVar("_T")


class ChunkFrame(IntEnum):
    """The byte at offset 1 of the header."""

    OPEN = 64
    READY = 65
    MANIFEST_REQ = 66
    CHUNK_REQ = 67
    DATA = 68
    FAULT = 69


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Open(_Message, frozen=True, kw_only=True):
    """First message of a client."""

    protocol: U16
    device_id: DeviceId
    token: Annotated[str, Meta(max_length=512)] = ""
    compress: bool = False  # DATA may be packed

    def __repr__(self) -> str:
        return f"Open(device_id={self.device_id!r}, token hidden)"


class Ready(_Message, frozen=True, kw_only=True):
    """The server lets the client in."""

    revision: Hash  # of the manifest
    manifest_bytes: Annotated[int, Meta(ge=1, le=16 << 20)]


class ManifestRequest(_Message, frozen=True, kw_only=True):
    """Asks for the manifest from an offset on."""

    offset: U32 = 0


class ChunkRequest(_Message, frozen=True, kw_only=True):
    """Asks for a range of a chunk's stored bytes."""

    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    offset: U63 = 0
    length: Annotated[int, Meta(ge=1, le=1 << 40)]


class Fault(_Message, frozen=True, kw_only=True):
    """A request that cannot be answered; with id 0 the connection is over."""

    code: Code
    detail: Text


class Piece(NamedTuple):
    """Client: the next bytes of a request."""

    request: int
    offset: int  # in what was asked for, 0 at its beginning
    data: memoryview
    last: bool
    packed_bytes: int = 0  # size unpacked, where `data` is zstd


class Placement(NamedTuple):
    """Client: a DATA frame whose header has come; its payload belongs at `offset` of what was asked for."""

    request: int
    offset: int
    length: int
    last: bool


class Failed(NamedTuple):
    """Client: a request was refused; id 0 means the whole connection was."""

    request: int
    code: str
    detail: str


class Asked(NamedTuple):
    """Server: a request; `digest` is "" for the manifest, and `length` 0 then."""

    request: int
    digest: str
    offset: int
    length: int


Event: TypeAlias = "Piece | Failed"


class State(Enum):
    """Of either end."""

    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class ChunkClient:
    """The client's end: `open`, then requests; `receive` gives what came."""

    def __init__(self) -> None:
        self.state = State.OPENING
        self.ready: Ready | None = None
        self._next_id = 1
        self._outgoing: deque[bytes] = deque()
        self._pending: dict[int, list[int]] = {}  # id -> [received, expected]

    @property
    def pending(self) -> int:
        """Requests without their last byte; at most MAX_PENDING may be."""
        return len(self._pending)

    def open(self, device_id: str, token: str = "", *, compress: bool = False) -> None:
        """Says who we are, and whether pieces may come packed."""
        message = Open(protocol=PROTOCOL_VERSION, device_id=device_id, token=token, compress=compress)
        self._outgoing.append(_pack(ChunkFrame.OPEN, 0, msgspec.msgpack.encode(message)))

    def request_manifest(self, offset: int = 0) -> int:
        """Asks for the manifest from an offset on; gives the request's id."""
        if self.ready is None:
            raise ProtocolError("unexpected", "got a request before READY, expected it after")
        message = ManifestRequest(offset=offset)
        return self._request(ChunkFrame.MANIFEST_REQ, message, self.ready.manifest_bytes - offset)

    def request(self, digest: str, offset: int, length: int) -> int:
        """Asks for a range of a chunk; gives the request's id."""
        return self._request(ChunkFrame.CHUNK_REQ, ChunkRequest(digest=digest, offset=offset, length=length), length)

    def bytes_to_send(self) -> list[bytes]:
        """WebSocket messages that are due."""
        sent = list(self._outgoing)
        self._outgoing.clear()
        return sent

    def receive(self, data: bytes) -> list[Piece | Failed]:
        """What one WebSocket message says; raises ProtocolError, after which the connection is to be closed."""
        kind, flags, request, payload, packed_bytes = _unpack(data)
        if self.state is State.CLOSED:
            return []
        if kind is ChunkFrame.FAULT:
            fault = _decode(Fault, payload)
            if request == 0:
                self.state = State.CLOSED
            elif self._pending.pop(request, None) is None:
                raise ProtocolError("unexpected", f"got a refusal of request {request}, which is not pending")
            return [Failed(request, fault.code, fault.detail)]
        if self.state is State.OPENING:
            if kind is not ChunkFrame.READY:
                raise ProtocolError("unexpected", f"got {kind.name}, expected READY")
            self.ready, self.state = _decode(Ready, payload), State.OPEN
            return []
        if kind is not ChunkFrame.DATA:
            raise ProtocolError("unexpected", f"got {kind.name}, expected DATA or FAULT")
        return [self._piece(request, payload, bool(flags & FINAL), packed_bytes)]

    def begin(self, header: bytes, length: int) -> Placement | None:
        """Where the payload [length] of a DATA frame goes, told by its header alone, so that it need not be copied.

        None for every other frame, and for packed data: `receive` takes those whole. Raises ProtocolError as it does.
        `complete` must follow before the next frame.
        """
        kind, flags, request, packed_bytes = _check_header(header, length)
        if kind is not ChunkFrame.DATA or packed_bytes or self.state is not State.OPEN:
            return None
        offset, last = self._advance(request, length, bool(flags & FINAL))
        return Placement(request, offset, length, last)

    def complete(self, placement: Placement) -> Piece:
        """All of a placement's bytes are where they belong; the piece says so, without data."""
        return Piece(placement.request, placement.offset, memoryview(b""), placement.last)

    def _piece(self, request: int, payload: memoryview, last: bool, packed_bytes: int) -> Piece:
        offset, last = self._advance(request, packed_bytes or len(payload), last)
        return Piece(request, offset, payload, last, packed_bytes)

    def _advance(self, request: int, size_bytes: int, last: bool) -> tuple[int, bool]:
        """Counts bytes of a request that come now; gives where they begin."""
        progress = self._pending.get(request)
        if progress is None:
            raise ProtocolError("unexpected", f"got data for request {request}, which is not pending")
        offset, expected = progress
        progress[0] += size_bytes
        if progress[0] > expected or last is not (progress[0] == expected):
            raise ProtocolError(
                "bad_transfer", f"request {request}: got {progress[0]} bytes{' at its end' * last}, expected {expected}"
            )
        if last:
            del self._pending[request]
        return offset, last

    def _request(self, kind: ChunkFrame, message: _Message, expected: int) -> int:
        if self.state is not State.OPEN or len(self._pending) >= MAX_PENDING:
            raise ProtocolError("flow_control", f"got a request while {self.state.value}, {self.pending} pending")
        request, self._next_id = self._next_id, self._next_id % _MAX_ID + 1
        self._pending[request] = [0, expected]
        self._outgoing.append(_pack(kind, request, msgspec.msgpack.encode(message)))
        return request


class ChunkServer:
    """The server's end: `receive` gives what is asked for, `data` and `fault` make the frames that answer."""

    def __init__(self) -> None:
        self.state = State.OPENING
        self.opened: Open | None = None
        self._pending: set[int] = set()

    def receive(self, data: bytes) -> Open | Asked:
        """What one WebSocket message asks for; raises ProtocolError, after which the connection is to be closed."""
        if len(data) > _HEADER.size + MAX_MESSAGE_BYTES:
            raise ProtocolError("frame_too_large", f"got {len(data)} bytes, expected at most {MAX_MESSAGE_BYTES}")
        kind, _, request, payload, _ = _unpack(data)
        if self.state is State.OPENING:
            if kind is not ChunkFrame.OPEN or self.opened is not None:
                raise ProtocolError("unexpected", f"got {kind.name}, expected OPEN, once")
            self.opened = _decode(Open, payload)
            if self.opened.protocol != PROTOCOL_VERSION:
                raise ProtocolError(
                    "bad_version", f"got protocol version {self.opened.protocol}, expected {PROTOCOL_VERSION}"
                )
            return self.opened
        if kind is ChunkFrame.MANIFEST_REQ:
            wanted = _decode(ManifestRequest, payload)
            asked = Asked(request, "", wanted.offset, 0)
        elif kind is ChunkFrame.CHUNK_REQ:
            chunk = _decode(ChunkRequest, payload)
            asked = Asked(request, chunk.digest, chunk.offset, chunk.length)
        else:
            raise ProtocolError("unexpected", f"got {kind.name}, expected a request")
        if request == 0 or request in self._pending:
            raise ProtocolError("bad_sequence", f"got request id {request}, expected one above 0 that is not pending")
        if len(self._pending) >= MAX_PENDING:
            raise ProtocolError("flow_control", f"got more than {MAX_PENDING} requests, expected fewer at a time")
        self._pending.add(request)
        return asked

    def accept(self, revision: str, manifest_bytes: int) -> bytes:
        """READY, after OPEN."""
        self.state = State.OPEN
        return _pack(
            ChunkFrame.READY, 0, msgspec.msgpack.encode(Ready(revision=revision, manifest_bytes=manifest_bytes))
        )

    def data(self, request: int, payload: bytes | memoryview, last: bool, *, packed_bytes: int = 0) -> bytes:
        """One DATA frame; `packed_bytes` is the size that a zstd payload unpacks to."""
        return b"".join((self.data_header(request, len(payload), last, packed_bytes=packed_bytes), payload))

    def data_header(self, request: int, size_bytes: int, last: bool, *, packed_bytes: int = 0) -> bytes:
        """The header of one, for who puts it before the payload himself."""
        if last:
            self._pending.discard(request)
        flags = (FINAL if last else 0) | (PACKED if packed_bytes else 0)
        return _HEADER.pack(PROTOCOL_VERSION, ChunkFrame.DATA, flags, 0, request, packed_bytes, size_bytes)

    def fault(self, code: str, detail: str, request: int = 0) -> bytes:
        """FAULT for one request, or for the connection."""
        self._pending.discard(request)
        if request == 0:
            self.state = State.CLOSED
        return _pack(ChunkFrame.FAULT, request, msgspec.msgpack.encode(Fault(code=code, detail=detail[:1000])))


def _pack(kind: ChunkFrame, request: int, payload: bytes) -> bytes:
    return _HEADER.pack(PROTOCOL_VERSION, kind, 0, 0, request, 0, len(payload)) + payload


def _unpack(data: bytes) -> tuple[ChunkFrame, int, int, memoryview, int]:
    if len(data) < HEADER_BYTES:
        raise ProtocolError("truncated", f"got {len(data)} bytes, expected a header of {HEADER_BYTES}")
    kind, flags, request, packed_bytes = _check_header(data, len(data) - HEADER_BYTES)
    return kind, flags, request, memoryview(data)[HEADER_BYTES:], packed_bytes


def _check_header(data: bytes, got: int) -> tuple[ChunkFrame, int, int, int]:
    """Type, flags, request and size unpacked of a frame of `got` payload bytes; raises ProtocolError."""
    version, kind, flags, reserved, request, packed_bytes, length = _HEADER.unpack_from(data)
    if version != PROTOCOL_VERSION:
        raise ProtocolError("bad_version", f"got protocol version {version}, expected {PROTOCOL_VERSION}")
    if kind not in _KINDS:
        raise ProtocolError("unknown_type", f"got frame type {kind}, expected one of the weight stream")
    if flags & ~(FINAL | PACKED) or (flags and kind != ChunkFrame.DATA):
        raise ProtocolError("bad_flags", f"got flags {flags:#x} on type {kind}")
    if reserved:
        raise ProtocolError("bad_reserved", f"got reserved byte {reserved}, expected 0")
    limit = MAX_FRAME_BYTES if kind == ChunkFrame.DATA else MAX_MESSAGE_BYTES
    if length > limit:
        raise ProtocolError("frame_too_large", f"got {length} payload bytes, allowed {limit}")
    if bool(flags & PACKED) is not (0 < packed_bytes <= MAX_FRAME_BYTES):
        raise ProtocolError("bad_flags", f"got {packed_bytes} bytes unpacked with flags {flags:#x}")
    if got != length:
        code = "truncated" if got < length else "trailing_bytes"
        raise ProtocolError(code, f"got {got} payload bytes, expected {length} as the header says")
    return _KINDS[kind], flags, request, packed_bytes


_KINDS = {int(kind): kind for kind in ChunkFrame}
_decoders: dict[Any, Any] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Open, Ready, ManifestRequest, ChunkRequest, Fault)
}


def _decode(kind: type[_T], payload: memoryview) -> _T:
    try:
        message: _T = _decoders[kind].decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError("bad_message", f"{kind.__name__}: {error}") from None
    return message
