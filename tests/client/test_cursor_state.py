"""A head behind the cursor: proof of nothing, and asked about once; nothing is dropped before the server says so."""

from __future__ import annotations

import pytest

from syncbeat.feeds import Feeds
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

pytestmark = pytest.mark.unit


def at(sequence: int, epoch: str = "e") -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope="s", epoch=epoch, sequence=sequence)


def asks(feeds: Feeds, head: core_pb2.ScopeCursor) -> bool:
    """Return whether this head has the scope listed; the list finds nothing new."""
    feeds.compare([head])
    want = feeds.wanted.get("s")
    if want is None:
        return False
    assert not want.drop, "the server's answer tells whether to drop"
    feeds.fetched(want, want.asked)
    return True


def test_head_behind_the_cursor_is_listed_once_while_a_view_is_stale() -> None:
    feeds = Feeds([at(20)])
    assert [asks(feeds, at(18)) for _ in range(3)] == [True, False, False]
    assert not asks(feeds, at(19)), "it catches up"
    assert not asks(feeds, at(20))
    assert asks(feeds, at(18)), "after it had caught up it is news"


def test_head_that_falls_further_behind_is_listed_again() -> None:
    feeds = Feeds([at(20)])
    assert asks(feeds, at(18))
    assert asks(feeds, at(10))
    assert not asks(feeds, at(10))


def test_head_behind_a_cursor_that_moved_is_listed_again() -> None:
    feeds = Feeds([at(20)])
    assert asks(feeds, at(18))
    feeds.pass_checkpoint([at(21)])
    assert asks(feeds, at(18))


def test_head_of_another_epoch_is_listed_whatever_its_sequence() -> None:
    for sequence in (0, 10, 20, 30):
        assert asks(Feeds([at(20)]), at(sequence, "new"))


@pytest.mark.parametrize("sequence", [5, 30])
def test_streamed_change_of_another_epoch_is_not_applied_but_listed(sequence: int) -> None:
    feeds = Feeds([at(20)])
    assert not feeds.is_news(pb.Change(scope="s", epoch="another", sequence=sequence))
    assert "s" in feeds.wanted
    assert feeds.cursors["s"] == at(20)


@pytest.mark.parametrize("sequence", [5, 30])
def test_checkpoint_of_another_epoch_moves_no_cursor(sequence: int) -> None:
    feeds = Feeds([at(20)])
    feeds.pass_checkpoint([at(sequence, "another")])
    assert "s" in feeds.wanted
    assert feeds.cursors["s"] == at(20)


def test_checkpoint_behind_the_cursor_asks_for_nothing() -> None:
    feeds = Feeds([at(20)])
    feeds.pass_checkpoint([at(18)])
    assert not feeds.wanted


def test_changes_of_a_list_under_way_are_of_its_epoch() -> None:
    feeds = Feeds([at(3, "e~5")])
    assert feeds.is_news(pb.Change(scope="s", epoch="e", sequence=6))
