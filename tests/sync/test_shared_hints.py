"""Streams that follow the same scopes in the same way share a hint for a second, and no other streams do."""

from __future__ import annotations

import pytest

from syncbeat_server.sync.model import Activity, ActivityState, ScopeState, Signal, Windows
from syncbeat_server.sync.policy import Tuning
from syncbeat_server.sync.streams.shared_hints import SharedHints
from tests.support.build import default_tuning
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit


class Asked:
    """The policy inputs of apps, and how often they were asked for: once for each decision."""

    def __init__(self) -> None:
        self.count = 0

    def tuning(self, app_id: str) -> Tuning:
        self.count += 1
        return default_tuning(app_id)


def state(scope: str, head: int = 1) -> ScopeState:
    return ScopeState(scope, "e", head, Signal(None, Windows(0.0, 0.0, 0.0, 0.0)))


def test_hint_is_shared_by_equal_streams_only() -> None:
    asked, shown = Asked(), Activity()
    hints = SharedHints(FakeClock(), asked.tuning)
    first = hints.hint("a", [state("s")], shown, more_scopes=False)
    assert hints.hint("a", [state("s")], Activity(), more_scopes=False) is first
    assert asked.count == 1
    hints.hint("b", [state("s")], shown, more_scopes=False)
    hints.hint("a", [state("s", head=2)], shown, more_scopes=False)
    hints.hint("a", [state("s"), state("t")], shown, more_scopes=False)
    hints.hint("a", [state("s")], Activity(ActivityState.BACKGROUND), more_scopes=False)
    hints.hint("a", [state("s")], shown, more_scopes=True)
    assert asked.count == 6


async def test_shared_hint_is_decided_anew_after_a_second() -> None:
    clock, asked = FakeClock(), Asked()
    hints = SharedHints(clock, asked.tuning)
    first = hints.hint("a", [state("s")], Activity(), more_scopes=False)
    await clock.advance(1)
    second = hints.hint("a", [state("s")], Activity(), more_scopes=False)
    assert second.next_poll_at > first.next_poll_at
    assert asked.count == 2


def test_shared_hints_are_bounded() -> None:
    asked = Asked()
    hints = SharedHints(FakeClock(), asked.tuning, size=2)
    for number in (1, 2, 3, 1):
        hints.hint("a", [state(f"s{number}")], Activity(), more_scopes=False)
    assert asked.count == 4, "the third made room by forgetting the first two"
    many = [state(f"s{number}") for number in range(9)]
    hints.hint("a", many, Activity(), more_scopes=False)
    hints.hint("a", many, Activity(), more_scopes=False)
    assert asked.count == 6, "those of many scopes are not kept"
