"""Users that are shut out or erased, below the wire: in every table, and beside whatever else is under way."""

from __future__ import annotations

import asyncio
import itertools

import asyncpg
import pytest

from syncbeat_server.auth.store import users
from syncbeat_server.auth.store.sessions import NewSession, insert_session
from syncbeat_server.directory.model import Preferences
from syncbeat_server.directory.store import dead_token_removal
from syncbeat_server.errors import DependencyDown
from syncbeat_server.events.user_lifecycle import Erased, UserLifecycle
from syncbeat_server.push.accept import erase_user
from syncbeat_server.push.model import DeliveryState, DeliveryUpdate, Reason, Target
from syncbeat_server.push.store import queue
from syncbeat_server.storage.idempotency import RequestKey, answer_once
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_user_lifecycle
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.doubles import FailingDatabase
from tests.support.seed import (
    accept,
    add_device,
    add_members,
    claim,
    couple,
    deliveries,
    mark_seen,
    message,
    rows_of,
    shown,
    until_waiting,
    value_of,
    wake,
)

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

LEASE = "0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a10"
NOTHING = Erased(0, 0, 0, 0)
# The columns that name a user.
NAMING = ("user_id", "from_user_id", "to_user_id", "caller")
_numbers = itertools.count(1)


class Told:
    """Records who the rest of the process was told of."""

    def __init__(self) -> None:
        self.users: list[tuple[str, str]] = []

    def __call__(self, app_id: str, user_id: str) -> None:
        self.users.append((app_id, user_id))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def lifecycle(database: Database, told: Told) -> UserLifecycle:
    return make_user_lifecycle(database, told)


async def session_of(database: Database, user_id: str, app_id: str = APP) -> int | None:
    """A session as CreateSession makes it: the user's generation, None when it is disabled."""
    async with database.transaction() as conn:
        generation = await users.lock_user(conn, app_id, user_id)
        if generation is not None:
            await insert_session(conn, NewSession(app_id, user_id, "phone", {}, generation, 60.0, 600.0))
    return generation


async def answered(database: Database, user_id: str) -> None:
    """A call of the user that is answered once."""
    key = RequestKey(APP, f"user:{user_id}", "PublishChanges", str(next(_numbers)), b"content")
    async with database.transaction() as conn:

        async def carry_out(_indexes: object) -> list[str]:
            return ["{}"]

        await answer_once(conn, [key], carry_out)


async def furnish(database: Database, *user_ids: str) -> None:
    """Each has something in every table: two devices, a token that moved, a window, a cursor, sessions, requests."""
    for user_id in user_ids:
        await add_device(database, user_id, "phone", token=f"moving-{user_id}")
        await add_device(database, user_id, "tablet", token=f"moving-{user_id}")
        await add_device(database, user_id, "phone")
        await session_of(database, user_id)
        await session_of(database, user_id)
        await answered(database, user_id)
    await add_members(database, "couple", *user_ids)
    for user_id in user_ids:
        await mark_seen(database, 1, user_id)
        await make_directory(database).set_preferences(APP, user_id, Preferences(max_per_day=9), by_user=False)
        async with database.connection() as conn:
            await conn.execute(
                """WITH budget AS (INSERT INTO wake_budgets VALUES ($1, $2, 'phone', 1, syncbeat_now()))
                   , tier AS (INSERT INTO user_tiers VALUES ($1, $2, 'pro', syncbeat_now()))
                   , identity AS (INSERT INTO user_identities (app_id, issuer, subject, user_id, linked_by, linked_at)
                                  VALUES ($1, 'issuer', 'subject-' || $2, $2, 'IMPORT', syncbeat_now()))
                   INSERT INTO token_removals (app_id, user_id, device_id, token_digest, removed_at)
                   VALUES ($1, $2, 'phone', 'digest', syncbeat_now())""",
                APP,
                user_id,
            )
    await accept(database, wake(2), *(message(Target(user_id=user_id)) for user_id in user_ids))


async def rows_naming(urls: DatabaseUrls, user_id: str) -> dict[str, int]:
    """Return how many rows name a user, of each table that can."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        columns = await conn.fetch(
            """SELECT table_name, array_agg(column_name::text) FROM information_schema.columns
               WHERE table_schema = 'public' AND column_name = ANY($1::text[]) GROUP BY 1""",
            NAMING,
        )
        return {
            table: await conn.fetchval(
                f"SELECT count(*) FROM {table} WHERE ARRAY[{','.join(names)}]::text[] && ARRAY[$1, 'user:' || $1]",
                user_id,
            )
            for table, names in columns
        }
    finally:
        await conn.close()


async def contents(database: Database, user_id: str, app_id: str = APP) -> list[tuple[object, ...]]:
    """A user's own rows, as text, so that any change of them shows."""
    return await rows_of(
        database,
        """SELECT 'device', d::text FROM devices d WHERE (app_id, user_id) = ($1, $2)
           UNION ALL SELECT 'member', m::text FROM scope_members m WHERE (app_id, user_id) = ($1, $2)
           UNION ALL SELECT 'cursor', c::text FROM device_cursors c WHERE (app_id, user_id) = ($1, $2)
           UNION ALL SELECT 'window', w::text FROM dedupe_windows w WHERE (app_id, user_id) = ($1, $2)
           UNION ALL SELECT 'delivery', d::text FROM deliveries d WHERE (app_id, user_id) = ($1, $2)
           UNION ALL SELECT 'session', s::text FROM sessions s WHERE (app_id, user_id) = ($1, $2)
           UNION ALL SELECT 'user', u::text FROM users u WHERE (app_id, user_id) = ($1, $2)
           ORDER BY 1, 2""",
        app_id,
        user_id,
    )


async def test_erase_user_leaves_only_the_tombstone_and_identities_in_every_table(
    database: Database, database_urls: DatabaseUrls, lifecycle: UserLifecycle
) -> None:
    await furnish(database, "ann", "bob")
    # A new table that names users fails here until `furnish` fills it. Who asked for a notification stays with it, and
    # only services send events.
    for user_id in ("ann", "bob"):
        named = await rows_naming(database_urls, user_id)
        assert {table for table, count in named.items() if not count} == {"events", "notifications"}
    before = await contents(database, "ann")
    assert await lifecycle.delete(APP, "bob") == Erased(devices=2, memberships=1, sessions=2, cancelled=4)
    left = await rows_naming(database_urls, "bob")
    assert left.pop("touches"), "for two minutes: other processes look there"
    # By its identities the deleted user stays refused (ADR 195).
    assert {table: count for table, count in left.items() if count} == {"users": 1, "user_identities": 1}
    assert await contents(database, "ann") == before


async def test_erase_user_spares_the_namesake_in_another_app(database: Database, lifecycle: UserLifecycle) -> None:
    await furnish(database, "bob")
    await session_of(database, "bob", "another")
    before = await contents(database, "bob", "another")
    assert await lifecycle.delete(APP, "bob") != NOTHING
    assert await contents(database, "bob", "another") == before


async def test_erase_user_again_or_unknown_changes_nothing(database: Database, lifecycle: UserLifecycle) -> None:
    await furnish(database, "bob")
    await lifecycle.delete(APP, "bob")
    deleted_at = await value_of(database, "SELECT deleted_at FROM users WHERE user_id = 'bob'")
    assert await lifecycle.delete(APP, "bob") == NOTHING
    assert await lifecycle.delete(APP, "nobody") == NOTHING
    assert deleted_at is not None
    assert await value_of(database, "SELECT deleted_at FROM users WHERE user_id = 'bob'") == deleted_at


async def test_erase_user_deletes_a_notification_with_its_last_receiver(
    database: Database, lifecycle: UserLifecycle
) -> None:
    await couple(database)
    await accept(database, message(Target(user_id="ann"), Target(user_id="bob")))
    await lifecycle.delete(APP, "bob")
    assert await value_of(database, "SELECT count(*) FROM notifications") == 1
    await lifecycle.delete(APP, "ann")
    assert await value_of(database, "SELECT count(*) FROM notifications") == 0


async def test_erase_user_in_flight_finishes_the_rest_of_the_batch(
    database: Database, lifecycle: UserLifecycle
) -> None:
    await couple(database)
    sent = message(Target(user_id="ann"), Target(user_id="bob"))
    await accept(database, sent)
    claimed = await claim(database, LEASE)
    await lifecycle.delete(APP, "bob")
    async with database.transaction() as conn:
        done = await queue.finish(
            conn, [DeliveryUpdate(one, DeliveryState.DEAD, Reason.UNREGISTERED) for one in claimed]
        )
        await dead_token_removal.remove_dead_tokens(conn, [one.token_use for one in claimed])
    assert done == {one.delivery_id for one in claimed if one.user_id == "ann"}
    assert await shown(database, sent) == ["ann DEAD UNREGISTERED"]


async def test_disable_user_cancels_waiting_keeps_in_flight_and_skips_new_pushes(
    database: Database, lifecycle: UserLifecycle
) -> None:
    await couple(database)
    under_way, waits = (message(Target(user_id="ann"), Target(user_id="bob")) for _ in range(2))
    await accept(database, under_way)
    await claim(database, LEASE)
    await accept(database, waits)
    await lifecycle.disable(APP, "bob")
    assert await shown(database, under_way) == ["ann IN_FLIGHT", "bob IN_FLIGHT"]
    assert await shown(database, waits) == ["ann PENDING", "bob CANCELLED USER_DISABLED"]
    to_bob, to_both = message(Target(user_id="bob")), wake(1)
    assert [one.delivery_count for one in await accept(database, to_bob, to_both)] == [0, 1]
    assert await shown(database, to_bob, to_both) == ["ann PENDING"]


async def test_enable_user_restores_pushes_without_old_dedupe_windows(
    database: Database, lifecycle: UserLifecycle
) -> None:
    await couple(database)
    await accept(database, wake(1))
    await lifecycle.disable(APP, "bob")
    await lifecycle.enable(APP, "bob")
    await lifecycle.enable(APP, "bob")
    again = wake(2)
    await accept(database, again)
    assert await shown(database, again) == ["ann SCHEDULED TRAILING", "bob PENDING"]


async def test_disable_user_again_changes_nothing(database: Database, lifecycle: UserLifecycle) -> None:
    await furnish(database, "bob")
    await lifecycle.disable(APP, "bob")
    before = await contents(database, "bob")
    await lifecycle.disable(APP, "bob")
    assert await contents(database, "bob") == before
    assert {kind for kind, _ in before} >= {"device", "member", "cursor", "session", "user"}
    assert await session_of(database, "bob") is None


async def test_erased_user_begins_anew_under_a_higher_generation(database: Database, lifecycle: UserLifecycle) -> None:
    await furnish(database, "bob")
    before = await session_of(database, "bob")
    assert before is not None
    await lifecycle.delete(APP, "bob")
    assert await value_of(database, "SELECT deleted_at IS NOT NULL FROM users WHERE user_id = 'bob'")
    after = await session_of(database, "bob")
    assert after is not None
    assert after > before
    assert not await value_of(database, "SELECT deleted_at IS NOT NULL FROM users WHERE user_id = 'bob'")
    assert [kind for kind, _ in await contents(database, "bob")] == ["session", "user"]


async def test_enable_erased_user_admits_it_and_old_tokens_stay_dead(
    database: Database, lifecycle: UserLifecycle
) -> None:
    await furnish(database, "bob")
    await lifecycle.delete(APP, "bob")
    await lifecycle.enable(APP, "bob")
    assert [kind for kind, _ in await contents(database, "bob")] == ["user"]
    assert await rows_of(
        database, "SELECT generation, revoked_at IS NOT NULL, deleted_at, disabled_at FROM users WHERE user_id = 'bob'"
    ) == [(1, True, None, None)]


async def test_invalidation_is_announced_for_every_commit_and_no_failure(
    database: Database, lifecycle: UserLifecycle, told: Told
) -> None:
    await lifecycle.disable(APP, "bob")
    await lifecycle.enable(APP, "bob")
    await lifecycle.delete(APP, "ann")
    assert told.users == [(APP, "bob"), (APP, "bob"), (APP, "ann")]
    refusing = FailingDatabase(database)
    refusing.error = DependencyDown("down")
    with pytest.raises(DependencyDown):
        await make_user_lifecycle(refusing.as_database, told).delete(APP, "ann")
    assert len(told.users) == 3
    assert await deliveries(database) == []


async def test_erase_two_users_at_once_deletes_their_shared_notification(
    database: Database, lifecycle: UserLifecycle
) -> None:
    await couple(database)
    await accept(database, message(Target(user_id="ann"), Target(user_id="bob")))
    async with database.transaction() as conn:
        await erase_user(conn, APP, "ann")
        second = asyncio.ensure_future(lifecycle.delete(APP, "bob"))
        await until_waiting(database)
    await second
    assert await value_of(database, "SELECT count(*) FROM notifications") == 0


async def test_erase_user_retries_after_a_deadlock(database: Database, database_urls: DatabaseUrls, told: Told) -> None:
    await couple(database)
    await accept(database, wake(1))
    # Who waits for so long looks for a deadlock, once, and gives way if it finds one.
    await run_sql(
        database_urls.admin_url,
        f"ALTER ROLE syncbeat_app IN DATABASE {database_urls.name} SET deadlock_timeout = '3s'",
        f"ALTER ROLE postgres IN DATABASE {database_urls.name} SET deadlock_timeout = '1h'",
    )
    async with open_database(database_urls.app_url, size=1, name="erases") as erases:
        async with (
            open_database(database_urls.admin_url, size=1, name="accepts") as accepts,
            accepts.transaction() as conn,
        ):
            # As accepting does: a window first, then the device of a new one.
            await conn.execute("SELECT FROM dedupe_windows WHERE user_id = 'bob' FOR UPDATE")
            erasing = asyncio.ensure_future(make_user_lifecycle(erases, told).delete(APP, "bob"))
            await until_waiting(database)
            await conn.execute("SELECT FROM devices WHERE user_id = 'bob' FOR KEY SHARE")
        assert (await erasing).devices == 1
    assert told.users == [(APP, "bob")]
