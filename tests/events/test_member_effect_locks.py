"""Events that change the members of one scope wait for each other at the scope, and do not deadlock at its members."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.events.effects import EffectRules, carry_out
from syncbeat_server.events.model import Effects, MemberEffect, TierEffect, UserAction, UserEffect
from syncbeat_server.ratelimit.model import UNLIMITED, Tier, TierPolicy
from syncbeat_server.ratelimit.user_tiers import grant_tier
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import lock_scope
from tests.storage.test_lock_order import deadlocks
from tests.support.build import APP, default_tuning
from tests.support.databases import DatabaseUrls, open_database
from tests.support.events import change
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


BOTH = (change(1, scope="b"), change(1, scope="c"))
ENSURED = UserEffect("ann", UserAction.ENSURE)
JOINS = (Member("b", "ann", MemberRole.WRITER),)


@pytest.mark.parametrize(
    "effects",
    [
        Effects(users=(ENSURED,), changes=BOTH),
        Effects(members=(MemberEffect("c", (), ("bob",)),), changes=BOTH[:1]),
        Effects(members=(MemberEffect("c", (Member("c", "ann", MemberRole.WRITER),)),), changes=BOTH),
    ],
    ids=["user", "member leaves", "member joins"],
)
async def test_scopes_that_events_create_are_locked_in_order_with_those_that_exist(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock, effects: Effects
) -> None:
    """The scope `c` exists, `b` does not: who locked `c` first waited for `b` of who waits for `c`."""
    policy = TierPolicy({"gold": Tier("gold", ())}, None, None)
    rules = EffectRules(lambda app_id: default_tuning(app_id).prior, lambda _: policy, clock)
    before = await deadlocks(database_urls)
    await add_members(database, "c", "bob")
    async with open_database(database_urls.app_url, size=3, name="everybody") as both:

        async def carry(wanted: Effects) -> None:
            async with both.transaction() as conn:
                await carry_out(conn, APP, "service:test", wanted, rules)

        async def wait(count: int) -> bool:
            return bool(await value_of(database, WAITING) == count)

        async with asyncio.TaskGroup() as group, both.transaction() as conn:
            await grant_tier(conn, APP, "ann", "gold")
            # It has locked its scopes, and waits for the tier.
            group.create_task(carry(replace(effects, tiers=(TierEffect("ann", "gold"),))))
            await until(partial(wait, 1), "the first event waits for the tier")
            group.create_task(carry(Effects(changes=BOTH)))
            await until(partial(wait, 2), "the second event waits for a scope")
    assert await deadlocks(database_urls) == before
    assert await value_of(database, "SELECT count(*) FROM scopes") == 2


async def test_event_makes_no_scope_that_users_only_leave(database: Database, clock: FakeClock) -> None:
    rules = EffectRules(lambda app_id: default_tuning(app_id).prior, lambda _: UNLIMITED, clock)
    effects = Effects(members=(MemberEffect("a", (), ("ann",)), MemberEffect("b", JOINS)))
    async with database.transaction() as conn:
        await carry_out(conn, APP, "service:test", effects, rules)
    assert await value_of(database, "SELECT array_agg(scope) FROM scopes") == ["b"]
