"""Tests which cursors below what was pruned can be resumed from."""

from __future__ import annotations

import pytest

from syncbeat_server.sync.feed.resumable_cursors import can_resume, resumable_cursor
from syncbeat_server.sync.model import Cursor, ScopeState, Signal, Windows

pytestmark = pytest.mark.unit

STATE = ScopeState("s", "e", 20, Signal(None, Windows(0.0, 0.0, 0.0, 0.0)), pruned=10)


@pytest.mark.parametrize(
    ("epoch", "sequence", "expected"),
    [
        ("e", 9, False),
        ("", 9, False),
        ("e", 10, True),
        ("", 20, True),
        ("e", 21, False),
        ("e", 0, True),
        ("e", None, True),
        ("e~10", 3, True),
        ("e~9", 3, False),
        ("e~9", 10, True),
        ("e~10", 21, False),
        ("f", 15, False),
        ("f~10", 15, False),
        ("e~", 15, False),
        ("e~-1", 15, False),
        ("e~1\u0660", 15, False),
        ("e~" + "9" * 5_000, 15, False),
        ("e~10~10", 15, False),
    ],
)
def test_cursor_is_resumable_if_nothing_after_it_was_pruned(epoch: str, sequence: int | None, expected: bool) -> None:
    assert can_resume(Cursor("s", epoch, sequence), STATE) is expected


def test_cursor_below_pruned_is_marked() -> None:
    assert resumable_cursor(STATE, 9) == Cursor("s", "e~10", 9)
    assert resumable_cursor(STATE, 10) == Cursor("s", "e", 10)
    assert can_resume(resumable_cursor(STATE, 9), STATE._replace(pruned=9))
    assert not can_resume(resumable_cursor(STATE, 9), STATE._replace(pruned=11)), "more was removed since"
    assert can_resume(resumable_cursor(STATE._replace(epoch="with~a mark"), 9), STATE._replace(epoch="with~a mark"))
