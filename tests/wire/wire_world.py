"""A device, a server and a bad link, with the parts that outlive a crash: the model for exactly-once tests.

The durable queue and the store are plain lists; everything else (sessions, what is on the link, what the server
computes) is lost when its process is killed.
"""

from __future__ import annotations

from collections import deque

from wire_pair import hello

from streamsplit.wire.events import Acked, Closed, HelloReceived, MessageReceived, Opened, WindowReceived
from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Result
from streamsplit.wire.session import ClientSession, ServerSession, ServerState, SessionSettings
from streamsplit.wire.types import FrameType

SERVER = SessionSettings(
    max_in_flight=6, ack_every_frames=3, ack_delay_ms=20, replay_frames=4, resume_expires_ms=3_000,
    ping_interval_ms=2_000, silence_timeout_ms=5_000, hello_timeout_ms=2_000,
)  # fmt: skip
CLIENT = SessionSettings(
    ack_every_frames=3, ack_delay_ms=50, ping_interval_ms=2_000, silence_timeout_ms=5_000, hello_timeout_ms=2_000
)


class World:
    """Every method is one thing that can happen; none may break what `check` states."""

    def __init__(self) -> None:
        self.now_ms = 1_000.0
        # device: durable
        self.accepted = 0  # windows ever accepted; their payloads are a function of the sequence
        self.queue: deque[int] = deque()
        self.answered: set[int] = set()
        # server: durable
        self.stored: list[Frame] = []
        # processes
        self.client = ClientSession(CLIENT, self.now_ms)
        self.session: ServerSession | None = None  # the device's, detached or not
        self.fresh: ServerSession | None = None  # on the present transport, not yet decided about
        self.computing: deque[tuple[ServerSession, Frame]] = deque()
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.connected = False  # as the device sees it
        self.server_sees = False
        self.sessions = 0
        self.given_out: dict[str, int] = {}  # per session: highest window given to the owner
        self.resumed = self.killed = self.from_store = 0

    @staticmethod
    def payload(sequence: int) -> bytes:
        return b"window %d" % sequence

    # -- what can happen -------------------------------------------------------------------------------------------

    def accept_window(self) -> None:
        self.accepted += 1
        self.queue.append(self.accepted)

    def connect(self) -> None:
        if self.connected:
            return
        self.connected = self.server_sees = True
        missing = [sequence for sequence in range(1, self.accepted + 1) if sequence not in self.answered]
        self.fresh = ServerSession(self.now_ms, SERVER)
        self.client.hello(
            hello(
                oldest_sequence=self.queue[0] if self.queue else self.accepted + 1,
                next_sequence=self.accepted + 1,
                results_from=missing[0] if missing else 0,
            ),
            self.now_ms,
        )
        self.hand_over()

    def lose_link(self, server_notices: bool = True) -> None:
        """What is under way is gone; a half-open connection is one where only the device notices."""
        if not self.connected:
            return
        self.connected = False
        self.up.clear()
        self.down.clear()
        self.client.disconnected(self.now_ms)
        self.device_events()
        if server_notices:
            self.server_notices()

    def server_notices(self) -> None:
        if self.connected or not self.server_sees:
            return
        self.server_sees = False
        self.fresh = None
        if self.session is not None:
            self.session.disconnected(self.now_ms)

    def kill_device(self) -> None:
        self.lose_link()
        self.client = ClientSession(CLIENT, self.now_ms)
        self.killed += 1

    def kill_server(self) -> None:
        self.computing.clear()
        self.lose_link(server_notices=False)
        self.session = self.fresh = None
        self.server_sees = False
        self.killed += 1

    def deliver_up(self) -> None:
        if self.up:
            target = self.fresh or self.session
            if target is not None:
                target.receive(self.up.popleft(), self.now_ms)
                self.server_events(target)

    def deliver_down(self) -> None:
        if self.down:
            self.client.receive(self.down.popleft(), self.now_ms)
            self.device_events()

    def commit(self) -> None:
        """The oldest window in computation becomes durable together with its result."""
        if not self.computing:
            return
        session, frame = self.computing.popleft()
        if frame.sequence == len(self.stored) + 1:
            self.stored.append(frame)
        else:  # computed twice, because a session died while it was under way: the primary key refuses it
            assert frame.sequence <= len(self.stored), f"window {frame.sequence} after {len(self.stored)}"
        owner = self.session if self.session is not None else session
        owner.acknowledge(frame.sequence, self.now_ms)
        owner.send(self.answer(frame.sequence))
        self.hand_over()

    def answer(self, sequence: int) -> Result:
        return Result(sequence=sequence, window=sequence, capture_ms=sequence, uncertainty=0.0)

    def pass_time(self, ms: float) -> None:
        self.now_ms += ms
        self.client.tick(self.now_ms)
        self.device_events()
        for session in (self.session, self.fresh):
            if session is not None:
                session.tick(self.now_ms)
                self.server_events(session)
        self.hand_over()

    # -- the owners ------------------------------------------------------------------------------------------------

    def feed(self) -> None:
        waiting = set(self.queue)
        while self.client.credit(self.now_ms) and self.client.next_sequence in waiting:
            sequence = self.client.next_sequence
            assert self.client.send_window(FrameType.AUDIO, sequence, sequence, self.payload(sequence))

    def hand_over(self) -> None:
        """What the sessions have goes onto the link, a little at a time."""
        self.feed()
        if self.connected:
            self.up += self.client.bytes_to_send(limit_bytes=60, now_ms=self.now_ms)
            server = self.fresh or self.session
            if server is not None:
                self.down += server.bytes_to_send(limit_bytes=120, now_ms=self.now_ms)

    def device_events(self) -> None:
        for event in self.client.events():
            if isinstance(event, Opened):
                self.delete_through(event.feed_from - 1)
            elif isinstance(event, Acked):
                self.delete_through(event.through)
            elif isinstance(event, MessageReceived) and isinstance(event.message, Result):
                self.answered.add(event.message.sequence)
            elif isinstance(event, Closed):
                assert not event.fatal, event
                self.lose_link()
        self.hand_over()

    def delete_through(self, through: int) -> None:
        assert through <= len(self.stored), f"deleting {through} with {len(self.stored)} stored"
        while self.queue and self.queue[0] <= through:
            self.queue.popleft()

    def server_events(self, session: ServerSession) -> None:
        for event in session.events():
            if isinstance(event, HelloReceived):
                self.decide(session, event)
            elif isinstance(event, WindowReceived):
                assert event.frame.sequence > self.given_out.get(session.session_id, 0)  # never twice, never back
                self.given_out[session.session_id] = event.frame.sequence
                self.computing.append((session, event.frame))
            elif isinstance(event, Closed):
                assert not event.fatal, event
        if self.session is not None:
            for sequence in self.session.results_wanted():
                self.session.send(self.answer(sequence))
                self.from_store += 1
        self.hand_over()

    def decide(self, fresh: ServerSession, event: HelloReceived) -> None:
        old, self.fresh = self.session, None
        if old is not None and old.can_resume(event.hello, self.now_ms):
            old.resume(fresh, self.now_ms)
            self.resumed += 1
        else:
            if old is not None:
                old.close("a new session begins")
                old.events()
            self.sessions += 1
            name = f"session-{self.sessions}"
            fresh.accept(self.now_ms, session_id=name, resume_token=name.encode(), received_through=len(self.stored))
            self.session = fresh

    # -- what must hold --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Stored: the accepted windows in order, each once, a prefix so far; queued: at least all the others."""
        assert [frame.sequence for frame in self.stored] == list(range(1, len(self.stored) + 1))
        assert all(frame.payload == self.payload(frame.sequence) for frame in self.stored)
        assert len(self.stored) <= self.accepted
        assert set(range(len(self.stored) + 1, self.accepted + 1)) <= set(self.queue)
        assert self.answered <= set(range(1, len(self.stored) + 1))
        assert self.session is None or len(self.session.replay) <= SERVER.replay_frames
        assert self.session is None or self.session.in_flight <= SERVER.max_in_flight

    def settle(self) -> None:
        """A good link for long enough: everything accepted must be stored, answered and deleted."""
        for _ in range(100):
            self.connect()
            for _ in range(60):
                self.deliver_up()
                self.commit()
                self.deliver_down()
                self.pass_time(10)
                self.check()
            if len(self.stored) == self.accepted and not self.queue and len(self.answered) == self.accepted:
                return
        raise AssertionError(f"accepted {self.accepted}, stored {len(self.stored)}, answered {len(self.answered)}")

    @property
    def detached(self) -> bool:
        return self.session is not None and self.session.state is ServerState.DETACHED
