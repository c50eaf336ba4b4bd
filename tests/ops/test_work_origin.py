"""Statements say which method or task they come from, and cost one look-up each for that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from syncbeat_server.app.process import run_in_background
from syncbeat_server.ops.work_origin import (
    UNNAMED,
    WorkOrigin,
    WorkRank,
    fresh_context,
    method_origin,
    name_of,
    task_origin,
    work_origin,
)
from syncbeat_server.storage.batcher import Batcher, BatchRule

pytestmark = pytest.mark.unit


def test_statement_comment_is_that_of_sqlcommenter() -> None:
    assert method_origin("GetHint").told("SELECT 1") == "SELECT 1 /*method='GetHint'*/"
    # Values are URL-encoded, so that no name ends the comment (sqlcommenter's specification, "Value serialization").
    assert task_origin("it's*/ DROP").told("SELECT 1") == "SELECT 1 /*task='it%27s%2A%2F%20DROP'*/"


def test_statement_comment_is_joined_once() -> None:
    assert method_origin("GetHint").told("SELECT 1") is method_origin("GetHint").told("SELECT 1")


def test_statements_made_up_on_the_way_are_not_kept() -> None:
    origin = WorkOrigin("task", "makes them up", WorkRank.BACKGROUND)
    for number in range(5_000):
        assert origin.told(f"SELECT {number}") == f"SELECT {number} /*task='makes%20them%20up'*/"
    assert len(origin._texts) == 1_000


async def test_background_task_is_the_origin_of_its_statements() -> None:
    seen: list[WorkOrigin] = []
    over = asyncio.Event()

    async def sweep() -> None:
        seen.append(work_origin.get())
        over.set()

    async with run_in_background([sweep()]):
        await over.wait()
    assert seen == [task_origin(name_of(sweep))]
    assert seen[0].name.endswith("sweep")
    assert work_origin.get() is UNNAMED


async def test_batch_is_of_the_method_whose_calls_it_serves() -> None:
    async def work(items: Sequence[int]) -> list[WorkOrigin | Exception]:
        return [work_origin.get() for _ in items]

    batcher: Batcher[int, WorkOrigin] = Batcher(work, BatchRule(max_batch=2))

    async def submit(origin: WorkOrigin) -> WorkOrigin:
        task = asyncio.get_running_loop().create_task(batcher.submit(1), context=fresh_context(origin))
        return await task

    get, publish = method_origin("GetHint"), method_origin("PublishChanges", WorkRank.PROMISE)
    assert await submit(get) is get
    both = set(await asyncio.gather(submit(get), submit(publish)))
    assert both == {task_origin(name_of(work), WorkRank.PROMISE)}, "a batch of two methods has a name of its own"
