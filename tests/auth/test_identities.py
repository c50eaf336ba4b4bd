"""Finds the user of a subject: by its identity, its own id, or nobody; cached, and forgotten when a user changes."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from syncbeat_server.auth.accounts.account_status_cache import AccountStatusCache
from syncbeat_server.auth.accounts.recent_invalidations import RecentInvalidations
from syncbeat_server.auth.model import AccountKey, AccountStatus, Identity, Issuer, LinkedBy, VerifiedToken
from syncbeat_server.auth.store import identities, users
from syncbeat_server.defaults import UnlinkedSubjects
from syncbeat_server.storage.postgres.database import Connection, Database
from tests.support.build import make_account_statuses
from tests.support.fake_clock import START, FakeClock, wait_until

pytestmark = pytest.mark.store

FIRST = Issuer("default", "https://first.example", uuid_subjects=False)
NEW = Issuer("default", "https://new.example", uuid_subjects=False, unlinked=UnlinkedSubjects.NEW)
OTHER = Issuer("default", "https://other.example", uuid_subjects=False, unlinked=UnlinkedSubjects.NEW)
SHARED = Issuer("default", "https://shared.example", uuid_subjects=False, unlinked=UnlinkedSubjects.SHARED)
CLOSED = Issuer(
    "default", "https://new.example", uuid_subjects=False, unlinked=UnlinkedSubjects.NEW, accept_unknown_users=False
)
SESSIONS = Issuer("default", "syncbeat:default", own_sessions=True, uuid_subjects=False)


@pytest.fixture
def statuses(database: Database, clock: FakeClock) -> AccountStatusCache:
    return make_account_statuses(database, clock, 1_000)


def token(subject: str, issuer: Issuer) -> VerifiedToken:
    return VerifiedToken(issuer, subject, "", START, START + timedelta(hours=1))


async def who(statuses: AccountStatusCache, subject: str, issuer: Issuer) -> str:
    """Return the user that a subject is, read anew; empty if it is not let in."""
    status = (await statuses.get(token(subject, issuer), fresh=True)).status
    return status.user_id if status.exists and not status.blocked else ""


async def link(database: Database, subject: str, user_id: str, issuer: Issuer = NEW) -> None:
    async with database.transaction() as conn:
        assert await identities.insert_identity(
            conn, Identity("default", issuer.name, subject), user_id, LinkedBy.LINK_TOKEN
        )


async def test_identity_names_the_user_whatever_the_rule_of_the_issuer(
    database: Database, statuses: AccountStatusCache
) -> None:
    assert await who(statuses, "ann", FIRST) == "ann"
    await link(database, "uuid-of-ann", "ann")
    await link(database, "other-ann", "ann", OTHER)
    assert await who(statuses, "uuid-of-ann", NEW) == "ann"
    assert await who(statuses, "uuid-of-ann", CLOSED) == "ann"
    assert await who(statuses, "other-ann", OTHER) == "ann"
    assert await who(statuses, "uuid-of-ann", SHARED) == "uuid-of-ann"  # identities are not looked at


async def test_same_subject_of_another_issuer_is_nobody(database: Database, statuses: AccountStatusCache) -> None:
    assert await who(statuses, "ann", FIRST) == "ann"
    assert await who(statuses, "ann", NEW) == ""
    assert await who(statuses, "ann", CLOSED) == ""
    assert await who(statuses, "eve", NEW) == "eve"
    assert await who(statuses, "eve", FIRST) == ""  # the first issuer's neither, once the id is another's
    assert await who(statuses, "eve", OTHER) == ""
    assert await who(statuses, "eve", NEW) == "eve"
    assert await who(statuses, "eve", SESSIONS) == "eve"  # a backend names the user, and no subject
    async with database.connection() as conn:
        kept = await conn.fetch("SELECT issuer, subject, user_id, linked_by FROM user_identities")
    assert [tuple(row.values()) for row in kept] == [(NEW.name, "eve", "eve", "FIRST_SIGN_IN")]


async def test_linked_user_keeps_its_id_at_the_first_issuer_only_by_an_identity(
    database: Database, statuses: AccountStatusCache
) -> None:
    assert await who(statuses, "ann", FIRST) == "ann"
    await link(database, "uuid-of-ann", "ann")
    assert await who(statuses, "ann", FIRST) == ""  # why joining writes both
    await link(database, "ann", "ann", FIRST)
    assert await who(statuses, "ann", FIRST) == "ann"


async def test_closed_issuer_makes_no_user(database: Database, statuses: AccountStatusCache) -> None:
    assert await who(statuses, "carl", CLOSED) == ""
    async with database.connection() as conn:
        assert not await conn.fetchval("SELECT count(*) FROM users")
        assert not await conn.fetchval("SELECT count(*) FROM user_identities")


async def test_first_sign_ins_of_one_subject_at_two_issuers_make_one_user(database: Database, clock: FakeClock) -> None:
    issuers = (FIRST, NEW, OTHER)
    for number in range(20):
        caches = [make_account_statuses(database, clock, 10) for _ in issuers]
        found = await asyncio.gather(
            *(who(cache, f"twin{number}", issuer) for cache, issuer in zip(caches, issuers, strict=True))
        )
        assert sorted(found) == ["", "", f"twin{number}"], number


@pytest.mark.parametrize("issuer", [FIRST, NEW])
async def test_status_of_an_identity_ends_with_its_user(
    database: Database, statuses: AccountStatusCache, issuer: Issuer
) -> None:
    await who(statuses, "ann", FIRST)
    await link(database, "ann", "ann", FIRST)
    await link(database, "uuid-of-ann", "ann")
    asked = token("ann" if issuer is FIRST else "uuid-of-ann", issuer)
    entry = await statuses.get(asked, fresh=True)
    assert statuses.cached(asked) is entry
    async with database.connection() as conn:
        await users.disable_user(conn, "default", "ann")
    statuses.invalidate_user("default", "bob")
    assert statuses.cached(asked) is entry
    statuses.invalidate_user("default", "ann")
    assert statuses.cached(asked) is None
    assert (await statuses.get(asked)).status.blocked


async def test_link_of_a_cached_stranger_counts_once_its_subject_is_invalidated(
    database: Database, statuses: AccountStatusCache
) -> None:
    await who(statuses, "ann", FIRST)
    asked = token("uuid-of-ann", CLOSED)
    assert not (await statuses.get(asked)).status.exists
    await link(database, "uuid-of-ann", "ann")
    assert not (await statuses.get(asked)).status.exists  # cached
    statuses.invalidate_user("default", "uuid-of-ann")
    assert (await statuses.get(asked)).status.user_id == "ann"
    statuses.invalidate_user("default", "ann")
    assert statuses.cached(asked) is None


async def test_invalidation_of_the_user_during_the_read_of_its_identity_is_not_lost(
    database: Database, statuses: AccountStatusCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await who(statuses, "ann", FIRST)
    await link(database, "uuid-of-ann", "ann")
    gate, reads, real = asyncio.Event(), [], users.read_statuses

    async def held(conn: Connection, keys: list[AccountKey]) -> list[AccountStatus]:
        found = await real(conn, keys)
        reads.append(keys)
        await gate.wait()
        return found

    monkeypatch.setattr(users, "read_statuses", held)
    asked = token("uuid-of-ann", NEW)
    task = asyncio.create_task(statuses.get(asked))
    await wait_until(lambda: bool(reads))
    async with database.connection() as conn:
        await users.disable_user(conn, "default", "ann")
    statuses.invalidate_user("default", "ann")  # nobody knows yet that this read is about her
    gate.set()
    assert (await task).status.blocked
    assert len(reads) == 2


def test_recent_invalidations_are_bounded_and_in_doubt_true() -> None:
    noted = RecentInvalidations(most=2)
    before = noted.number
    noted.add("default", "ann")
    assert noted.since(before, "default", "ann")
    assert not noted.since(before, "default", "bob")
    assert not noted.since(noted.number, "default", "ann")
    noted.add("default", "bob")
    noted.add("default", "carl")  # the others are forgotten
    assert noted.since(before, "default", "dora")
    assert not noted.since(noted.number, "default", "dora")
    noted.forget()
    assert not noted.since(noted.number, "default", "carl")


async def test_cache_of_identities_forgets_what_it_evicts(database: Database, clock: FakeClock) -> None:
    await who(make_account_statuses(database, clock, 10), "ann", FIRST)
    small = make_account_statuses(database, clock, 2)
    await link(database, "uuid-of-ann", "ann")
    for subject in ("uuid-of-ann", "b", "c", "d"):
        await small.get(token(subject, NEW))
    assert small.cached(token("uuid-of-ann", NEW)) is None
    small.invalidate_user("default", "ann")
    assert (await small.get(token("uuid-of-ann", NEW))).status.user_id == "ann"
