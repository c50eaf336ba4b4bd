"""Tests the steps of `smoke`: what one made is undone last first, whatever fails."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from syncbeat_devtools.smoke.journey import METHODS, METHODS_WITHOUT_SESSIONS
from syncbeat_devtools.smoke.steps import CLEAN_UP_S, StepFailed, StepResult, Steps
from tests.docs.pages import ROOT
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit


def failure(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="why")


async def test_smoke_steps_are_undone_last_first_and_a_fault_keeps_none_from_it() -> None:
    told: list[StepResult] = []
    steps = Steps(FakeClock(), told.append)
    undone: list[str] = []

    def undo(name: str, error: Exception | None = None) -> None:
        async def work() -> None:
            undone.append(name)
            if error is not None:
                raise error

        steps.undo_later(name, work)

    undo("user")
    undo("scope", failure(grpc.StatusCode.UNAVAILABLE))
    undo("key", failure(grpc.StatusCode.NOT_FOUND))  # it was never made

    async def fails() -> str:
        raise failure(grpc.StatusCode.INTERNAL)

    with pytest.raises(StepFailed):
        await steps.run("push", fails)
    await steps.clean_up()
    assert undone == ["key", "scope", "user"]
    assert steps.left_behind == ["scope"]
    assert [(one.name, one.ok, one.detail) for one in told] == [
        ("push", False, "INTERNAL: why"),
        ("clean-up", False, "scope: UNAVAILABLE: why"),
    ]
    assert not steps.ok


async def test_smoke_clean_up_has_a_bound_for_all_of_it() -> None:
    clock = FakeClock()
    steps = Steps(clock, lambda _: None)

    async def slow() -> None:
        await clock.advance(CLEAN_UP_S + 1.0)

    async def hangs() -> None:
        await asyncio.Event().wait()

    steps.undo_later("user", hangs)
    steps.undo_later("key", slow)
    await steps.clean_up()
    assert steps.left_behind == ["user"]
    assert steps.results[-1].detail == "user: not done in time"


def test_smoke_page_names_the_methods_that_a_run_calls() -> None:
    page = (ROOT / "docs" / "soak.md").read_text(encoding="utf-8")
    assert f"'{'|'.join(METHODS)}'" in page
    assert f"`{'|'.join(METHODS_WITHOUT_SESSIONS)}`" in page
