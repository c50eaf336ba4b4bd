"""Calls that come batcher are served in a row; a lone one does not wait, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial

import pytest

from syncbeat_server.rpc.fastpath.request_batcher import BatchTimings, RequestBatcher
from tests.support.fake_clock import settle

pytestmark = pytest.mark.unit


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def noted(served: list[str], name: str) -> Callable[[], str]:
    def work() -> str:
        served.append(name)
        return name

    return work


def unhurried() -> RequestBatcher:
    """Return a batcher for which turns and rows count, however long a busy machine makes them."""
    return RequestBatcher(BatchTimings(longest_wait_s=60.0, longest_turn_s=60.0))


async def serve_two(batcher: RequestBatcher) -> None:
    """So that the next ones gather."""
    assert list(await asyncio.gather(batcher.serve(lambda: 1), batcher.serve(lambda: 2))) == [1, 2]


async def test_request_batcher_serves_a_lone_call_next_turn() -> None:
    call = asyncio.ensure_future(RequestBatcher().serve(lambda: "answer"))
    await turns(3)
    assert call.done()
    assert call.result() == "answer"


async def test_request_batcher_waits_for_more_after_several_in_order() -> None:
    batcher, served = unhurried(), list[str]()
    await serve_two(batcher)
    first = asyncio.ensure_future(batcher.serve(noted(served, "first")))
    await turns(10)
    second = asyncio.ensure_future(batcher.serve(noted(served, "second")))
    await turns(15)
    assert served == [], "quiet for less than twenty turns"
    await turns(10)
    assert served == ["first", "second"]
    assert list(await asyncio.gather(first, second)) == served


async def test_request_batcher_stops_waiting_after_eight_lone_calls() -> None:
    batcher = unhurried()
    await serve_two(batcher)
    waited = []
    for _ in range(10):
        call = asyncio.ensure_future(batcher.serve(lambda: "answer"))
        await turns(3)
        waited.append(not call.done())
        await call
    assert waited == [True] * 8 + [False] * 2


async def test_request_batcher_wait_is_bounded_when_turns_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = RequestBatcher()
    await serve_two(batcher)
    call = asyncio.ensure_future(batcher.serve(lambda: "answer"))
    loop = asyncio.get_running_loop()
    passed, began = 0, loop.time()
    monkeypatch.setattr(loop, "time", lambda: began + passed * 0.002)  # the process has other work to do
    while not call.done():
        await turns(1)
        passed += 1
    assert passed < 10, "quiet turns count as long as they are short"


async def test_request_batcher_serves_a_full_batch_though_more_arrive() -> None:
    batcher, served = unhurried(), list[str]()
    await serve_two(batcher)
    calls: list[asyncio.Future[str]] = []
    while not served:
        calls.append(asyncio.ensure_future(batcher.serve(noted(served, f"{len(calls)}"))))
        await turns(1)
        assert len(calls) < 40
    assert len(served) == 32
    await asyncio.gather(*calls)
    assert served == [f"{number}" for number in range(len(calls))]


async def test_request_batcher_batch_size_is_32_with_turns_between() -> None:
    batcher, served = unhurried(), list[str]()
    await serve_two(batcher)
    calls = [asyncio.ensure_future(batcher.serve(noted(served, f"{number}"))) for number in range(70)]
    seen = [0]
    while len(served) < 70:
        await turns(1)
        if len(served) != seen[-1]:
            seen.append(len(served))
    assert seen == [0, 32, 64, 70]
    assert list(await asyncio.gather(*calls)) == served == [f"{number}" for number in range(70)]


async def test_request_batcher_error_is_its_callers_alone() -> None:
    batcher = RequestBatcher()

    def fails() -> str:
        raise ValueError("this one")

    calls = (batcher.serve(lambda: "good"), batcher.serve(fails), batcher.serve(lambda: "good too"))
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, third) == ("good", "good too")
    with pytest.raises(ValueError, match="this one"):
        raise second  # type: ignore[misc]  # it is one


class Panic(BaseException):
    """As what a library in Rust raises for a fault of its own."""


@pytest.mark.parametrize(("raised", "told"), [(Panic(), Panic), (StopIteration(), RuntimeError)], ids=repr)
async def test_request_batcher_base_exception_leaves_nobody_waiting(
    raised: BaseException, told: type[BaseException]
) -> None:
    batcher = RequestBatcher()

    def fails() -> str:
        raise raised

    calls = [asyncio.ensure_future(batcher.serve(work)) for work in (lambda: "good", fails, lambda: "good too")]
    _, waiting = await asyncio.wait(calls, timeout=20)
    assert not waiting
    assert (calls[0].result(), type(calls[1].exception()), calls[2].result()) == ("good", told, "good too")


class Asked:
    """Records what a call holds."""


async def test_request_batcher_releases_answered_calls() -> None:
    """Requests may be large, and what hangs in a circle stays until it is collected."""
    batcher = RequestBatcher()
    gone: list[weakref.ref[Asked]] = []

    def refused(_: Asked) -> None:
        raise ValueError("refused")

    async def call(answer: Callable[[Asked], None]) -> None:
        asked = Asked()
        gone.append(weakref.ref(asked))
        with suppress(ValueError):
            await batcher.serve(partial(answer, asked))

    gc.collect()
    gc.disable()
    try:
        await asyncio.gather(*map(call, (lambda _: None, refused, lambda _: None, refused)))
        assert [one() for one in gone] == [None] * 4
    finally:
        gc.enable()


async def test_request_batcher_skips_cancelled_callers() -> None:
    batcher, served = unhurried(), list[str]()
    await serve_two(batcher)
    calls = [asyncio.ensure_future(batcher.serve(noted(served, name))) for name in ("stays", "goes")]
    await turns(2)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert served == ["stays"]
    assert calls[1].cancelled()


async def test_request_batcher_runs_in_an_empty_context() -> None:
    """A call that relied on the context would be served with another's."""
    name: ContextVar[str] = ContextVar("name", default="nobody")
    batcher = RequestBatcher()

    async def call(own: str) -> str:
        name.set(own)
        return await batcher.serve(name.get)

    assert await asyncio.gather(*(asyncio.create_task(call(own)) for own in ("ann", "bob"))) == ["nobody", "nobody"]
    await settle()


async def test_request_batcher_yields_the_loop_between_slow_calls() -> None:
    batcher, seen = RequestBatcher(), list[str]()

    def slow() -> None:
        until = time.monotonic() + 0.004
        while time.monotonic() < until:
            pass
        seen.append("call")

    calls = [asyncio.ensure_future(batcher.serve(slow)) for _ in range(6)]
    await turns(1)
    while not all(call.done() for call in calls):
        seen.append("others")
        await turns(1)
    rows = [len(list(row)) for what, row in itertools.groupby(seen) if what == "call"]
    assert sum(rows) == 6
    assert max(rows) <= 2
