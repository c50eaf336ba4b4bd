"""Tests the board on which processes know of each other: killed ones go, records of strangers are passed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.status.call_window import WindowRule
from syncbeat_server.status.model import BuildStatus, PoolStatus
from syncbeat_server.status.own_status import CallSource, Identity, OwnStatus
from syncbeat_server.status.process_board import MOST_PROCESSES, BoardRule, ProcessBoard
from syncbeat_server.status.records import encode
from syncbeat_server.status.store import process_rows
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from syncbeat_server.storage.redis.process_records import read_records, write_record
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.process_statuses import process_status

pytestmark = pytest.mark.store

DEFAULT, RULE = BoardRule(), BoardRule(kept_s=0.2)


def board_of(database: Database, bus: RedisBus, name: str, rule: BoardRule = DEFAULT) -> ProcessBoard:
    calls = CallSource((0.1,), dict)
    build = BuildStatus("1", "", "3", "1")
    own = OwnStatus(
        Identity(name, "rpc", build), SystemClock(), calls, lambda: PoolStatus(1, 1, 0, 0, 0.0), WindowRule()
    )
    return ProcessBoard(own, database, bus, SystemClock(), rule)


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with open_redis(redis_url, SystemClock(), "d") as opened:
        yield opened


@asynccontextmanager
async def no_redis(port: int) -> AsyncIterator[RedisBus]:
    async with open_redis(f"redis://127.0.0.1:{port}", SystemClock(), "d") as opened:
        yield opened


async def names(board: ProcessBoard) -> list[str]:
    return [one.name for one in (await board.read())[0]]


async def test_board_lists_each_process_and_drops_the_killed(database: Database, bus: RedisBus) -> None:
    one, two = board_of(database, bus, "one"), board_of(database, bus, "two", RULE)
    await one.write()
    await two.write()
    assert await names(one) == ["one", "two"]

    async def alone() -> bool:
        return await names(one) == ["one"]

    await wait_until(alone)  # the other writes no more
    assert await names(two) == ["one", "two"], "it knows of itself"
    count, records = await read_records(bus, 10)
    assert (count, len(records)) == (1, 1), "its record has expired"


async def test_board_drops_who_withdraws(database: Database, bus: RedisBus) -> None:
    one, two = board_of(database, bus, "one"), board_of(database, bus, "two")
    await one.write()
    await two.write()
    await two.withdraw()
    assert await names(one) == ["one"]


async def test_board_without_redis_believes_rows_for_half_a_minute(
    database: Database, clock: FakeClock, closed_port: int
) -> None:
    async with no_redis(closed_port) as bus:
        one, two = board_of(database, bus, "one"), board_of(database, bus, "two")
        await one.write()
        await two.write()
        assert await names(one) == await names(two) == ["one", "two"]
        await clock.advance(20.0)
        await one.write()
        assert await names(two) == ["one", "two"]
        await clock.advance(15.0)
        assert await names(one) == ["one"], "two wrote 35 s ago"
        await one.withdraw()
        assert await names(two) == ["two"]


async def test_board_takes_the_newest_of_two_records(database: Database, bus: RedisBus) -> None:
    status = process_status("other")
    newer = process_status("other", at=status.written_at + timedelta(seconds=3))
    await write_record(bus, status.key, encode(status), 15.0, 10)
    async with database.connection() as conn:
        await process_rows.write_row(conn, newer.key, encode(newer))
    found, omitted = await board_of(database, bus, "own").read()
    assert [one for one in found if one.name == "other"] == [newer]
    assert omitted == 0


async def test_board_passes_over_records_that_are_none(database: Database, bus: RedisBus) -> None:
    await write_record(bus, "stranger", "{}", 15.0, 10)
    board = board_of(database, bus, "own")
    await board.write()
    found, omitted = await board.read()
    assert [one.name for one in found] == ["own"]
    assert omitted == 1, "told as one that is not listed"


async def test_board_lists_itself_and_so_many_others(database: Database, bus: RedisBus) -> None:
    for number in range(MOST_PROCESSES + 20):
        status = process_status(f"host:{number:03}")
        await write_record(bus, status.key, encode(status), 15.0, 1_000)
    board = board_of(database, bus, "own")
    await board.write()
    found, omitted = await board.read()
    assert (len(found), omitted) == (MOST_PROCESSES, 21)
    assert "own" in {one.name for one in found}


async def test_records_are_kept_of_so_many_processes(bus: RedisBus) -> None:
    for number in range(8):
        await write_record(bus, f"p{number}", f"record {number}", 15.0 + number, 5)
    count, records = await read_records(bus, 100)
    assert (count, sorted(records)) == (5, [b"record %d" % number for number in range(3, 8)])


async def test_records_without_redis_are_told_as_such(closed_port: int) -> None:
    async with no_redis(closed_port) as bus:
        with pytest.raises(DependencyDown):
            await read_records(bus, 1)


async def test_board_goes_on_after_a_fault_of_a_part(database: Database, bus: RedisBus) -> None:
    clock = FakeClock()
    own = OwnStatus(
        Identity("one", "rpc", BuildStatus("1", "", "3", "1")),
        clock,
        CallSource((0.1,), dict),
        lambda: PoolStatus(1, 1, 0, 0, 0.0),
        WindowRule(),
    )
    is_broken = True

    def streams() -> tuple[int, int]:
        if is_broken:
            raise ValueError("a part that cannot be read")
        return 0, 0

    board = ProcessBoard(own, database, bus, clock, DEFAULT)
    own.streams = streams
    running = asyncio.ensure_future(board.run())
    try:
        await wait_until(lambda: clock.sleepers == 1)
        is_broken = False
        await clock.advance(DEFAULT.every_s)
        await wait_until(lambda: clock.sleepers == 1)
        assert (await read_records(bus, 10))[0] == 1
    finally:
        running.cancel()
        await asyncio.wait([running])
