"""The state tables: every pair of state and input is either listed or an error that names both."""

from __future__ import annotations

import itertools

import pytest

from streamsplit.errors import ProtocolError
from streamsplit.wire.states import CLIENT_TABLE, SERVER_TABLE, ClientState, Input, ServerState, next_state

TABLES = [(CLIENT_TABLE, ClientState), (SERVER_TABLE, ServerState)]


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_every_pair_moves_to_a_state_or_is_an_error_naming_both(table, states):
    listed = 0
    for state, happened in itertools.product(states, Input):
        if (state, happened) in table:
            assert isinstance(next_state(table, state, happened), states)
            listed += 1
        else:
            with pytest.raises(ProtocolError, match=f"{happened.name}.*{state.name}") as caught:
                next_state(table, state, happened)
            assert caught.value.code == "unexpected"
    assert listed == len(table)


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_every_state_is_reached_and_only_a_greeting_leaves_the_last_one(table, states):
    first = next(iter(states))
    reached = {first}
    while new := {table[pair] for pair in table if pair[0] in reached} - reached:
        reached |= new
    assert reached == set(states)
    ways_out = {happened for (state, happened), to in table.items() if state is states.CLOSED and to is not state}
    assert ways_out == ({Input.CONNECT} if states is ClientState else set())


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_losing_the_transport_and_closing_are_possible_in_every_state(table, states):
    for state in states:
        assert (state, Input.DISCONNECT) in table
        assert table[state, Input.CLOSE] is states.CLOSED


def test_every_input_is_used_by_an_end():
    used = {happened for table, _ in TABLES for _, happened in table}
    assert used == set(Input)


def test_windows_and_results_flow_in_no_state_but_open():
    for table, states in TABLES:
        assert {state for state, happened in table if happened is Input.DATA} == {states.OPEN}
