"""Tests the lock order of users, devices, deliveries and windows: nobody is ever in a deadlock."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NamedTuple

import asyncpg
import pytest

from syncbeat_server.auth.identities.joining import Join, check_join, write_join
from syncbeat_server.auth.model import Identity, Issuer, VerifiedToken
from syncbeat_server.defaults import UnlinkedSubjects
from syncbeat_server.directory.model import Device, Member, MemberRole, Platform, Registration
from syncbeat_server.directory.store import dead_token_removal, device_locks, devices, token_ageing
from syncbeat_server.errors import AccessDenied, IdentityConflict, NotFound, Overloaded, RateLimited, TokenRevoked
from syncbeat_server.events.identities.user_imports import UserBatch, cancel_deliveries, import_batch
from syncbeat_server.push import accept as push
from syncbeat_server.push.model import DeliveryFilter, DeliveryState, DeliveryUpdate, Reason, Target
from syncbeat_server.push.policy.holds import hold
from syncbeat_server.push.store import alerts, daily_maximum, lifecycle, queue, wake_budgets
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.sync.model import Activity, Cursor, DeviceKey, NewChange
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.sync.store.device_cursors import record_fetched, record_shown
from syncbeat_server.sync.store.reported_activity import report_activity
from syncbeat_server.transfer.importing.batch_writer import write_items
from syncbeat_server.transfer.importing.batches import Item
from tests.events.test_publish import call
from tests.push.test_alerts import alert
from tests.support.build import APP, make_directory, make_publisher, make_user_lifecycle
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import (
    EPOCH,
    accept,
    add_device,
    add_members,
    claim,
    message,
    rows_of,
    until,
    until_waiting,
    value_of,
    wake,
)

pytestmark = pytest.mark.store

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
        self.clock = clock
        self.publisher = make_publisher(database, clock)
        self.lifecycle = make_user_lifecycle(database)
        self.directory = make_directory(database)
        self.random = random.Random(7)

    def someone(self) -> str:
        return self.random.choice(USERS)

    async def accept(self) -> None:
        users = self.random.sample(USERS, 3)
        once = {"dedupe_key": self.random.choice("ab"), "dedupe_window_s": 60.0}
        shown = message(*(Target(user_id=user) for user in users), **once)
        told = alert("told", *self.random.sample(SCOPES, 2), type="news")
        targets = [Target(user_id=self.someone()), Target(scope=self.random.choice(SCOPES))]
        later = message(*targets, due_at=self.clock.now() + timedelta(days=1), **once)
        await accept(self.database, shown, told, wake(1, self.random.choice(SCOPES)), later)
        for one in (shown, later):
            if self.random.random() < 0.5:
                async with self.database.transaction() as conn:
                    await lifecycle.cancel(conn, APP, one.notification_id)

    async def publish(self) -> None:
        changes = [NewChange(scope, "k", "{}") for scope in self.random.sample(SCOPES, 2)]
        await self.publisher.publish(call(*changes, type="news"))

    async def publish_as_user(self) -> None:
        await self.publisher.publish(call("k", user_id=self.someone(), type="news"))

    async def deliver(self) -> None:
        lease = str(uuid.uuid4())
        claimed = await claim(self.database, lease)
        async with self.database.transaction() as conn:
            await queue.finish(conn, [DeliveryUpdate(one, DeliveryState.SENT, Reason.NONE) for one in claimed])

    async def work(self) -> None:
        """Do what else a worker does with what it holds: limits, leases, what providers say of tokens."""
        lease = str(uuid.uuid4())
        claimed = await claim(self.database, lease)
        self.random.shuffle(claimed)
        begins = self.clock.now() - timedelta(days=1)
        async with self.database.transaction() as conn:
            await daily_maximum.count_shown(conn, [(one, 1_000, begins) for one in claimed])
            await wake_budgets.spend_wake_budgets(conn, claimed)
        async with self.database.connection() as conn:
            await queue.extend(conn, [lease], 30.0)
        uses = [one.token_use for one in claimed]
        held = [one for one in claimed if one.scope and self.random.random() < 0.7]
        async with self.database.transaction() as conn:
            await dead_token_removal.lock_devices(conn, uses[1:3], uses[:1])
            await dead_token_removal.quarantine(conn, uses[:1])
            await dead_token_removal.remove_dead_tokens(conn, uses[1:3])
            await queue.finish(conn, [hold(one, Reason.WAKE_BUDGET, 0.0) for one in held])
            await wake_budgets.merge_held(conn, held)
            await alerts.merge_held(conn, held)
        async with self.database.connection() as conn:
            await queue.release(conn, [lease])

    async def operate(self) -> None:
        """Do what goes on beside all of it, and what operators do."""
        async with self.database.connection() as conn:
            await conn.execute(
                """UPDATE deliveries SET lease_until = syncbeat_now() - interval '1 s'
                   WHERE delivery_id IN (SELECT delivery_id FROM deliveries WHERE state = 'IN_FLIGHT'
                                         LIMIT 3 FOR UPDATE SKIP LOCKED)"""
            )
            await queue.rescue(conn, 20)
            await lifecycle.redrive(conn, APP, DeliveryFilter())
            await token_ageing.age_tokens(conn, 100)
            await lifecycle.forget_notifications(conn, -1.0, 5)
            await conn.execute(
                """UPDATE expansions SET due_at = syncbeat_now() WHERE notification_id IN (
                       SELECT notification_id FROM expansions LIMIT 9 FOR UPDATE SKIP LOCKED)"""
            )
        async with self.database.transaction() as conn:
            await push.expand(conn, [APP])

    def devices(self) -> list[DeviceKey]:
        devices = [DeviceKey(APP, user, device) for user in USERS for device in ("phone", "tablet")]
        return self.random.sample(devices, 4)

    async def show(self) -> None:
        shown = [
            (device, Cursor(scope, EPOCH, self.random.randrange(1, 100)))
            for device in self.devices()
            for scope in SCOPES
        ]
        async with self.database.connection() as conn:
            await record_shown(conn, shown)
            await record_fetched(conn, shown)

    async def report(self) -> None:
        async with self.database.transaction() as conn:
            await report_activity(conn, [(device, Activity()) for device in self.devices()])

    async def erase(self) -> None:
        await self.lifecycle.delete(APP, self.someone())

    async def disable(self) -> None:
        user = self.someone()
        await self.lifecycle.disable(APP, user)
        await self.lifecycle.enable(APP, user)

    async def import_users(self) -> None:
        users = self.random.sample(USERS, 3)
        issuer = "https://issuer.example"
        batch = UserBatch(APP, issuer, issuer, dict.fromkeys(users, ""), frozenset(users[:1]))
        async with self.database.transaction() as conn:
            _, disabled = await import_batch(conn, batch)
        for user in disabled:
            async with self.database.transaction() as conn:
                await cancel_deliveries(conn, APP, user)
            await self.lifecycle.enable(APP, user)

    async def import_entries(self) -> None:
        scope, users = self.random.choice(SCOPES), self.random.sample(USERS, 3)
        targets: list[Member | Registration] = [Member(scope, user, MemberRole.WRITER) for user in users]
        targets.append(Registration(APP, users[0], "imported", Platform.IOS, f"token {scope}", "", ""))
        items = [Item(1, "path", ("path",), target) for target in targets]
        async with self.database.transaction() as conn:
            await write_items(conn, APP, items, lambda _: DEFAULT_PRIOR)

    async def link(self) -> None:
        subject = f"{self.someone()}-{self.random.randrange(20)}"
        made = Join(Identity(APP, "https://new.example", subject), self.someone(), "https://issuer.example")
        issuer = Issuer(APP, "https://new.example", unlinked=UnlinkedSubjects.NEW)
        now = self.clock.now() + timedelta(days=1)  # after any revocation
        async with self.database.transaction() as conn:
            if not await check_join(conn, VerifiedToken(issuer, subject, "", now, now), made):
                await write_join(conn, made)

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


async def test_lock_order_is_the_same_everywhere(database_urls: DatabaseUrls, clock: FakeClock) -> None:
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
                except (NotFound, AccessDenied, RateLimited, IdentityConflict, TokenRevoked):
                    outcomes[act.__name__, "refused"] += 1
                except Overloaded as error:
                    # A device that was found was deleted meanwhile, or a lock was waited for for long.
                    outcomes[act.__name__, getattr(error.__cause__, "sqlstate", "")] += 1
                else:
                    outcomes[act.__name__, "done"] += 1

        e = everybody
        acts = [e.accept, e.accept, e.publish, e.publish_as_user, e.deliver, e.deliver, e.erase, e.erase]
        acts += [e.import_users, e.link, e.link, e.disable, e.unregister, e.unregister, e.join, e.join, e.come_and_go]
        acts += [e.import_entries, e.work, e.work, e.show, e.show, e.report, e.operate, e.operate]
        await asyncio.gather(*map(repeat, acts))
    # With another order they were 7 to 17.
    assert await deadlocks(database_urls) == before, outcomes
    assert {name for name, outcome in outcomes if outcome == "done"} == {act.__name__ for act in acts}, outcomes


class Half(NamedTuple):
    """The first half of a statement, which locks a row of a device, and the second, which adds another one."""

    holds: Callable[[Connection], Awaitable[object]]
    adds: Callable[[Connection], Awaitable[object]]


def opening(key: str) -> Callable[[Connection], Awaitable[object]]:
    return lambda conn: push.accept(conn, [message(dedupe_key=key, dedupe_window_s=60.0)])


def showing(scope: str, sequence: int) -> Callable[[Connection], Awaitable[object]]:
    return lambda conn: record_shown(conn, [(DeviceKey(APP, "ann", "phone"), Cursor(scope, EPOCH, sequence))])


HALVES = {
    "a window": (opening("a"), Half(opening("a"), opening("b"))),
    "a cursor": (showing("couple", 1), Half(showing("couple", 2), showing("chat", 1))),
}


@pytest.mark.parametrize("kind", HALVES)
async def test_deadlock_free_device_deletion_during_accept(
    database: Database, clock: FakeClock, database_urls: DatabaseUrls, kind: str
) -> None:
    """A row of a device comes, and is taken, between the looks of a deletion; then another one is added."""
    begins, halves = HALVES[kind]
    await add_device(database, "ann")
    for scope in SCOPES:
        await add_members(database, scope, "ann")
        await accept(database, wake(1, scope))
    before = await deadlocks(database_urls)
    async with contextlib.AsyncExitStack() as calls:
        taken = asyncio.get_running_loop().create_future()

        async def cancel_waiting(conn: Connection, app_id: str, user_id: str, device_id: str, *, stays: bool) -> None:
            await push.cancel_waiting(conn, app_id, user_id, device_id, stays=stays)
            async with database.transaction() as other:
                await begins(other)
            taken.set_result(await calls.enter_async_context(database.transaction()))
            await halves.holds(taken.result())

        leaving = make_directory(database, cancel_waiting)
        left = asyncio.create_task(leaving.unregister(APP, "ann", "phone", by_user=True))
        conn = await taken
        await until_waiting(database)
        await halves.adds(conn)
    await left
    assert await deadlocks(database_urls) == before
    for table in ("devices", "dedupe_windows", "device_cursors"):
        assert await value_of(database, f"SELECT count(*) FROM {table}") == 0, table


async def test_deadlock_free_erasure_during_deletion(
    database: Database, clock: FakeClock, database_urls: DatabaseUrls
) -> None:
    """A message comes while the erasure waits for the notification of an older one."""
    for user in ("ann", "bob"):
        await add_device(database, user)
    both = message(Target(user_id="ann"), Target(user_id="bob"))
    late = message(Target(user_id="ann"), Target(user_id="bob"))
    await accept(database, both)
    before = await deadlocks(database_urls)
    lock = "SELECT FROM notifications WHERE app_id = $1 AND notification_id = $2 FOR NO KEY UPDATE"
    forget = "DELETE FROM deliveries WHERE app_id = $1 AND notification_id = $2"
    async with contextlib.AsyncExitStack() as calls:
        held = await calls.enter_async_context(database.transaction())
        await held.execute(lock, APP, both.notification_id)
        erasing = asyncio.create_task(make_user_lifecycle(database).delete(APP, "ann"))
        await until_waiting(database)
        await accept(database, late)
        async with database.transaction() as forgetting:
            await forgetting.execute(lock, APP, late.notification_id)
            await calls.aclose()
            pid = await forgetting.fetchval("SELECT pg_backend_pid()")
            waits = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
            await until(lambda: value_of(database, waits, pid), "an erasure that waits for what is deleted")
            await forgetting.execute(forget, APP, late.notification_id)
    erased = await erasing
    assert (await deadlocks(database_urls), erased.cancelled) == (before, 1)
    assert await value_of(database, "SELECT array_agg(user_id) FROM deliveries") == ["bob"]


CHANGES: dict[str, Callable[[Connection, DeviceKey], Awaitable[None]]] = {
    "activity": lambda conn, device: report_activity(conn, [(device, Activity())]),
    "reach": lambda conn, device: devices.count_wake_ups(
        conn, {(device.app_id, device.user_id, device.device_id): (1.0, 0.0)}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_lock_order_ignores_a_device_registered_after_the_lock(
    database: Database, clock: FakeClock, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not locked in order, so that a change of it could close a circle."""

    async def lock_before_registration(conn: Connection, *columns: list[str]) -> set[device_locks.DeviceRow]:
        locked = await device_locks.lock_in_order(conn, *columns)
        await add_device(database, "ann")
        return locked

    monkeypatch.setattr(devices, "lock_in_order", lock_before_registration)
    async with database.transaction() as conn:
        await CHANGES[change](conn, DeviceKey(APP, "ann", "phone"))
    assert await value_of(database, "SELECT activity_at IS NULL AND reach_at IS NULL FROM devices")


async def test_lock_order_serialises_registrations_of_a_new_device(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come to the other one's row after that of its token's former holder, whatever their order."""
    await add_device(database, "bob", token="moves")
    locked, goes_on = asyncio.Event(), asyncio.Event()
    upsert = devices.upsert_device

    async def upsert_late(*arguments: Any) -> Device:
        if not locked.is_set():
            locked.set()
            await goes_on.wait()
        return await upsert(*arguments)

    monkeypatch.setattr(devices, "upsert_device", upsert_late)
    first = asyncio.create_task(add_device(database, "ann", token="moves"))
    await locked.wait()
    second = asyncio.create_task(add_device(database, "ann", token="another"))
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    async def second_is_decided() -> bool:
        return second.done() or bool(await value_of(database, query))

    await until(second_is_decided)
    assert not second.done()
    goes_on.set()
    await asyncio.gather(first, second)
    assert await rows_of(database, "SELECT user_id, registration_token FROM devices ORDER BY 1") == [
        ("ann", "another"),
        ("bob", None),
    ]
