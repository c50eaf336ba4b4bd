"""A server that stops under load, as a host that hangs or is cut off, keeps nobody else from writing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from syncbeat_devtools.demo.stage import Stage
from tests.prove.writers import Written, differences
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.prove

SCOPES = 60
BEFORE = 600
STOPPED_S = 60.0
# Writers are many, so that transactions are open when the server stops, and slow afterwards: 120 of them, 150 a
# second.
CALM_S = 0.8
# PostgreSQL ends what the stopped one left open after at most 10 s, and who waits for a lock gives up after 4 s; the
# rest is for a busy machine.
BOUND_S = 10.0 + 4.0 + 4.0


@asynccontextmanager
async def _stopped(pid: int) -> AsyncIterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.timeout(300)
async def test_stopped_server_blocks_no_scope(
    stage: Stage, database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    stopped, other = await stage.start_server(), await stage.start_server()
    theirs, ours = (stage.client(stage.identity.service_token, server) for server in (stopped, other))
    by_stopped, by_other, over = Written(), Written(), asyncio.Event()
    load = [
        asyncio.ensure_future(written.write(client, f"scope-{number}", name, over))
        for number in range(SCOPES)
        for written, client, name in ((by_stopped, theirs, "stopped"), (by_other, ours, "other"))
    ]
    await wait_until(lambda: by_stopped.count >= BEFORE and by_other.count >= BEFORE, 60.0, "both are busy")
    by_stopped.pause_s = by_other.pause_s = CALM_S
    by_other.failures.clear()
    async with _stopped(stopped.pid):
        moment = time.monotonic()
        # What was committed before may be answered a moment after.
        taken = partial(by_other.after, moment + 1.0)
        until = moment + STOPPED_S
        await wait_until(lambda: time.monotonic() >= moment + BOUND_S, BOUND_S + 10.0)
        blocked = SCOPES - len(taken())
        await wait_until(lambda: time.monotonic() >= until, STOPPED_S + 10.0)
        blocked_to_the_end = SCOPES - len(by_other.after(until - BOUND_S))
        failed_elsewhere = dict(by_other.failures)
        by_stopped.failures.clear()
    resumed = time.monotonic()
    try:
        await wait_until(lambda: len(by_stopped.after(resumed)) == SCOPES, 60.0, "the stopped one serves every scope")
    finally:
        over.set()
        await asyncio.gather(*load, return_exceptions=True)
    for client in (theirs, ours):
        await client.close()
    both = by_stopped.together(by_other)
    found = await differences(database_urls.admin_url, both)
    record(
        "stopped-host",
        {
            "command": "make prove ARGS='-k stopped_server'",
            "scopes": SCOPES,
            "stopped_for_s": STOPPED_S,
            f"scopes_blocked_after_{BOUND_S:.0f}_s": blocked,
            "scopes_blocked_at_the_end": blocked_to_the_end,
            "acknowledged": both.count,
            **found,
            "failed_elsewhere_while_stopped": failed_elsewhere,
            "failed_at_the_stopped_one_after_it_went_on": dict(by_stopped.failures),
            "it_serves_every_scope_again_after_s": round(_all_back(by_stopped, resumed), 1),
        },
    )
    assert found == {"lost": 0, "doubled": 0}
    assert (blocked, blocked_to_the_end) == (0, 0)
    # DEADLINE_EXCEEDED is what callers say themselves of a server that is silent.
    assert set(by_stopped.failures) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def _all_back(written: Written, moment: float) -> float:
    """The seconds from this moment until each scope had a publish acknowledged after it."""
    return max(min(at for at in times if at > moment) for times in written.at.values()) - moment
