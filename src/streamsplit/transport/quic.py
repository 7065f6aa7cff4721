"""One QUIC connection at either end: a stream for what must arrive in order, datagrams for what may be lost.

The stream carries frames one behind the other, as any transport without message borders does; a datagram carries one
frame. Which frames those are is the protocol's to say (`wire.dialogue.may_be_lost`). aioquic grants flow control for
what it has received, not for what was read, and has no word for how much is unsent: both are kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.serialization import Encoding

from streamsplit.transport.count import ByteCount, UdpByteCount
from streamsplit.transport.pipe import Channel, Received
from streamsplit.wire.dialogue import may_be_lost

ALPN = "streamsplit/1"
IDLE_S = 10.0  # without a packet the connection is over; the protocol probes every 2 s
LARGEST_DATAGRAM = 1_100  # a frame that fits into a packet of 1200 bytes, the least that every path carries
MOST_WAITING = 8  # datagrams that wait for the congestion window; older ones are late, and give way
LEAST_WINDOW_BYTES = 7_200  # unacknowledged, however much is lost: nearly a second of a voice, or it would be held back
UNSENT_BYTES = 16 << 10  # of the stream that may wait here: what became urgent meanwhile does not queue behind more
UNREAD_BYTES = 1 << 20  # beyond it packets are dropped unacknowledged, which slows the sender down
_STREAM = 0  # the first one that a client opens
_FINISH_S = 1.0
_STRAY_STREAM, _FAILED = 1, 2  # application error codes

logging.getLogger("quic").setLevel(logging.WARNING)  # aioquic writes several lines of INFO for every connection


class _VoiceReno(RenoCongestionControl):
    """New Reno, but never down to two packets: half of a voice's acknowledgements may be lost, too."""

    def on_packets_lost(self, *, now: float, packets: Any) -> None:
        super().on_packets_lost(now=now, packets=packets)
        self._hold()

    def on_persistent_congestion(self) -> None:
        self.congestion_window = 0
        self._hold()

    def _hold(self) -> None:
        self.congestion_window = max(self.congestion_window, LEAST_WINDOW_BYTES)
        self.ssthresh = None if self.ssthresh is None else max(self.ssthresh, LEAST_WINDOW_BYTES)


register_congestion_control("voice", _VoiceReno)


def configuration(*, is_client: bool) -> QuicConfiguration:
    """What both ends agree on."""
    return QuicConfiguration(
        is_client=is_client, alpn_protocols=[ALPN], idle_timeout=IDLE_S, max_datagram_frame_size=2 * LARGEST_DATAGRAM,
        congestion_control_algorithm="voice",
    )  # fmt: skip


class QuicPipe(QuicConnectionProtocol):
    """See `transport.pipe.Pipe`."""

    def __init__(
        self,
        quic: QuicConnection,
        stream_handler: Any = None,
        *,
        count: ByteCount | None = None,
        connected_socket: bool = False,
        opened: Callable[[QuicPipe], None] = lambda pipe: None,
    ) -> None:
        """`connected_socket`: it takes no address; `opened` is called once the handshake is done."""
        super().__init__(quic, stream_handler)
        self.count = UdpByteCount() if count is None else count
        self.given_up = 0  # datagrams that waited too long to be sent
        self.ended = ""
        self.error_code = 0  # of QUIC, why it ended
        self.refused = False  # the socket said that nobody listens there
        self._address = ""
        self._connected_socket = connected_socket
        self._opened = opened
        self._arrived: deque[Received] = deque()
        self._unread = 0
        self._written = 0
        self._has_stream = quic.configuration.is_client
        self._over = False
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()

    @property
    def peer(self) -> str:
        """The other end's address."""
        return self._address

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the other end's certificate, hex; "" before the handshake."""
        certificate = self._quic.tls._peer_certificate  # aioquic has no other way to it
        return "" if certificate is None else hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()

    async def receive(self) -> Received | None:
        """What comes next; None once the connection is over."""
        while not self._arrived:
            if self._over:
                return None
            self._changed.clear()
            await self._changed.wait()
        received = self._arrived.popleft()
        self._unread -= len(received.data)
        return received

    async def send(self, frame: bytes) -> None:
        """Sends a frame as a datagram where it may be lost and fits, else on the stream."""
        if self._over:
            raise ConnectionError(self.ended or "the connection is over")
        if len(frame) <= LARGEST_DATAGRAM and may_be_lost(frame):
            waiting = self._quic._datagrams_pending
            if len(waiting) >= MOST_WAITING:
                self.transmit()
            while len(waiting) >= MOST_WAITING:
                waiting.popleft()
                self.given_up += 1
            self._quic.send_datagram_frame(frame)
        elif self._has_stream:  # whoever has not said anything yet has no stream to be answered on
            self._quic.send_stream_data(_STREAM, frame)
            self._written += len(frame)
        self._transmit_soon()
        await self._until(lambda: self._unsent <= UNSENT_BYTES)

    async def finish(self, *, fatal: bool = False) -> None:
        """Ends it when what was sent has arrived, or after a second."""
        if not self._over and self._has_stream:
            stream = self._quic._streams.get(_STREAM)
            if stream is not None and not stream.sender.is_finished:
                with contextlib.suppress(AssertionError, RuntimeError, ValueError):  # it was ended or reset before
                    self._quic.send_stream_data(_STREAM, b"", end_stream=True)
                self.transmit()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._until(lambda: stream.sender.is_finished), _FINISH_S)
        self._end(_FAILED if fatal else 0)

    def abort(self) -> None:
        """Ends it at once."""
        self._end(0)
        if self._connected_socket and self._transport is not None:
            self._transport.close()

    # -- for aioquic ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Counts what goes out."""
        super().connection_made(_Counting(transport, self.count, self._connected_socket))  # type: ignore[arg-type]

    def datagram_received(self, data: Any, addr: Any) -> None:
        """A UDP packet."""
        if self._unread > UNREAD_BYTES:
            return
        self.count.received(len(data))
        self._address = str(addr[0]).removeprefix("::ffff:")
        super().datagram_received(data, addr)

    def error_received(self, error: Exception) -> None:
        """Nobody listens at the other end, as its machine says: final before the handshake; later it may be a server
        that comes back, or a forgery, and silence decides."""
        if isinstance(error, ConnectionRefusedError) and not self._connected:
            self.refused = True
            self._end(0)

    def transmit(self) -> None:
        """Sends, and wakes whoever waits for room."""
        super().transmit()
        self._sent.set()

    def quic_event_received(self, event: events.QuicEvent) -> None:
        """What came."""
        if isinstance(event, events.StreamDataReceived):
            if event.stream_id != _STREAM:
                self._end(_STRAY_STREAM, "one stream is enough")
                return
            self._has_stream = True
            if event.data:
                self._take(Received(event.data, Channel.STREAM))
            if event.end_stream:
                self._over = True
                self._changed.set()
        elif isinstance(event, events.DatagramFrameReceived):
            self._take(Received(event.data, Channel.DATAGRAM))
        elif isinstance(event, events.HandshakeCompleted):
            self._connected = True
            self._opened(self)
        elif isinstance(event, (events.StreamReset, events.StopSendingReceived)):
            self._end(_STRAY_STREAM, "the stream was reset")
        elif isinstance(event, events.ConnectionTerminated):
            self.error_code = event.error_code
            self.ended = event.reason_phrase or ("" if not event.error_code else f"QUIC error {event.error_code:#x}")
            self._over = True
            self._changed.set()
            self._sent.set()

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _unsent(self) -> int:
        """Bytes of the stream that have not been handed to the network, or must be again."""
        stream = self._quic._streams.get(_STREAM)
        return 0 if stream is None else self._written - stream.sender.next_offset

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not (self._over or reached()):
            self._sent.clear()
            await self._sent.wait()

    def _take(self, received: Received) -> None:
        self._arrived.append(received)
        self._unread += len(received.data)
        self._changed.set()

    def _end(self, error_code: int, reason: str = "") -> None:
        self._over = True
        self._changed.set()
        self._sent.set()
        self._quic.close(error_code=error_code, reason_phrase=reason)
        if self._transport is not None and not self._transport.is_closing():
            self.transmit()


class _Counting:
    """A socket's transport, with what goes out counted."""

    def __init__(self, inner: asyncio.DatagramTransport, count: ByteCount, connected: bool) -> None:
        self._inner, self._count, self._connected = inner, count, connected

    def sendto(self, data: bytes, addr: Any = None) -> None:
        """One UDP packet; timers of a connection that is over may still come here."""
        if self._inner.is_closing():
            return
        self._count.sent(len(data))
        self._inner.sendto(data, None if self._connected else addr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
