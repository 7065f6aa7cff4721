"""What a session tells its owner: `session.events()` returns these in the order in which they happened."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from streamsplit.wire.codes import may_retry
from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Hello, Message, Welcome


class Opened(NamedTuple):
    """Client: the server welcomed us. Delete queued windows below `feed_from`, then send from there on."""

    welcome: Welcome
    feed_from: int  # uplink sequence that the server wants next
    rtt_ms: float  # HELLO to WELCOME


class HelloReceived(NamedTuple):
    """Server: a device asks to come in. Answer with `accept`, `reject`, or `resume` on the session it had before."""

    hello: Hello


class MessageReceived(NamedTuple):
    """A control message for the owner; a RESULT comes here too, once. An Error that comes here is not fatal."""

    message: Message


class MediaReceived(NamedTuple):
    """An unnumbered media frame: WEIGHTS, DIALOGUE, GRAD_BACK."""

    frame: Frame


class WindowReceived(NamedTuple):
    """Server: the next uplink window, each sequence once and in order. `acknowledge` it once it is durable."""

    frame: Frame
    arrived_ms: float


class Acked(NamedTuple):
    """The peer holds every numbered frame through `through` durably."""

    through: int
    echo_ms: int  # timestamp field of frame `through`
    held_ms: float  # the peer's time between receiving that frame and sending the ack
    received_bytes: int  # the peer's count for this connection when that frame had arrived
    arrived_ms: int  # the peer's clock then; 0 if it does not know
    now_ms: float  # our clock when the ack came
    rtt_ms: float  # hand-over of frame `through` to the transport until the ack, less held_ms; NaN if not sent here


class RoundTrip(NamedTuple):
    """A PING came back."""

    rtt_ms: float
    now_ms: float


class Missed(NamedTuple):
    """Client: downlink frames that had left the server's replay window; the store sends their RESULTs again."""

    first: int  # downlink sequences
    last: int


class ReplayDropped(NamedTuple):
    """Server: RESULTs fell out of the bounded replay window unacknowledged; `results_wanted` will name them."""

    first: int  # downlink sequences
    last: int


class Closed(NamedTuple):
    """The connection is over: hand over what `bytes_to_send` still gives, then close the transport."""

    reason: str
    fatal: bool  # an error, not an orderly end or a lost link
    code: str  # an error code, "bye", or "timeout"

    @property
    def retry(self) -> bool:
        """Whether connecting again with the same settings may succeed."""
        return not self.fatal or may_retry(self.code)


Event: TypeAlias = (
    Opened
    | HelloReceived
    | MessageReceived
    | MediaReceived
    | WindowReceived
    | Acked
    | RoundTrip
    | Missed
    | ReplayDropped
    | Closed
)
