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
from syncbeat_server.runtime.worker_processes import WorkerProcesses
from syncbeat_server.sync.content.json_limits import document_fault
from syncbeat_server.sync.content.merge_patch import apply
from tests.support.fake_clock import wait_until
from tests.support.worker_process_jobs import die, die_once, fail, never_end, niceness, pid, refuse

pytestmark = pytest.mark.process

OWNER = """
import asyncio, uvloop
from syncbeat_server.runtime.worker_processes import WorkerProcesses
from tests.support.worker_process_jobs import pid

async def main():
    print(await WorkerProcesses().run(pid), flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""


@pytest.fixture
async def children() -> AsyncIterator[WorkerProcesses]:
    made = WorkerProcesses()
    yield made
    await made.close()


def is_gone(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_worker_process_returns_the_result(children: WorkerProcesses) -> None:
    assert await children.run(document_fault, "[1e309]", 32) == document_fault("[1e309]", 32)
    assert await children.run(document_fault, '{"ü": "\\u0001"}', 32) == ""
    assert await children.run(apply, '{"a":1e-5}', ['{"b":2}', '{"a":null}']) == '{"b":2}'
    assert await children.run(pid) != os.getpid()
    assert await children.run(niceness) > os.nice(0)


async def test_worker_process_is_reused_after_an_error(children: WorkerProcesses) -> None:
    first = await children.run(pid)
    with pytest.raises(ValueError, match="too deep"):
        await children.run(refuse, "too deep")
    with pytest.raises(SyncbeatError) as raised:
        await children.run(fail, "what the document says")
    assert "KeyError" in raised.value.message
    assert "what the document says" not in raised.value.message
    assert await children.run(pid) == first


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_worker_process_crash_fails_its_job_and_spares_others(children: WorkerProcesses, how: int) -> None:
    with pytest.raises(DependencyDown):
        await children.run(die, how)
    assert await children.run(pid)


async def test_worker_process_that_dies_is_replaced(children: WorkerProcesses, tmp_path: object) -> None:
    first = await children.run(pid)
    os.kill(first, signal.SIGKILL)
    second = await children.run(pid)
    assert second != first
    assert await children.run(die_once, f"{tmp_path}/died") != second


async def test_worker_process_timeout_kills_it() -> None:
    children = WorkerProcesses(most=1, timeout_s=0.2)
    try:
        with pytest.raises(DependencyDown):
            await children.run(never_end)
    finally:
        await children.close()


async def test_worker_process_pool_and_queue_are_bounded(children: WorkerProcesses) -> None:
    asked = [asyncio.ensure_future(children.run(pid)) for _ in range(250)]
    assert len(set(await asyncio.gather(*asked))) <= 2
    many = [asyncio.ensure_future(children.run(pid)) for _ in range(400)]
    answers = await asyncio.gather(*many, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) == 400 - 256


async def test_worker_process_skips_cancelled_jobs(children: WorkerProcesses) -> None:
    asked = [asyncio.ensure_future(children.run(never_end)) for _ in range(50)]
    for one in asked:
        one.cancel()
    assert await children.run(pid)


async def test_worker_process_does_not_block_the_loop(children: WorkerProcesses) -> None:
    value = "[" + ",".join(["1e99"] * 50_000) + "]"
    checking = asyncio.ensure_future(children.run(document_fault, value, 32))
    turns, began = 0, time.monotonic()
    while not checking.done():
        await asyncio.sleep(0)
        turns += 1
    assert "written out" in await checking
    assert turns > 10, time.monotonic() - began


async def test_worker_process_pool_close_refuses_waiting_jobs() -> None:
    children = WorkerProcesses(most=1)
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


async def test_worker_processes_end_with_their_parent() -> None:
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert owner.stdout is not None
    process = int(await owner.stdout.readline())
    assert not is_gone(process)
    owner.kill()
    await owner.wait()
    await wait_until(lambda: is_gone(process), 10, "the child is gone")
