"""Tests that a call's deadline reaches what it waits for, and not what works for several calls."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context

import pytest

from syncbeat_server.runtime.deadline import set_deadline, time_left_s, without_deadline

pytestmark = pytest.mark.unit


async def test_deadline_is_of_one_context() -> None:
    async def call(seconds: float) -> float:
        set_deadline(seconds)
        await asyncio.sleep(0)
        return time_left_s()

    async def without() -> float:
        return time_left_s()

    assert time_left_s() == math.inf
    five, nine = await asyncio.gather(call(5.0), call(9.0))
    assert (four_to_five(five), 8.0 < nine <= 9.0, time_left_s()) == (True, True, math.inf)
    set_deadline(5.0)
    batch = asyncio.get_running_loop().create_task(without(), context=Context())
    assert await batch == math.inf
    shared = asyncio.get_running_loop().create_task(without(), context=without_deadline())
    assert await shared == math.inf
    assert four_to_five(time_left_s())
    set_deadline(-1.0)
    assert time_left_s() < 0


def four_to_five(seconds: float) -> bool:
    return 4.0 < seconds <= 5.0
