"""A call's time is bounded when it has to wait."""

from __future__ import annotations

import asyncio

import pytest

from syncbeat_server.rpc.fastpath.shared_deadline import SharedDeadlines
from tests.support.fake_clock import settle

pytestmark = pytest.mark.unit


async def test_deadline_of_a_call_that_never_waits() -> None:
    async def work() -> str:
        return "done"

    assert await SharedDeadlines().within(60.0, work()) == "done"


async def test_deadline_of_a_call_that_waits_in_time() -> None:
    deadlines = SharedDeadlines()
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))

    async def work() -> list[str]:
        answers = [await first]
        try:
            await second
        except ValueError as error:
            answers.append(str(error))
        return answers

    task = asyncio.ensure_future(deadlines.within(60.0, work()))
    await settle()
    first.set_result("one")
    second.set_exception(ValueError("two"))
    assert await task == ["one", "two"]


async def test_deadline_exceeded_is_reported() -> None:
    deadlines = SharedDeadlines()
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    with pytest.raises(TimeoutError):
        await deadlines.within(0.02, work())
    assert ended == ["cleaned up"]


async def test_deadline_wrapper_passes_errors_and_cancellations() -> None:
    deadlines = SharedDeadlines()

    async def fails() -> None:
        raise ValueError("at once")

    async def fails_later() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    with pytest.raises(ValueError, match="at once"):
        await deadlines.within(60.0, fails())
    with pytest.raises(ValueError, match="later"):
        await deadlines.within(60.0, fails_later())
    task = asyncio.ensure_future(deadlines.within(60.0, asyncio.Event().wait()))
    await settle()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
