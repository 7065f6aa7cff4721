"""What DIALOGUE holds, and the table of the dialogue's states."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_pair import Pair

from streamsplit.errors import ProtocolError
from streamsplit.wire.dialogue import (
    DIALOGUE_HEADER_BYTES,
    Kind,
    Utterance,
    may_be_lost,
    pack_utterance,
    text_of,
    unpack_utterance,
)
from streamsplit.wire.events import MediaReceived
from streamsplit.wire.frame import Frame, encode_frame
from streamsplit.wire.session import CLIENT_SETTINGS, ClientSession, ServerSession
from streamsplit.wire.states import next_state
from streamsplit.wire.talk_states import TALK_TABLE, TalkInput, TalkState
from streamsplit.wire.types import NUMBERED_TYPES, OPTIONAL_TYPES, FrameFlag, FrameType


def test_the_bytes_are_those_of_the_page() -> None:
    piece = Utterance(0x01020304, 6, Kind.OPUS, 20.0, (b"\xfc\xff", b"\xfe"), 35)
    assert pack_utterance(piece).hex() == "04030201" + "06000000" + "01" + "28" + "02" + "00" + "2300" + "0000" + (
        "0200fcff" + "0100fe"
    )
    assert unpack_utterance(pack_utterance(piece)) == piece and DIALOGUE_HEADER_BYTES == 16


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    piece=st.builds(
        Utterance, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from([Kind.PCM16, Kind.OPUS]),
        st.sampled_from([2.5, 5.0, 10.0, 20.0, 40.0, 60.0]),
        st.lists(st.binary(max_size=200), max_size=24).map(tuple), st.integers(0, 65535), st.booleans(),
    )
)  # fmt: skip
def test_what_is_packed_unpacks(piece: Utterance) -> None:
    assert unpack_utterance(pack_utterance(piece)) == piece


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.binary(max_size=80))
def test_other_bytes_are_refused_or_are_a_piece(data: bytes) -> None:
    try:
        piece = unpack_utterance(data)
    except ProtocolError as error:
        assert error.code == "bad_media"
    else:
        assert pack_utterance(piece) == data


def test_every_cut_of_a_piece_is_refused() -> None:
    data = pack_utterance(Utterance(1, 0, Kind.OPUS, 20.0, (b"abc", b"", b"de")))
    for size in range(len(data)):
        with pytest.raises(ProtocolError, match="bad_media"):
            unpack_utterance(data[:size])
    with pytest.raises(ProtocolError, match="behind"):
        unpack_utterance(data + b"x")


@pytest.mark.parametrize(
    "piece",
    [
        Utterance(1, 0, Kind.OPUS, 20.0, (b"",) * 25),
        Utterance(1, 0, Kind.PCM16, 60.0, (bytes(1_920),) * 10),
        Utterance(1, 0, Kind.OPUS, 20.0, (bytes(70_000),)),
    ],
)
def test_too_much_for_a_message_is_refused(piece: Utterance) -> None:
    with pytest.raises(ProtocolError, match="at most"):
        pack_utterance(piece)


def test_text_and_stop_have_no_duration() -> None:
    said = Utterance(7, 0, Kind.TEXT, 0.0, ("Tür".encode(),))
    assert text_of(unpack_utterance(pack_utterance(said))) == "Tür"
    with pytest.raises(ProtocolError, match="UTF-8"):
        text_of(said._replace(frames=(b"\xff",)))
    with pytest.raises(ProtocolError, match=r"frames of 20\.0 ms in a message of kind TEXT"):
        unpack_utterance(pack_utterance(said._replace(frame_ms=20.0)))
    with pytest.raises(ProtocolError, match="kind STOP"):
        unpack_utterance(pack_utterance(Utterance(7, 0, Kind.STOP, 0.0, (b"x",))))


@pytest.mark.parametrize(("state", "happened"), list(itertools.product(TalkState, TalkInput)))
def test_every_pair_is_in_the_table_or_an_error_that_names_both(state: TalkState, happened: TalkInput) -> None:
    if (state, happened) in TALK_TABLE:
        assert next_state(TALK_TABLE, state, happened) is TALK_TABLE[state, happened]
    else:
        with pytest.raises(ProtocolError, match=rf"{happened.name} \(.*\) in state {state.name}"):
            next_state(TALK_TABLE, state, happened)


def test_the_seeds_path_is_in_the_table_and_every_state_can_fail_and_recover() -> None:
    state = TalkState.IDLE
    path = [TalkInput.SPEECH, TalkInput.SENT, TalkInput.SILENCE, TalkInput.ANSWER, TalkInput.READY, TalkInput.FINISHED]
    seen = [state := next_state(TALK_TABLE, state, happened) for happened in path]
    assert [each.name for each in seen] == ["RECORDING", "STREAMING", "PROCESSING", "RECEIVING", "PLAYING", "IDLE"]
    for each in TalkState:
        assert next_state(TALK_TABLE, each, TalkInput.FAULT) is TalkState.ERROR
    assert next_state(TALK_TABLE, TalkState.ERROR, TalkInput.RECOVERED) is TalkState.IDLE
    assert next_state(TALK_TABLE, TalkState.PLAYING, TalkInput.SPEECH) is TalkState.RECORDING  # barge-in


def frame_of(piece: Utterance, flags: FrameFlag = FrameFlag.NONE) -> bytes:
    return encode_frame(Frame(FrameType.DIALOGUE, flags, 1, 0, pack_utterance(piece)))


LIVE_PIECE = Utterance(7, 3, Kind.OPUS, 20.0, (b"abc",), 0, True)


def test_live_sound_may_be_lost_but_not_an_utterances_beginning_end_text_or_stop() -> None:
    assert may_be_lost(frame_of(LIVE_PIECE)) and may_be_lost(frame_of(LIVE_PIECE._replace(first=1 << 24)))
    kept = [
        frame_of(LIVE_PIECE._replace(first=0)), frame_of(LIVE_PIECE, FrameFlag.FINAL),
        frame_of(LIVE_PIECE._replace(live=False)), frame_of(Utterance(7, 0, Kind.TEXT, 0.0, (b"hello",))),
        frame_of(Utterance(7, 0, Kind.STOP, 0.0, ())), b"", frame_of(LIVE_PIECE)[:31],
    ]  # fmt: skip
    assert not any(map(may_be_lost, kept))


@pytest.mark.parametrize("kind", [kind for kind in FrameType if kind is not FrameType.DIALOGUE])
def test_no_other_type_may_be_lost(kind: FrameType) -> None:
    numbered = kind in NUMBERED_TYPES
    flags = FrameFlag.NUMBERED if numbered else FrameFlag.NONE
    assert not may_be_lost(encode_frame(Frame(kind, flags, int(numbered), 0, pack_utterance(LIVE_PIECE))))


def open_pair() -> Pair:
    pair = Pair()
    taken = OPTIONAL_TYPES - {FrameType.DIALOGUE}
    pair.client = ClientSession(CLIENT_SETTINGS, pair.now_ms, refuses=taken)
    pair.server = ServerSession(pair.now_ms, refuses=taken)
    pair.open()
    return pair


def test_a_datagram_brings_what_may_be_lost_and_nothing_else() -> None:
    pair = open_pair()
    for end in (pair.server, pair.client):
        end.receive_datagram(frame_of(LIVE_PIECE), pair.now_ms)
        (event,) = end.events()
        assert isinstance(event, MediaReceived) and unpack_utterance(event.frame.payload) == LIVE_PIECE
        for stray in (
            frame_of(LIVE_PIECE, FrameFlag.FINAL),
            frame_of(LIVE_PIECE)[:-1],
            frame_of(LIVE_PIECE) + b"x",
            encode_frame(Frame(FrameType.BYE, FrameFlag.NONE, 0, 0, b"\x80")),
        ):
            end.receive_datagram(stray, pair.now_ms)
        assert end.events() == [] and end.strays == 4 and end.is_open


def test_before_the_handshake_and_after_the_end_datagrams_are_passed_over() -> None:
    server = ServerSession(0.0, refuses=frozenset())
    server.receive_datagram(frame_of(LIVE_PIECE), 1.0)
    assert server.strays == 1 and not server.events() and not server.waits()
    pair = open_pair()
    pair.cut()
    pair.server.receive_datagram(frame_of(LIVE_PIECE), pair.now_ms)
    assert pair.server.strays == 1 and not [e for e in pair.server.events() if isinstance(e, MediaReceived)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60), cut=st.integers(0, 40), place=st.integers(0, 34), value=st.integers(0, 255))
def test_no_datagram_ends_a_session(data: bytes, cut: int, place: int, value: int) -> None:
    """Random bytes, and a good frame with one byte changed and its end cut off."""
    pair = open_pair()
    damaged = bytearray(frame_of(LIVE_PIECE))
    damaged[place] = value
    for datagram in (data, bytes(damaged), bytes(damaged[: len(damaged) - cut])):
        pair.server.receive_datagram(datagram, pair.now_ms)
        pair.client.receive_datagram(datagram, pair.now_ms)
    for end in (pair.server, pair.client):
        assert end.is_open and not [event for event in end.events() if not isinstance(event, MediaReceived)]
