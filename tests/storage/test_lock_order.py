"""Whatever locks users, devices, deliveries and windows does so in one order: hardly anybody is ever in a deadlock."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable

import asyncpg

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.errors import AccessDenied, NotFound, Overloaded, RateLimited
from syncbeat_server.events.publish import Publisher
from syncbeat_server.events.users import UserLifecycle
from syncbeat_server.push import followup, queue
from syncbeat_server.push.model import DeliveryState, Finished, Reason, Target
from syncbeat_server.storage.postgres import Database, open_database
from syncbeat_server.sync.model import NewChange
from tests.conftest import DatabaseUrls
from tests.fakes import FakeClock, wait_until
from tests.storage.stage import (
    APP,
    accept,
    add_device,
    add_members,
    claim,
    default_tuning,
    directory,
    message,
    wake,
)
from tests.storage.test_publish import call

USERS = ["ann", "bob", "cat", "dan"]
SCOPES = ["couple", "chat"]
ROUNDS = 60


async def deadlocks(urls: DatabaseUrls) -> int:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        # A connection tells what it counted when it ends, at the latest.
        here = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'everybody'"

        async def all_left() -> bool:
            return not await conn.fetchval(here)

        await wait_until(all_left)
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return int(await conn.fetchval(query))
    finally:
        await conn.close()


class Everybody:
    """Those who lock, each in a loop of its own, at random places."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.database = database
        self.publisher = Publisher(database, clock, default_tuning, lambda app_id, scope: None, lambda: None)
        self.lifecycle = UserLifecycle(database, lambda app_id, user_id: None)
        self.directory = directory(database)
        self.random = random.Random(7)

    def someone(self) -> str:
        return self.random.choice(USERS)

    async def accept(self) -> None:
        users = self.random.sample(USERS, 3)
        once = {"dedupe_key": self.random.choice("ab"), "dedupe_window_s": 60.0}
        shown = message(*(Target(user_id=user) for user in users), **once)
        await accept(self.database, shown, wake(1, self.random.choice(SCOPES)))
        if self.random.random() < 0.5:
            async with self.database.transaction() as conn:
                await followup.cancel(conn, APP, shown.notification_id)

    async def publish(self) -> None:
        changes = [NewChange(scope, "k", "{}") for scope in self.random.sample(SCOPES, 2)]
        await self.publisher.publish(call(*changes, type="news"))

    async def publish_as_user(self) -> None:
        await self.publisher.publish(call("k", user_id=self.someone(), type="news"))

    async def deliver(self) -> None:
        lease = str(uuid.uuid4())
        claimed = await claim(self.database, lease)
        async with self.database.transaction() as conn:
            await queue.finish(conn, [Finished(one, DeliveryState.SENT, Reason.NONE) for one in claimed])

    async def erase(self) -> None:
        await self.lifecycle.delete(APP, self.someone())

    async def disable(self) -> None:
        user = self.someone()
        await self.lifecycle.disable(APP, user)
        await self.lifecycle.enable(APP, user)

    async def unregister(self) -> None:
        await self.directory.unregister(APP, self.someone(), self.random.choice(["phone", "tablet"]), by_user=False)

    async def join(self) -> None:
        user = self.someone()
        await self.lifecycle.enable(APP, user)
        for device in ("phone", "tablet"):
            # Tokens move from user to user.
            await add_device(self.database, user, device, f"token {self.random.randrange(6)}")
        await add_members(self.database, self.random.choice(SCOPES), user)

    async def come_and_go(self) -> None:
        scope, users = self.random.choice(SCOPES), self.random.sample(USERS, 3)
        await self.directory.remove_members(APP, scope, users)
        await self.directory.add_members(APP, scope, [Member(scope, user, MemberRole.WRITER) for user in users])


async def test_locks_are_taken_in_one_order(database_urls: DatabaseUrls, clock: FakeClock) -> None:
    outcomes = Counter[tuple[str, str]]()
    before = await deadlocks(database_urls)
    async with open_database(database_urls.app_url, size=14, name="everybody") as database:
        everybody = Everybody(database, clock)
        for scope in SCOPES:
            await add_members(database, scope, *USERS)
        for _ in USERS:
            await everybody.join()

        async def repeat(act: Callable[[], Awaitable[None]]) -> None:
            for _ in range(ROUNDS):
                try:
                    await act()
                except (NotFound, AccessDenied, RateLimited):
                    outcomes[act.__name__, "refused"] += 1
                except Overloaded as error:
                    # A device that was found was deleted meanwhile, or a lock was waited for for long.
                    outcomes[act.__name__, getattr(error.__cause__, "sqlstate", "")] += 1
                else:
                    outcomes[act.__name__, "done"] += 1

        e = everybody
        acts = [e.accept, e.accept, e.publish, e.publish_as_user, e.deliver, e.deliver, e.erase, e.erase]
        acts += [e.disable, e.unregister, e.unregister, e.join, e.join, e.come_and_go]
        await asyncio.gather(*map(repeat, acts))
    # With another order they were 7 to 17. What is left is a window opened between the two looks of an erasure.
    assert await deadlocks(database_urls) - before <= 3, outcomes
    assert {name for name, outcome in outcomes if outcome == "done"} == {act.__name__ for act in acts}, outcomes
