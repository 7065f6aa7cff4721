"""The firmware's device against the server's end of the protocol, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from c_device import CDevice, built, make
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.synth import render_scene
from streamsplit.audio.windows import WindowStream
from streamsplit.codec.tinystream.bitstream import unpack
from streamsplit.codec.tinystream.frames import IntegerEncoderStream
from streamsplit.codec.tinystream.integer_file import read_integer
from streamsplit.edge.payload import PieceChain, pack_input
from streamsplit.splitting.cut import Cut
from streamsplit.wire.events import Closed, HelloReceived, MessageReceived, WindowReceived
from streamsplit.wire.frame import Frame, decode_frame, encode_frame
from streamsplit.wire.media import Encoding, MediaFlag, MediaHeader, Resolution, unpack_media
from streamsplit.wire.messages import (
    Error,
    Gmm,
    Hello,
    Ping,
    Policy,
    Result,
    Stats,
    Throttle,
    decode_message,
    encode_message,
)
from streamsplit.wire.session import ServerSession, SessionSettings
from streamsplit.wire.types import FrameFlag, FrameType

OFFLINE, OPEN, ENDED = 0, 2, 3
RATE = 16_000


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    audio = render_scene("conversation", seconds, np.random.default_rng(seed)).clip(-1, 1)
    return np.rint(audio * 32_767).astype(np.int16)


@pytest.fixture
def device() -> Iterator[CDevice]:
    made = CDevice()
    yield made
    made.close()


class Server:
    """Stores what comes and answers it, as the gateway does; a connection at a time."""

    def __init__(self, settings: SessionSettings | None = None) -> None:
        self.settings = settings or SessionSettings()
        self.session: ServerSession | None = None
        self.hellos: list[Hello] = []
        self.stored: dict[int, Frame] = {}
        self.frames: list[Frame] = []
        self.told: list[object] = []
        self.closed: list[Closed] = []
        self.answers = True
        self._fresh: ServerSession | None = None

    def connect(self, now_ms: float) -> None:
        self._fresh = ServerSession(now_ms, self.settings)

    def disconnect(self, now_ms: float) -> None:
        if self.session is not None:
            self.session.disconnected(now_ms)
        self._fresh = None

    @property
    def through(self) -> int:
        return max(self.stored, default=0)

    def take(self, message: bytes, now_ms: float) -> None:
        self.frames.append(decode_frame(message))
        present = self._fresh or self.session
        assert present is not None
        present.receive(message, now_ms)
        for event in present.events():
            if isinstance(event, HelloReceived):
                self.hellos.append(event.hello)
                if self.session is not None and self.session.can_resume(event.hello, now_ms):
                    self.session.resume(present, now_ms)
                else:
                    present.accept(
                        now_ms, session_id="s", resume_token=b"token-%d" % len(self.hellos),
                        received_through=self.through,
                    )  # fmt: skip
                    self.session = present
                self._fresh = None
                present = self.session
            elif isinstance(event, WindowReceived):
                assert event.frame.sequence == self.through + 1  # each once and in order
                self.stored[event.frame.sequence] = event.frame
                if self.answers:
                    self.answer(event.frame, now_ms)
            elif isinstance(event, MessageReceived):
                self.told.append(event.message)
            elif isinstance(event, Closed):
                self.closed.append(event)

    def answer(self, frame: Frame, now_ms: float) -> None:
        assert self.session is not None
        header, _ = unpack_media(frame.payload)
        self.session.acknowledge(frame.sequence, now_ms)
        self.session.send(
            Result(
                sequence=frame.sequence, window=header.window, capture_ms=frame.timestamp_ms, uncertainty=1.5,
                cluster=3, label="kettle", confidence=0.75,
            )
        )  # fmt: skip

    def pending(self, now_ms: float) -> list[bytes]:
        present = self._fresh or self.session
        if present is None:
            return []
        present.tick(now_ms)
        return present.bytes_to_send(now_ms=now_ms)


def exchange(device: CDevice, server: Server, now_ms: int) -> None:
    moved = True
    while moved:
        moved = False
        while message := device.send(now_ms):
            server.take(message, now_ms)
            moved = True
        for message in server.pending(now_ms):
            device.receive(message, now_ms, parts=1 + len(message) % 3)
            moved = True


def connect(device: CDevice, server: Server, now_ms: int) -> None:
    server.connect(now_ms)
    device.connected(now_ms)
    exchange(device, server, now_ms)


def disconnect(device: CDevice, server: Server, now_ms: int) -> None:
    server.disconnect(now_ms)
    device.disconnected()


def play(device: CDevice, server: Server, audio: np.ndarray, start_ms: int = 0, piece: int = 1_600) -> int:
    now_ms = start_ms
    for at in range(0, len(audio), piece):
        now_ms = start_ms + (at + len(audio[at : at + piece])) * 1_000 // RATE
        device.hear(audio[at : at + piece], now_ms)
        exchange(device, server, now_ms)
    return now_ms


def test_its_windows_are_those_of_the_python_device(device: CDevice) -> None:
    """Bytes of every frame, but for what only the Python device measures: uncertainty (NaN here) and time."""
    audio, server, chain = sound(6.0), Server(), PieceChain(100, 50)
    connect(device, server, 0)
    play(device, server, audio)
    expected = {}
    for window in WindowStream().push(audio / np.float32(32_767), Resolution.FULL):
        packed = pack_input(window, Encoding.TINYSTREAM, chain.new_frames(window, Encoding.TINYSTREAM))
        chain.accepted(window, Cut(0, Encoding.TINYSTREAM))
        expected[window.index + 1] = packed
    assert sorted(server.stored) == sorted(expected) and len(expected) == 10
    for sequence, packed in expected.items():
        frame = server.stored[sequence]
        header, payload = unpack_media(frame.payload)
        assert frame.type is FrameType.AUDIO and frame.flags == FrameFlag.NUMBERED
        assert bytes(payload) == packed.payload
        known = MediaHeader(
            sequence - 1, 0, 0, Encoding.TINYSTREAM, 0, MediaFlag.STARTS if sequence == 1 else 0, 0.0,
            packed.new_frames, 0.0, 0,
        )  # fmt: skip
        assert np.isnan(header.uncertainty) and header._replace(uncertainty=0.0) == known
        assert abs(frame.timestamp_ms - (1_015 + 500 * (sequence - 1))) <= 100
    assert device.numbers.answered == 10 and device.numbers.oldest == 11
    first = device.results[0]
    assert (first.window, first.cluster, first.label, first.confidence) == (0, 3, b"kettle", 0.75)


def test_its_greeting_says_who_it_is_and_what_it_sends(device: CDevice) -> None:
    server = Server()
    connect(device, server, 5)
    expected = Hello(
        protocol=1, device_id="porch", token="secret", epoch=77, oldest_sequence=1, next_sequence=1,
        device_class="firmware", software="streamsplit firmware", codec=read_integer("tiny_mel").model_id[:4].hex(),
    )  # fmt: skip
    assert server.hellos == [expected]
    frame = server.frames[0]
    assert (frame.type, frame.flags, frame.sequence, frame.timestamp_ms) == (FrameType.HELLO, FrameFlag.NONE, 0, 5)
    assert (
        frame.payload == b"\x89" + encode_message(expected)[3:]
    )  # but for a longer head, the bytes that Python writes
    for config in ({"device_id": ""}, {"device_id": "x" * 65}, {"epoch": 1 << 63}, {"quantizers": 6}):
        with pytest.raises(ValueError, match="config"):
            CDevice(**config)  # type: ignore[arg-type]


def test_fewer_quantizers_are_the_first_ones() -> None:
    coarse, audio = CDevice(quantizers=2), sound(2.0)
    server = Server()
    connect(coarse, server, 0)
    play(coarse, server, audio)
    codes = unpack(unpack_media(server.stored[1].payload)[1]).indices
    whole = IntegerEncoderStream(read_integer("tiny_mel")).push(
        np.concatenate([np.zeros(80, np.float32), audio / np.float32(32_767)])
    )
    np.testing.assert_array_equal(codes, whole[:2, :51])
    coarse.close()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 30))
def test_whatever_the_link_does_every_window_arrives_once_and_in_order(seed: int) -> None:
    """Pieces of any size; the link goes and comes, frames under way are lost with it, servers forget their sessions."""
    rng, device, server = random.Random(seed), CDevice(), Server()
    audio, at, now_ms, up = sound(12.0, 3), 0, 0, False
    while at < len(audio):
        size = rng.randint(1, 12_000)
        now_ms += size * 1_000 // RATE
        device.hear(audio[at : at + size], now_ms)
        at += size
        if up and rng.random() < 0.25:
            while (message := device.send(now_ms)) and rng.random() < 0.5:  # some of what was sent is lost
                server.take(message, now_ms)
            disconnect(device, server, now_ms)
            up = False
            if rng.random() < 0.5:
                server.session = None  # the server was restarted: its store is there, its sessions are not
        elif not up and rng.random() < 0.5:
            connect(device, server, now_ms)
            up = True
        elif up:
            exchange(device, server, now_ms)
    if up:
        disconnect(device, server, now_ms)
    connect(device, server, now_ms)
    exchange(device, server, now_ms + 1_000)
    numbers = device.numbers
    assert numbers.dropped == 0 and sorted(server.stored) == list(range(1, numbers.heard + 1)) and numbers.heard == 22
    assert numbers.oldest == numbers.next == 23 and numbers.state == OPEN and not server.closed
    codes = [unpack(unpack_media(server.stored[sequence].payload)[1]).indices for sequence in sorted(server.stored)]
    expected = IntegerEncoderStream(read_integer("tiny_mel")).push(
        np.concatenate([np.zeros(80, np.float32), audio / np.float32(32_767)])
    )
    got = np.concatenate(codes, 1)
    np.testing.assert_array_equal(got, expected[:, : got.shape[1]])
    device.close()


def test_a_full_ring_drops_new_windows_counts_them_and_goes_on_whole(device: CDevice) -> None:
    server, audio = Server(), sound(25.0)
    device.hear(audio[: 20 * RATE], 20_000)
    assert device.numbers[2:6] == (1, 33, 38, 6)  # 32 kept, 6 dropped
    connect(device, server, 20_000)
    play(device, server, audio[20 * RATE :], 20_000)
    assert sorted(server.stored) == list(range(1, 43))
    header, payload = unpack_media(server.stored[33].payload)
    assert (header.window, header.new_frames, header.skipped, header.flags) == (38, 100, 6, 0)
    assert unpack(payload).indices.shape == (5, 51)
    assert unpack_media(server.stored[34].payload)[0].new_frames == 50


def test_after_a_gap_a_new_stretch_begins(device: CDevice) -> None:
    server, audio = Server(), sound(3.0)
    connect(device, server, 0)
    now_ms = play(device, server, audio[: 2 * RATE])
    device.gap()
    play(device, server, audio[: 2 * RATE], now_ms)
    headers = [unpack_media(frame.payload)[0] for frame in server.stored.values()]
    assert [(h.window, h.new_frames, h.flags) for h in headers] == [(0, 100, 1), (1, 50, 0), (2, 100, 1), (3, 50, 0)]
    assert unpack_media(server.stored[1].payload)[1] == unpack_media(server.stored[3].payload)[1]


def test_a_window_that_the_server_could_not_use_makes_the_next_one_whole(device: CDevice) -> None:
    server = Server()
    connect(device, server, 0)
    now_ms = play(device, server, sound(2.0))
    assert server.session is not None
    server.session.send(Error(code="missing_overlap", detail="send the whole window", sequence=2))
    exchange(device, server, now_ms)
    play(device, server, sound(1.0, 1), now_ms)
    assert unpack_media(server.stored[3].payload)[0].new_frames == 100
    assert device.problem == "send the whole window" and device.numbers.rejected == 1


def test_it_keeps_to_what_the_server_grants(device: CDevice) -> None:
    server = Server(SessionSettings(max_in_flight=4))
    server.answers = False
    device.hear(sound(8.0), 8_000)
    connect(device, server, 8_000)
    assert sorted(server.stored) == [1, 2, 3, 4]
    assert server.session is not None
    server.session.acknowledge(2, 8_000, credit=3)
    exchange(device, server, 8_100)
    server.session.tick(9_000)
    exchange(device, server, 9_000)
    assert sorted(server.stored) == [1, 2, 3, 4, 5]
    server.session.send(Throttle(max_in_flight=0, reason="pause"))
    server.session.acknowledge(5, 9_000)
    exchange(device, server, 10_000)
    assert server.through == 5
    server.session.send(Throttle(max_in_flight=8, min_interval_ms=300))
    exchange(device, server, 11_000)
    assert server.through == 6
    exchange(device, server, 11_299)
    assert server.through == 6
    exchange(device, server, 11_300)
    assert server.through == 7 and not server.closed


def test_it_keeps_the_connection_alive_reports_itself_and_acknowledges_results(device: CDevice) -> None:
    server = Server()
    connect(device, server, 0)
    now_ms = play(device, server, sound(14.0))
    kinds = [frame.type for frame in server.frames]
    assert kinds.count(FrameType.PING) >= 1 and kinds.count(FrameType.STATS) == 2
    assert 2 <= kinds.count(FrameType.ACK) <= 26 and server.session is not None
    exchange(device, server, now_ms + 1_000)
    assert len(server.session.replay) == 0
    stats = [message for message in server.told if isinstance(message, Stats)][-1]
    assert stats.cut == "0:tinystream" and stats.windows_sent == stats.windows_seen >= 18 and stats.uplink_bytes > 3_000
    probe = Ping(nonce=9, sent_ms=123_456_789_012)
    device.receive(encode_frame(Frame(FrameType.PING, FrameFlag.NONE, 0, 0, encode_message(probe))), now_ms)
    answer = device.send(now_ms)
    assert answer is not None and decode_frame(answer).type is FrameType.PING
    assert decode_message(FrameType.PING, decode_frame(answer).payload) == Ping(
        nonce=9, sent_ms=123_456_789_012, reply=True
    )
    assert not device.should_close(now_ms + 29_000) and device.should_close(now_ms + 31_000)


def test_messages_of_no_use_to_it_change_nothing_however_long(device: CDevice) -> None:
    server = Server()
    connect(device, server, 0)
    assert server.session is not None
    server.session.send(Policy(policy="greedy"))
    server.session.send(Gmm(version=1, revision="0" * 64, components=64, dim=128, data=bytes(32_896)))
    exchange(device, server, 100)
    before = device.numbers
    dialogue = encode_frame(Frame(FrameType.DIALOGUE, FrameFlag.NONE, 1, 0, b"hello"))
    device.receive(dialogue, 200)
    exchange(device, server, 200)
    assert device.numbers == before and server.told == [
        Error(code="unsupported", detail="this device takes neither dialogue nor gradients")
    ]


@pytest.mark.parametrize(("code", "refused"), [("bad_token", 1), ("bad_settings", 1), ("server_full", 0)])
def test_a_server_that_turns_it_away_is_asked_again_only_where_that_can_help(
    device: CDevice, code: str, refused: int
) -> None:
    server = Server()
    server.connect(0)
    device.connected(0)
    session = server._fresh
    assert session is not None
    hello = device.send(0)
    assert hello is not None
    session.receive(hello, 0)
    session.events()
    session.reject(code, "not like this")
    for message in session.bytes_to_send():
        device.receive(message, 0)
    assert device.numbers.state == ENDED and device.numbers.refused == refused and device.problem == "not like this"
    assert device.should_close(0) and device.send(0) is None


def test_it_says_goodbye_when_everything_is_there(device: CDevice) -> None:
    server = Server()
    server.answers = False
    connect(device, server, 0)
    now_ms = play(device, server, sound(2.0))
    device.finish()
    exchange(device, server, now_ms)
    assert not server.closed
    assert server.session is not None
    server.session.acknowledge(server.through, now_ms)
    exchange(device, server, now_ms + 1_000)
    assert [event.code for event in server.closed] == ["bye"] and device.numbers.state == ENDED


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\x01", bytes(16), b"\x02" + bytes(15), encode_frame(Frame(FrameType.ACK, FrameFlag.NONE, 0, 0, b"\x81")),
        encode_frame(Frame(FrameType.ACK, FrameFlag.NONE, 0, 0, b"\xc0")),
        encode_frame(Frame(FrameType.ACK, FrameFlag.NONE, 0, 0, b"\x81\xa7through\x09")),
    ],
)  # fmt: skip
def test_what_is_no_message_of_the_protocol_ends_the_connection_and_loses_nothing(
    device: CDevice, message: bytes
) -> None:
    server = Server()
    connect(device, server, 0)
    now_ms = play(device, server, sound(2.0))
    device.receive(message, now_ms)
    assert device.numbers.state == ENDED and device.problem
    disconnect(device, server, now_ms)
    connect(device, server, now_ms)
    play(device, server, sound(1.0, 2), now_ms)
    assert sorted(server.stored) == [1, 2, 3, 4, 5][: device.numbers.heard] and device.numbers.state == OPEN


def test_it_fits_a_microcontroller(device: CDevice) -> None:
    """The struct on this machine, pointers of 8 bytes; scratch memory of the encoder (7 KiB) comes on top."""
    assert device.size < 32 * 1024


def test_the_esp_idf_example_compiles_against_the_documented_declarations() -> None:
    make("check-esp-idf", built())


def test_hostile_bytes_do_no_harm() -> None:
    """Packets and messages, damaged and random, under the address and undefined-behaviour sanitizers."""
    assert "ok: 4000 rounds" in make("fuzz", built(), "ROUNDS=4000")
