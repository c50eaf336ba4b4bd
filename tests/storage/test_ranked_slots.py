"""Slots go by rank while they are short, and nobody starves."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from syncbeat_server.ops.work_origin import WorkRank
from syncbeat_server.storage.postgres.pool.ranked_slots import RankedSlots
from tests.support.fake_clock import settle

pytestmark = pytest.mark.unit

BACKGROUND, CALL, PROMISE = WorkRank


async def queued(slots: RankedSlots, ranks: list[WorkRank], got: list[WorkRank]) -> list[asyncio.Task[None]]:
    """Start callers of these ranks, who note when they got a slot and keep it."""

    async def wait(rank: WorkRank) -> None:
        if await slots.take(rank, 60.0):
            got.append(rank)

    tasks = [asyncio.create_task(wait(rank)) for rank in ranks]
    await settle()
    return tasks


async def test_slots_go_to_the_highest_rank_and_each_fourth_to_the_oldest() -> None:
    slots, got = RankedSlots(1), list[WorkRank]()
    assert await slots.take(CALL, 0.0)
    tasks = await queued(slots, [BACKGROUND, BACKGROUND, CALL, CALL, PROMISE, PROMISE, PROMISE], got)
    for _ in tasks:
        slots.give_back()
        await settle()
    assert got == [PROMISE, PROMISE, PROMISE, BACKGROUND, CALL, CALL, BACKGROUND]
    slots.give_back()
    assert await slots.take(BACKGROUND, 0.0), "all are free again"


async def test_slot_wait_is_bounded() -> None:
    slots = RankedSlots(1)
    assert await slots.take(CALL, 0.0)
    assert not await slots.take(CALL, 0.01)
    slots.give_back()
    assert await slots.take(CALL, 0.0), "who left takes none"


@pytest.mark.parametrize("at_once", [False, True], ids=["while it waits", "when it has just got one"])
async def test_slot_of_a_cancelled_caller_goes_to_the_next(*, at_once: bool) -> None:
    slots, got = RankedSlots(1), list[WorkRank]()
    assert await slots.take(CALL, 0.0)
    leaver, stayer = await queued(slots, [PROMISE, BACKGROUND], got)
    if at_once:
        slots.give_back()
        leaver.cancel()
    else:
        leaver.cancel()
        await settle()
        slots.give_back()
    await asyncio.wait([leaver, stayer], timeout=20)
    assert leaver.cancelled()
    assert got == [BACKGROUND]


async def test_slots_are_never_more_than_there_are() -> None:
    slots, held, most, served = RankedSlots(3), 0, 0, Counter[WorkRank]()

    async def call(number: int) -> None:
        nonlocal held, most
        rank = list(WorkRank)[number % 3]
        if await slots.take(rank, 20.0):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1
            served[rank] += 1
            slots.give_back()

    await asyncio.gather(*(call(number) for number in range(300)))
    assert (most, held) == (3, 0)
    assert served == dict.fromkeys(WorkRank, 100)
