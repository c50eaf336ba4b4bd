"""Events that change the members of one scope wait for each other at the scope, and do not deadlock at its members."""

from __future__ import annotations

import asyncio

import pytest

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.events.effects import EffectRules, carry_out
from syncbeat_server.events.model import Effects, MemberEffect
from syncbeat_server.ratelimit.model import UNLIMITED
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import lock_scope
from tests.storage.test_lock_order import deadlocks
from tests.support.build import APP, default_tuning
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import FakeClock
from tests.support.seed import add_members, until, value_of

pytestmark = pytest.mark.store

ROUNDS = 20
WAITING = """SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'everybody' AND wait_event_type = 'Lock'"""


def swap(joins: str, leaves: str) -> Effects:
    """Let a user join the scope, and another one leave it."""
    return Effects(members=(MemberEffect("couple", (Member("couple", joins, MemberRole.WRITER),), (leaves,)),))


async def test_opposite_swaps_of_members_do_not_deadlock(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    rules = EffectRules(lambda app_id: default_tuning(app_id).prior, lambda _: UNLIMITED, clock)
    before = await deadlocks(database_urls)
    async with open_database(database_urls.app_url, size=3, name="everybody") as swapping:

        async def carry(effects: Effects) -> None:
            async with swapping.transaction() as conn:
                await carry_out(conn, APP, "service:test", effects, rules)

        async def both_wait() -> bool:
            return bool(await value_of(database, WAITING) == 2)

        for _ in range(ROUNDS):
            await add_members(database, "couple", "ann", "bob")
            async with asyncio.TaskGroup() as group, swapping.transaction() as conn:
                await lock_scope(conn, APP, "couple")
                for effects in (swap("ann", "bob"), swap("bob", "ann")):
                    group.create_task(carry(effects))
                await until(both_wait, "two events that wait for the scope")
            assert await value_of(database, "SELECT count(*) FROM scope_members") == 1, "the later event's"
    assert await deadlocks(database_urls) == before
