"""A head behind the cursor: proof of nothing, and asked about once; nothing is dropped before the server says so."""

from __future__ import annotations

import pytest

from syncbeat.cursor_state import CursorState
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

pytestmark = pytest.mark.unit


def at(sequence: int, epoch: str = "e") -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope="s", epoch=epoch, sequence=sequence)


def asks(state: CursorState, head: core_pb2.ScopeCursor) -> bool:
    """Return whether this head has the scope listed; the list finds nothing new."""
    state.compare([head])
    fetch = state.pending.get("s")
    if fetch is None:
        return False
    assert not fetch.drop, "the server's answer tells whether to drop"
    state.complete(fetch, fetch.requests)
    return True


def test_head_behind_the_cursor_is_listed_once_while_a_view_is_stale() -> None:
    state = CursorState([at(20)])
    assert [asks(state, at(18)) for _ in range(3)] == [True, False, False]
    assert not asks(state, at(19)), "it catches up"
    assert not asks(state, at(20))
    assert asks(state, at(18)), "after it had caught up it is news"


def test_head_that_falls_further_behind_is_listed_again() -> None:
    state = CursorState([at(20)])
    assert asks(state, at(18))
    assert asks(state, at(10))
    assert not asks(state, at(10))


def test_head_behind_a_cursor_that_moved_is_listed_again() -> None:
    state = CursorState([at(20)])
    assert asks(state, at(18))
    state.pass_checkpoint([at(21)])
    assert asks(state, at(18))


def test_head_of_another_epoch_is_listed_whatever_its_sequence() -> None:
    for sequence in (0, 10, 20, 30):
        assert asks(CursorState([at(20)]), at(sequence, "new"))


@pytest.mark.parametrize("sequence", [5, 30])
def test_streamed_change_of_another_epoch_is_not_applied_but_listed(sequence: int) -> None:
    state = CursorState([at(20)])
    assert not state.accepts(pb.Change(scope="s", epoch="another", sequence=sequence))
    assert "s" in state.pending
    assert state.cursors["s"] == at(20)


@pytest.mark.parametrize("sequence", [5, 30])
def test_checkpoint_of_another_epoch_moves_no_cursor(sequence: int) -> None:
    state = CursorState([at(20)])
    state.pass_checkpoint([at(sequence, "another")])
    assert "s" in state.pending
    assert state.cursors["s"] == at(20)


def test_checkpoint_behind_the_cursor_asks_for_nothing() -> None:
    state = CursorState([at(20)])
    state.pass_checkpoint([at(18)])
    assert not state.pending


def test_changes_of_a_list_under_way_are_of_its_epoch() -> None:
    state = CursorState([at(3, "e~5")])
    assert state.accepts(pb.Change(scope="s", epoch="e", sequence=6))
