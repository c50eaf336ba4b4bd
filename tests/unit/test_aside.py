"""Slow pure functions run in processes of their own, which are replaced when they end, and end with their owner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from syncbeat_server.errors import DependencyDown, Overloaded, SyncbeatError
from syncbeat_server.rpc.validation.json_documents import fault_of
from syncbeat_server.runtime.worker_processes import Children
from syncbeat_server.sync.content.merge_patch import apply
from tests.aside_work import die, die_once, fail, never_end, niceness, pid, refuse
from tests.fakes import wait_until

OWNER = """
import asyncio, uvloop
from syncbeat_server.runtime.worker_processes import Children
from tests.aside_work import pid

async def main():
    print(await Children().run(pid), flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    made = Children()
    yield made
    await made.close()


def is_gone(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_child_process_answers_what_the_function_does(children: Children) -> None:
    assert await children.run(fault_of, "[1e309]", 32) == fault_of("[1e309]", 32)
    assert await children.run(fault_of, '{"ü": "\\u0001"}', 32) == ""
    assert await children.run(apply, '{"a":1e-5}', ['{"b":2}', '{"a":null}']) == '{"b":2}'
    assert await children.run(pid) != os.getpid()
    assert await children.run(niceness) > os.nice(0)


async def test_child_process_is_used_again_after_an_error_of_the_work(children: Children) -> None:
    first = await children.run(pid)
    with pytest.raises(ValueError, match="too deep"):
        await children.run(refuse, "too deep")
    with pytest.raises(SyncbeatError) as raised:
        await children.run(fail, "what the document says")
    assert "KeyError" in raised.value.message
    assert "what the document says" not in raised.value.message
    assert await children.run(pid) == first


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_work_that_its_process_dies_of_is_refused_and_others_go_on(children: Children, how: int) -> None:
    with pytest.raises(DependencyDown):
        await children.run(die, how)
    assert await children.run(pid)


async def test_process_that_dies_while_idle_or_at_work_is_replaced(children: Children, tmp_path: object) -> None:
    first = await children.run(pid)
    os.kill(first, signal.SIGKILL)
    second = await children.run(pid)
    assert second != first
    assert await children.run(die_once, f"{tmp_path}/died") != second


async def test_work_that_takes_too_long_is_given_up_with_its_process() -> None:
    children = Children(most=1, patience_s=0.2)
    try:
        with pytest.raises(DependencyDown):
            await children.run(never_end)
    finally:
        await children.close()


async def test_children_are_few_and_what_waits_is_bounded(children: Children) -> None:
    asked = [asyncio.ensure_future(children.run(pid)) for _ in range(250)]
    assert len(set(await asyncio.gather(*asked))) <= 2
    many = [asyncio.ensure_future(children.run(pid)) for _ in range(400)]
    answers = await asyncio.gather(*many, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) == 400 - 256


async def test_work_of_a_caller_who_has_left_is_not_begun(children: Children) -> None:
    asked = [asyncio.ensure_future(children.run(never_end)) for _ in range(50)]
    for one in asked:
        one.cancel()
    assert await children.run(pid)


async def test_loop_goes_on_while_a_child_works(children: Children) -> None:
    value = "[" + ",".join(["1e99"] * 50_000) + "]"
    checking = asyncio.ensure_future(children.run(fault_of, value, 32))
    turns, began = 0, time.monotonic()
    while not checking.done():
        await asyncio.sleep(0)
        turns += 1
    assert "written out" in await checking
    assert turns > 10, time.monotonic() - began


async def test_close_ends_the_processes_and_refuses_what_waits() -> None:
    children = Children(most=1)
    process = await children.run(pid)
    at_work = asyncio.ensure_future(children.run(never_end))
    waits = asyncio.ensure_future(children.run(pid))
    await asyncio.sleep(0)
    await children.close()
    for one in (at_work, waits):
        with pytest.raises(DependencyDown):
            await one
    assert await wait_until(lambda: is_gone(process), 5, "the child is gone")
    with pytest.raises(Overloaded):
        await children.run(pid)


async def test_children_end_with_their_process_also_when_it_is_killed() -> None:
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert owner.stdout is not None
    process = int(await owner.stdout.readline())
    assert not is_gone(process)
    owner.kill()
    await owner.wait()
    await wait_until(lambda: is_gone(process), 10, "the child is gone")
