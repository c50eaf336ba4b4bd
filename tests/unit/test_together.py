"""Calls that come together are served in a row; a lone one does not wait, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from syncbeat_server.rpc.together import Together
from tests.fakes import settle


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def noted(served: list[str], name: str) -> Callable[[], str]:
    def work() -> str:
        served.append(name)
        return name

    return work


async def serve_two(together: Together) -> None:
    """So that the next ones gather."""
    assert list(await asyncio.gather(together.serve(lambda: 1), together.serve(lambda: 2))) == [1, 2]


async def test_a_lone_call_is_served_in_the_next_turn() -> None:
    call = asyncio.ensure_future(Together().serve(lambda: "answer"))
    await turns(3)
    assert call.done()
    assert call.result() == "answer"


async def test_after_several_more_are_waited_for_and_served_in_their_order() -> None:
    together, served = Together(), list[str]()
    await serve_two(together)
    first = asyncio.ensure_future(together.serve(noted(served, "first")))
    await turns(10)
    second = asyncio.ensure_future(together.serve(noted(served, "second")))
    await turns(15)
    assert served == [], "quiet for less than twenty turns"
    await turns(10)
    assert served == ["first", "second"]
    assert list(await asyncio.gather(first, second)) == served


async def test_after_eight_lone_calls_nobody_waits_for_more() -> None:
    together = Together()
    await serve_two(together)
    waited = []
    for _ in range(10):
        call = asyncio.ensure_future(together.serve(lambda: "answer"))
        await turns(3)
        waited.append(not call.done())
        await call
    assert waited == [True] * 8 + [False] * 2


async def test_a_full_row_is_served_though_more_keep_coming() -> None:
    together, served = Together(), list[str]()
    await serve_two(together)
    calls: list[asyncio.Future[str]] = []
    while not served:
        calls.append(asyncio.ensure_future(together.serve(noted(served, f"{len(calls)}"))))
        await turns(1)
        assert len(calls) < 40
    assert len(served) == 32
    await asyncio.gather(*calls)
    assert served == [f"{number}" for number in range(len(calls))]


async def test_an_error_is_its_callers_alone() -> None:
    together = Together()

    def fails() -> str:
        raise ValueError("this one")

    calls = (together.serve(lambda: "good"), together.serve(fails), together.serve(lambda: "good too"))
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, third) == ("good", "good too")
    with pytest.raises(ValueError, match="this one"):
        raise second  # type: ignore[misc]  # it is one


async def test_what_a_caller_that_has_gone_wanted_is_not_done() -> None:
    together, served = Together(), list[str]()
    await serve_two(together)
    calls = [asyncio.ensure_future(together.serve(noted(served, name))) for name in ("stays", "goes")]
    await turns(2)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert served == ["stays"]
    assert calls[1].cancelled()


async def test_nobodys_context_is_there() -> None:
    """A call that relied on the context would be served with another's."""
    name: ContextVar[str] = ContextVar("name", default="nobody")
    together = Together()

    async def call(own: str) -> str:
        name.set(own)
        return await together.serve(name.get)

    assert await asyncio.gather(*(asyncio.create_task(call(own)) for own in ("ann", "bob"))) == ["nobody", "nobody"]
    await settle()
