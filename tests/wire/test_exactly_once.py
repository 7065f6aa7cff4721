"""Every accepted window is stored exactly once and in order, whatever the link and the processes do."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from wire_world import World

ACTIONS = {
    "accept_window": 6,
    "deliver_up": 12,
    "deliver_down": 10,
    "commit": 6,
    "connect": 4,
    "pass": 4,
    "lose_link": 1,
    "half_open": 0.5,
    "server_notices": 1,
    "kill_device": 0.3,
    "kill_server": 0.3,
    "sleep": 0.2,
}


def do(world: World, action: str, rng: random.Random) -> None:
    if action == "pass":
        world.pass_time(rng.choice([1, 5, 30]))
    elif action == "sleep":
        world.pass_time(rng.choice([2_500, 4_000, 6_000]))
    elif action == "half_open":
        world.lose_link(server_notices=False)
    else:
        getattr(world, action)()


@pytest.mark.parametrize("block", range(6))
def test_random_schedules_of_losses_kills_and_silence_store_every_window_once(block):
    totals = {"resumed": 0, "killed": 0, "duplicates": 0, "stored": 0, "from_store": 0}
    for seed in range(block * 15, block * 15 + 15):
        rng, world = random.Random(seed), World()
        for action in rng.choices(list(ACTIONS), weights=list(ACTIONS.values()), k=500):
            do(world, action, rng)
            world.check()
        world.settle()
        totals["resumed"] += world.resumed
        totals["killed"] += world.killed
        totals["from_store"] += world.from_store
        totals["stored"] += len(world.stored)
        totals["duplicates"] += world.session.duplicates
    # the schedules must have exercised what they claim to
    assert min(totals.values()) >= 5, totals


class ExactlyOnce(RuleBasedStateMachine):
    """Hypothesis looks for a short sequence of events that loses or doubles a window."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(count=st.integers(1, 8))
    def accept(self, count):
        for _ in range(count):
            self.world.accept_window()

    @rule()
    def connect(self):
        self.world.connect()

    @rule(up=st.integers(0, 10), down=st.integers(0, 10))
    def deliver(self, up, down):
        for _ in range(up):
            self.world.deliver_up()
        for _ in range(down):
            self.world.deliver_down()

    @rule(count=st.integers(1, 4))
    def commit(self, count):
        for _ in range(count):
            self.world.commit()

    @rule(ms=st.sampled_from([1, 20, 60, 2_500, 6_000]))
    def pass_time(self, ms):
        self.world.pass_time(ms)

    @rule(server_notices=st.booleans())
    def lose_link(self, server_notices):
        self.world.lose_link(server_notices)

    @rule()
    def server_notices(self):
        self.world.server_notices()

    @rule()
    def kill_device(self):
        self.world.kill_device()

    @rule()
    def kill_server(self):
        self.world.kill_server()

    @invariant()
    def nothing_is_lost_or_doubled(self):
        self.world.check()

    def teardown(self):
        self.world.settle()


ExactlyOnce.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_no_short_sequence_of_events_loses_or_doubles_a_window = ExactlyOnce.TestCase
