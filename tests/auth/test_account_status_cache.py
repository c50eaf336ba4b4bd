"""Tests the cache of account statuses: looked up together, kept for a minute, and forgotten when told so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest

from syncbeat_server.auth.accounts.account_status_cache import AccountStatusCache
from syncbeat_server.auth.model import AccountKey, AccountStatus, Issuer, VerifiedToken
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.revocation import is_revoked
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Connection, Database
from tests.support.build import make_account_statuses
from tests.support.databases import DatabaseUrls, open_database
from tests.support.doubles import FailingDatabase
from tests.support.fake_clock import START, FakeClock, wait_until

pytestmark = pytest.mark.store

OPEN = Issuer("default", "https://issuer.example")
CLOSED = Issuer("default", "https://issuer.example", accept_unknown_users=False)
OURS = Issuer("default", "syncbeat:default", own_sessions=True)
SIZE = 1_000


class Reads:
    """Counts the queries for standings, and holds their answers back while `held`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[Sequence[AccountKey]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._real = users.read_statuses
        monkeypatch.setattr(users, "read_statuses", self._read)

    async def _read(self, conn: Connection, keys: Sequence[AccountKey]) -> list[AccountStatus]:
        self.keys.append(keys)
        found = await self._real(conn, keys)
        await self.gate.wait()
        return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def standings(database: Database, clock: FakeClock) -> AccountStatusCache:
    return make_account_statuses(database, clock, SIZE)


def token(
    user_id: str = "ann", issuer: Issuer = OPEN, *, issued_at: datetime = START, session_id: str = "", counter: int = 0
) -> VerifiedToken:
    return VerifiedToken(issuer, user_id, session_id, issued_at, START + timedelta(hours=1), counter=counter)


async def know(database: Database, *user_ids: str) -> None:
    async with database.connection() as conn:
        await users.insert_users(conn, [("default", user_id) for user_id in user_ids])


async def insert_session(database: Database, session_id: str, user_id: str = "ann", counter: int = 0) -> None:
    await know(database, user_id)
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO sessions (app_id, session_id, user_id, generation, counter, created_at, refreshed_at,
                                     idle_until, expires_at)
               SELECT 'default', $1, $2, 0, $3, t, t, t + interval '30 days', t + interval '90 days'
               FROM syncbeat_now() t""",
            session_id,
            user_id,
            counter,
        )


async def test_batched_lookup_makes_one_query_for_a_thousand_misses_of_one_user(
    standings: AccountStatusCache, reads: Reads
) -> None:
    found = await asyncio.gather(*(standings.get(token()) for _ in range(1_000)))
    # One to look, and because the user was new, one more after recording it.
    assert [len(keys) for keys in reads.keys] == [1, 1]
    assert {id(one) for one in found} == {id(found[0])}
    await asyncio.gather(*(standings.get(token()) for _ in range(1_000)))
    assert len(reads.keys) == 2


async def test_batched_lookup_reads_many_users_together(
    standings: AccountStatusCache, reads: Reads, database: Database
) -> None:
    names = [f"user-{number}" for number in range(500)]
    await know(database, *names)
    await asyncio.gather(*(standings.get(token(name)) for name in names))
    assert sum(len(keys) for keys in reads.keys) == 500
    assert len(reads.keys) <= 5


async def test_cancelled_caller_does_not_end_the_lookup_for_others(standings: AccountStatusCache, reads: Reads) -> None:
    reads.gate.clear()
    first, second = (asyncio.ensure_future(standings.get(token())) for _ in range(2))
    await wait_until(lambda: reads.keys)
    first.cancel()
    reads.gate.set()
    assert (await second).status.exists
    assert first.cancelled()


async def test_invalidation_beats_a_lookup_in_flight(
    standings: AccountStatusCache, reads: Reads, database: Database, clock: FakeClock
) -> None:
    await know(database, "ann")
    await clock.advance(10)
    reads.gate.clear()
    asked = asyncio.ensure_future(standings.get(token()))
    await wait_until(lambda: reads.keys)
    async with database.transaction() as conn:
        await users.revoke_user(conn, "default", "ann", "lost phone")
    standings.invalidate_user("default", "ann")
    reads.gate.set()
    assert is_revoked(token(), (await asked).status)
    assert is_revoked(token(), (await standings.get(token())).status)


@pytest.mark.parametrize(
    "forget",
    [
        lambda standings: standings.invalidate_user("default", "ann"),
        lambda standings: standings.invalidate_app("default"),
        lambda standings: standings.invalidate_app(None),
    ],
    ids=["the user", "the app", "everybody"],
)
async def test_invalidated_status_is_read_again(
    standings: AccountStatusCache, database: Database, forget: Callable[[AccountStatusCache], None]
) -> None:
    before = await standings.get(token())
    async with database.transaction() as conn:
        await users.disable_user(conn, "default", "ann")
    assert await standings.get(token()) is before
    forget(standings)
    assert before.valid_until == float("-inf")
    assert (await standings.get(token())).status.blocked


async def test_invalidation_of_another_user_changes_nothing(standings: AccountStatusCache, reads: Reads) -> None:
    await standings.get(token())
    count = len(reads.keys)
    standings.invalidate_user("default", "bob")
    standings.invalidate_user("other", "ann")
    standings.invalidate_app("other")
    await standings.get(token())
    assert len(reads.keys) == count


async def test_cache_ttl_is_a_minute_for_present_and_ten_seconds_for_absent(
    standings: AccountStatusCache, database: Database, clock: FakeClock
) -> None:
    names = [f"user-{number}" for number in range(300)]
    kept = await asyncio.gather(*(standings.get(token(name)) for name in names))
    lives = [one.valid_until - clock.monotonic() for one in kept]
    assert 54.0 <= min(lives) < 55.0
    assert 59.0 < max(lives) <= 60.0
    absent = await asyncio.gather(*(standings.get(token(f"no-{name}", CLOSED)) for name in names))
    lives = [one.valid_until - clock.monotonic() for one in absent]
    assert min(lives) > 8.0
    assert max(lives) <= 10.0
    assert len({round(life, 3) for life in lives}) > 100
    assert is_revoked(token(issuer=CLOSED), absent[0].status)


async def test_user_is_recorded_once_on_concurrent_first_sight(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    async with open_database(database_urls.app_url, size=4, name="another") as other:
        both = [make_account_statuses(one, clock, SIZE) for one in (database, other)]
        for round_ in range(20):
            found = await asyncio.gather(*(one.get(token(f"user-{round_}")) for one in both))
            assert all(one.status.exists for one in found)
    async with database.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM users") == 20


async def test_unknown_user_is_refused_where_the_issuer_requires_known_users(
    standings: AccountStatusCache, database: Database, clock: FakeClock
) -> None:
    assert not (await standings.get(token(issuer=CLOSED))).status.exists
    async with database.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM users") == 0
    await know(database, "ann")
    await clock.advance(10)
    assert (await standings.get(token(issuer=CLOSED))).status.exists


async def test_cache_size_is_bounded(database: Database, clock: FakeClock, reads: Reads) -> None:
    standings = make_account_statuses(database, clock, 10)
    await asyncio.gather(*(standings.get(token(f"user-{number}")) for number in range(50)))
    first = len(reads.keys)
    await standings.get(token("user-49"))
    assert len(reads.keys) == first
    await standings.get(token("user-0"))
    assert len(reads.keys) > first


async def test_cache_removes_ended_statuses_as_others_come(standings: AccountStatusCache, clock: FakeClock) -> None:
    gone = [await standings.get(token(f"gone-{number}")) for number in range(3)]
    await clock.advance(60)
    here = await standings.get(token("here"))
    assert [one.valid_until for one in gone] == [float("-inf")] * 3
    assert here.valid_until > clock.monotonic()


@pytest.fixture
def refuses(database: Database) -> FailingDatabase:
    return FailingDatabase(database)


async def test_cached_status_outlives_a_database_outage(refuses: FailingDatabase, clock: FakeClock) -> None:
    standings = make_account_statuses(refuses.as_database, clock, SIZE)
    await standings.get(token())
    refuses.error = DependencyDown("the database does not answer")
    await clock.advance(53)
    assert (await standings.get(token())).status.exists
    await clock.advance(14)
    with pytest.raises(DependencyDown):
        await standings.get(token())
    refuses.error = None
    assert (await standings.get(token())).status.exists


async def test_session_status_comes_from_its_row(
    standings: AccountStatusCache, database: Database, clock: FakeClock
) -> None:
    await insert_session(database, "s1")
    own = token(issuer=OURS, session_id="s1")
    assert not is_revoked(own, (await standings.get(own)).status)
    for wrong in (token(issuer=OURS, session_id="s2"), token("bob", OURS, session_id="s1")):
        assert is_revoked(wrong, (await standings.get(wrong)).status)
    async with database.connection() as conn:
        await conn.execute("UPDATE sessions SET revoked_at = syncbeat_now()")
    standings.invalidate_session("default", "s1")
    assert is_revoked(own, (await standings.get(own)).status)


async def confirmed(database: Database) -> int:
    async with database.connection() as conn:
        return int(await conn.fetchval("SELECT confirmed FROM sessions"))


async def test_first_use_of_an_access_token_confirms_its_delivery(
    standings: AccountStatusCache, database: Database, reads: Reads
) -> None:
    await insert_session(database, "s1", counter=3)
    await standings.get(token(issuer=OURS, session_id="s1", counter=2))
    assert await confirmed(database) == 2
    await standings.get(token(issuer=OURS, session_id="s1", counter=3))
    assert await confirmed(database) == 3
    count = len(reads.keys)
    for counter in (1, 2, 3):
        await standings.get(token(issuer=OURS, session_id="s1", counter=counter))
    assert len(reads.keys) == count
    assert await confirmed(database) == 3
