"""Tests that no two polls of `SmartSync` are closer than the server told, whatever the clock and the server do."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat import SmartSync, SyncBatch
from tests.support.client_servers import Hold, Refusal, Scripted, Stream, client_of, scripted_server
from tests.support.phones import DeviceClock, polled, reported

pytestmark = pytest.mark.rpc

_WAKE_S = 13.0  # a look every 10 s, and a spread of 3 s

answers = st.one_of(
    st.integers(1, 60).map(float),
    st.sampled_from([None, 5.0, 90.0]).map(lambda asked_s: Refusal(grpc.StatusCode.INTERNAL, retry_after_s=asked_s)),
)
moves = st.one_of(
    st.tuples(st.just("awake"), st.floats(0.1, 90)),
    st.tuples(st.just("suspended"), st.floats(0.1, 7_200)),
    st.tuples(st.just("back"), st.floats(0.1, 100_000)),
    st.tuples(st.just("touched"), st.just(0.0)),
)


@dataclass(frozen=True)
class Poll:
    """Records when a poll came, in true seconds, and its answer. `is_due`: nothing but the hint was its reason."""

    at: float
    answer: float | Refusal
    is_due: bool


class Adviser(Scripted):
    """Answers polls and reports as it was told, then with the last of it for ever, and notes when they came."""

    def __init__(self, clock: DeviceClock, answers: list[float | Refusal]) -> None:
        super().__init__()
        self.clock = clock
        self.told = answers
        self.polls: list[Poll] = []
        self.touched = False

    def _record(self, name: str, data: bytes, context: Any) -> Message | Refusal | Hold | Stream:
        answer = self.told[min(len(self.polls), len(self.told) - 1)]
        is_due = name == "GetHint" or not self.touched
        self.polls.append(Poll(self.clock.true_s, answer, is_due))
        if isinstance(answer, Refusal):
            return answer
        return polled(answer) if name == "GetHint" else reported(answer)


async def nothing(batch: SyncBatch) -> None:
    """There are no changes here."""


async def day(answers: list[float | Refusal], moves: list[tuple[str, float]]) -> tuple[list[Poll], DeviceClock]:
    """A device's polls on a clock that is moved like this."""
    clock = DeviceClock()
    adviser = Adviser(clock, answers)
    async with scripted_server(adviser) as (_, address), client_of(address) as client:
        sync = SmartSync(client, "phone", on_changes=nothing, clock=clock)
        async with sync:
            await clock.quiet()
            for kind, seconds in moves:
                match kind:
                    case "awake":
                        await clock.travel(seconds)
                    case "suspended":
                        clock.suspended_s += seconds
                    case "back":
                        clock.back_s += seconds
                    case _:
                        adviser.touched = True  # who was away for a minute and is back, says so at once
                        sync.touched()
                        await clock.quiet()
    return adviser.polls, clock


@settings(max_examples=60)
@given(answers=st.lists(answers, min_size=1, max_size=6), moves=st.lists(moves, min_size=1, max_size=12))
def test_smart_sync_polls_are_never_closer_than_hinted(
    answers: list[float | Refusal], moves: list[tuple[str, float]]
) -> None:
    polls, _ = asyncio.run(day(answers, moves))
    interval_s = 0.0
    for poll, following in itertools.pairwise(polls):
        asked_s = 0.0
        if isinstance(poll.answer, Refusal):
            asked_s = poll.answer.retry_after_s or 0.0
        else:
            interval_s = poll.answer
        least_s = max(asked_s, interval_s) if following.is_due else asked_s
        assert following.at - poll.at >= least_s - 1e-6


@settings(max_examples=40)
@given(interval_s=st.integers(1, 300), moves=st.lists(moves, min_size=1, max_size=12))
def test_smart_sync_polls_are_never_later_than_hinted_when_awake(
    interval_s: int, moves: list[tuple[str, float]]
) -> None:
    polls, clock = asyncio.run(day([float(interval_s)], [*moves, ("awake", interval_s + _WAKE_S + 1)]))
    assert clock.true_s - polls[-1].at <= interval_s + _WAKE_S
    awake_s = sum(seconds for kind, seconds in moves if kind == "awake")
    assert len(polls) - 1 >= awake_s // (interval_s + _WAKE_S)
