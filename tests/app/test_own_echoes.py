"""A process drops the echo of what it told the others, and nothing that they tell it."""

from __future__ import annotations

import pytest

from syncbeat_server.app.change_notifier import OwnEchoes
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_own_echo_is_dropped_once_for_each_message_sent(clock: FakeClock) -> None:
    echoes = OwnEchoes(clock)
    assert not echoes.take("app\x1fs"), "it is another process's"
    for _ in range(2):
        echoes.expect("app\x1fs")
    assert [echoes.take("app\x1fs") for _ in range(3)] == [True, True, False]
    echoes.expect("app\x1fs")
    assert not echoes.take("app\x1ft")
    assert echoes.take("app\x1fs")


async def test_own_echo_that_is_lost_hides_no_later_message(clock: FakeClock) -> None:
    echoes = OwnEchoes(clock)
    echoes.expect("app\x1fs")
    await clock.advance(2)
    assert not echoes.take("app\x1fs")
    echoes.expect("app\x1fs")
    echoes.clear()
    assert not echoes.take("app\x1fs")


def test_own_echoes_are_bounded(clock: FakeClock) -> None:
    echoes = OwnEchoes(clock, size=3)
    for number in range(4):
        echoes.expect(f"app\x1f{number}")
    assert [echoes.take(f"app\x1f{number}") for number in range(4)] == [False, False, False, True]
