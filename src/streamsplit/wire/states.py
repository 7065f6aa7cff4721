"""The states of both ends of a session: what can happen, and one table per end; a missing pair is an error."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from streamsplit.errors import ProtocolError


class ClientState(Enum):
    """Where a device's session stands."""

    IDLE = "no connection yet"
    GREETING = "HELLO sent, waiting for WELCOME"
    OPEN = "windows and results flow"
    LOST = "the connection is gone, the session can be resumed"
    CLOSED = "the session is over; the next HELLO starts a new one"


class ServerState(Enum):
    """Where the server's session for one device stands."""

    AWAIT_HELLO = "connected, waiting for HELLO"
    DECIDING = "the owner decides about the HELLO"
    OPEN = "windows and results flow"
    DETACHED = "the connection is gone, the session waits to be resumed"
    CLOSED = "the session is over"


class Input(Enum):
    """What can happen to a session, at either end."""

    CONNECT = "the device's owner has a transport and greets"
    HELLO = "HELLO received"
    WELCOME = "WELCOME received"
    ACCEPT = "the server's owner accepts the device"
    REJECT = "the server's owner rejects the device"
    HAND_OVER = "an older session of the server resumes on this transport"
    RESUME = "the device came back on a new transport"
    DATA = "any other frame received"
    PING = "PING received"
    FATAL_ERROR = "fatal ERROR received"
    BYE = "BYE received"
    BREAK = "the peer broke the protocol, or this end failed"
    SILENCE = "nothing heard for too long"
    DISCONNECT = "the transport is gone"
    EXPIRE = "not resumed in time"
    CLOSE = "the owner ends the session"


_C, _S, _I = ClientState, ServerState, Input
CLIENT_TABLE: dict[tuple[ClientState, Input], ClientState] = {
    (_C.IDLE, _I.CONNECT): _C.GREETING,
    (_C.IDLE, _I.BREAK): _C.CLOSED,
    (_C.IDLE, _I.DISCONNECT): _C.IDLE,
    (_C.IDLE, _I.CLOSE): _C.CLOSED,
    (_C.GREETING, _I.WELCOME): _C.OPEN,
    (_C.GREETING, _I.PING): _C.GREETING,
    (_C.GREETING, _I.FATAL_ERROR): _C.CLOSED,
    (_C.GREETING, _I.BYE): _C.CLOSED,
    (_C.GREETING, _I.BREAK): _C.CLOSED,
    (_C.GREETING, _I.SILENCE): _C.LOST,
    (_C.GREETING, _I.DISCONNECT): _C.LOST,
    (_C.GREETING, _I.CLOSE): _C.CLOSED,
    (_C.OPEN, _I.DATA): _C.OPEN,
    (_C.OPEN, _I.PING): _C.OPEN,
    (_C.OPEN, _I.FATAL_ERROR): _C.CLOSED,
    (_C.OPEN, _I.BYE): _C.CLOSED,
    (_C.OPEN, _I.BREAK): _C.CLOSED,
    (_C.OPEN, _I.SILENCE): _C.LOST,
    (_C.OPEN, _I.DISCONNECT): _C.LOST,
    (_C.OPEN, _I.CLOSE): _C.CLOSED,
    (_C.LOST, _I.CONNECT): _C.GREETING,
    (_C.LOST, _I.DISCONNECT): _C.LOST,
    (_C.LOST, _I.CLOSE): _C.CLOSED,
    (_C.CLOSED, _I.CONNECT): _C.GREETING,
    (_C.CLOSED, _I.DISCONNECT): _C.CLOSED,
    (_C.CLOSED, _I.CLOSE): _C.CLOSED,
}

SERVER_TABLE: dict[tuple[ServerState, Input], ServerState] = {
    (_S.AWAIT_HELLO, _I.HELLO): _S.DECIDING,
    (_S.AWAIT_HELLO, _I.FATAL_ERROR): _S.CLOSED,
    (_S.AWAIT_HELLO, _I.BYE): _S.CLOSED,
    (_S.AWAIT_HELLO, _I.BREAK): _S.CLOSED,
    (_S.AWAIT_HELLO, _I.SILENCE): _S.CLOSED,
    (_S.AWAIT_HELLO, _I.DISCONNECT): _S.CLOSED,
    (_S.AWAIT_HELLO, _I.CLOSE): _S.CLOSED,
    (_S.DECIDING, _I.ACCEPT): _S.OPEN,
    (_S.DECIDING, _I.REJECT): _S.CLOSED,
    (_S.DECIDING, _I.HAND_OVER): _S.CLOSED,
    (_S.DECIDING, _I.PING): _S.DECIDING,
    (_S.DECIDING, _I.FATAL_ERROR): _S.CLOSED,
    (_S.DECIDING, _I.BYE): _S.CLOSED,
    (_S.DECIDING, _I.BREAK): _S.CLOSED,
    (_S.DECIDING, _I.DISCONNECT): _S.CLOSED,
    (_S.DECIDING, _I.CLOSE): _S.CLOSED,
    (_S.OPEN, _I.RESUME): _S.OPEN,
    (_S.OPEN, _I.DATA): _S.OPEN,
    (_S.OPEN, _I.PING): _S.OPEN,
    (_S.OPEN, _I.FATAL_ERROR): _S.CLOSED,
    (_S.OPEN, _I.BYE): _S.CLOSED,
    (_S.OPEN, _I.BREAK): _S.CLOSED,
    (_S.OPEN, _I.SILENCE): _S.DETACHED,
    (_S.OPEN, _I.DISCONNECT): _S.DETACHED,
    (_S.OPEN, _I.CLOSE): _S.CLOSED,
    (_S.DETACHED, _I.RESUME): _S.OPEN,
    (_S.DETACHED, _I.DISCONNECT): _S.DETACHED,
    (_S.DETACHED, _I.EXPIRE): _S.CLOSED,
    (_S.DETACHED, _I.CLOSE): _S.CLOSED,
    (_S.CLOSED, _I.DISCONNECT): _S.CLOSED,
    (_S.CLOSED, _I.CLOSE): _S.CLOSED,
}

S = TypeVar("S", bound=Enum)
H = TypeVar("H", bound=Enum)


def next_state(table: Mapping[tuple[S, H], S], state: S, happened: H) -> S:
    """The state after `happened`; raises ProtocolError('unexpected') naming both if the table has no such pair."""
    try:
        return table[state, happened]
    except KeyError:
        raise ProtocolError("unexpected", f"{happened.name} ({happened.value}) in state {state.name}") from None
