"""Users of Firebase Auth are imported once, whole batches at a time, and nothing of them that is not needed."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from syncbeat_server.app.transfer.user_import import is_configured, plan_user_import
from syncbeat_server.auth.identities.email_digest import email_digest
from syncbeat_server.auth.model import AccountKey, Identity, LinkedBy
from syncbeat_server.auth.store import identities, users
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.events.user_lifecycle import delete_user, disable_user, enable_user
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.issuer import IssuerSettings
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.transfer.firebase.auth_export import FirebaseUser, UserMisfit, read_users
from syncbeat_server.transfer.firebase.importer import BATCH, ImportPlan, UserReport, import_users
from tests.support.firebase_users import PASSWORD_HASH, SALT, export_of, firebase_user
from tests.support.seed import until_waiting

pytestmark = pytest.mark.store

ISSUER = "https://securetoken.google.com/our-shop"
NEW = "https://new.example"
PLAN = plan_user_import("default", AppSettings(jwt_issuer=ISSUER, jwt_profile="firebase"), "our-shop", dry_run=False)
VERIFIED = {"emailVerified": True}


def test_number_of_a_mebibyte_of_digits_is_passed_over() -> None:
    users = export_of(firebase_user("ann", customNumber=1), firebase_user("bob"))
    octets = users.replace(b'"customNumber": 1', b'"customNumber": ' + b"9" * (1 << 20))
    assert len(octets) > 1 << 20
    found = read_users(io.BytesIO(octets))
    assert [user.user_id for user in found if isinstance(user, FirebaseUser)] == ["ann", "bob"]


class Import:
    """Imports, and keeps who was disabled."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.disabled: list[str] = []
        self.batches = 0

    async def __call__(self, *users: object, plan: ImportPlan = PLAN, octets: bytes | None = None) -> UserReport:
        file = io.BytesIO(export_of(*users) if octets is None else octets)
        return await import_users(self.database, plan, file, self.disabled.append, self._count)

    def _count(self, _report: UserReport) -> None:
        self.batches += 1

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Return all rows of a table."""
        async with self.database.connection() as conn:
            rows = await conn.fetch(f"SELECT * FROM {table} t ORDER BY t::text")  # a name of the test's
        return [tuple(row.values()) for row in rows]

    async def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return what imports write."""
        return {name: await self.rows(name) for name in ("users", "user_identities", "audit_entries")}

    async def identities(self) -> set[tuple[str, str, str]]:
        """Return issuer, subject and user of each identity."""
        return {(row[1], row[2], row[3]) for row in await self.rows("user_identities")}


@pytest.fixture
def imported(database: Database) -> Import:
    return Import(database)


def plan_with(new: IssuerSettings | None = None, *, dry_run: bool = False, **fields: Any) -> ImportPlan:
    app = AppSettings(jwt_issuer=ISSUER, jwt_profile="firebase", issuers=() if new is None else (new,), **fields)
    return plan_user_import("default", app, "our-shop", dry_run=dry_run)


WITH_EMAILS = plan_with(IssuerSettings(jwt_issuer=NEW, email_joins=frozenset({ISSUER})))


async def test_user_import_writes_users_identities_and_who_is_disabled(imported: Import) -> None:
    report = await imported(
        firebase_user("ann"),
        firebase_user("bob", disabled=True),
        firebase_user("carl", disabled=False, providerUserInfo=[], passwordHash="", phoneNumber=None),
        {"localId": "dora"},
    )
    assert (report.read, report.users, report.identities, report.disabled, report.misfits) == (4, 4, 4, 1, {})
    assert imported.disabled == ["bob"]
    assert await imported.identities() == {(ISSUER, name, name) for name in ("ann", "bob", "carl", "dora")}
    async with imported.database.connection() as conn:
        blocked = await conn.fetch("SELECT user_id FROM users WHERE disabled_at IS NOT NULL")
    assert [row["user_id"] for row in blocked] == ["bob"]
    assert report.providers == {"google.com": 2, "password": 2, "phone": 2, "anonymous or custom": 2}
    actions = sorted((row[3], row[6]) for row in await imported.rows("audit_entries"))
    assert actions == [("USERS_IMPORTED", "app:default"), ("USER_DISABLED", "user:bob")]


async def test_second_user_import_changes_nothing(imported: Import) -> None:
    export = [firebase_user(f"u{number}", disabled=number % 7 == 0, **VERIFIED) for number in range(20)]
    await imported(*export, plan=WITH_EMAILS)
    before = await imported.everything()
    again = await imported(*export, plan=WITH_EMAILS)
    assert (again.users, again.identities, again.emails, again.disabled, again.blocked) == (0, 0, 0, 0, 3)
    assert await imported.everything() == before
    # What was changed here since stays so, but for who is disabled there.
    async with imported.database.transaction() as conn:
        await enable_user(conn, "default", "u1")
        await disable_user(conn, "default", "u1")
        await delete_user(conn, "default", "u2")
    later = await imported(*export, plan=WITH_EMAILS)
    assert (later.users, later.identities, later.disabled, later.blocked) == (0, 0, 0, 5)


async def test_user_import_goes_on_after_it_was_ended(imported: Import) -> None:
    export = [firebase_user(f"u{number:05}") for number in range(2 * BATCH + 10)]
    cut = export_of(*export)[: -len(export_of(*export)) // 3]
    with pytest.raises(ConfigurationError, match="no JSON document"):
        await imported(octets=cut)
    assert (imported.batches, len(await imported.identities())) == (1, BATCH)
    report = await imported(*export)
    assert (report.read, report.users, report.identities) == (len(export), BATCH + 10, BATCH + 10)
    assert len(await imported.identities()) == len(export)


async def test_dry_run_of_user_import_tells_the_same_and_writes_nothing(imported: Import) -> None:
    export = [firebase_user("ann", **VERIFIED), firebase_user("bob", disabled=True), {}, "carl"]
    before = await imported.everything()
    new = IssuerSettings(jwt_issuer=NEW, email_joins=frozenset({ISSUER}))
    dry = await imported(*export, plan=plan_with(new, dry_run=True))
    assert await imported.everything() == before
    assert not imported.disabled
    assert await imported(*export, plan=plan_with(new)) == dry
    assert dry.misfits == {UserMisfit.NO_ID: 1, UserMisfit.NO_OBJECT: 1}
    assert dry.examples == {UserMisfit.NO_ID: 3, UserMisfit.NO_OBJECT: 4}


async def test_email_digests_are_kept_only_of_verified_addresses_and_only_for_a_named_pair(imported: Import) -> None:
    export = [
        firebase_user("ann", **VERIFIED),
        firebase_user("bob"),
        firebase_user("carl", emailVerified="true"),
        firebase_user("dora", email=None, emailVerified=True),
    ]

    async def digests() -> dict[str, bytes | None]:
        return {row[2]: row[6] for row in await imported.rows("user_identities")}

    assert (await imported(*export)).verified == 1
    assert set((await digests()).values()) == {None}
    assert (await imported(*export, plan=WITH_EMAILS)).emails == 1
    expected = email_digest("default", "ann@example.com")
    assert await digests() == {"ann": expected, "bob": None, "carl": None, "dora": None}
    assert (await imported(*export)).emails == 1  # the pair was taken away: so are the digests
    assert set((await digests()).values()) == {None}


async def test_user_import_writes_no_email_digest_of_a_deleted_user(imported: Import) -> None:
    export = [firebase_user(name, **VERIFIED) for name in ("ann", "bob", "carl")]
    await imported(*export[:2], plan=WITH_EMAILS)
    async with imported.database.transaction() as conn:
        await delete_user(conn, "default", "ann")
        await disable_user(conn, "default", "bob")
        await delete_user(conn, "default", "carl")  # before anything of it was imported
    report = await imported(*export, plan=WITH_EMAILS)
    assert (report.emails, report.blocked) == (0, 3)
    kept = {row[2]: row[6] is not None for row in await imported.rows("user_identities")}
    assert kept == {"ann": False, "bob": True, "carl": False}
    async with imported.database.transaction() as conn:  # let in anew, it is a user like any other
        await enable_user(conn, "default", "ann")
    assert (await imported(*export, plan=WITH_EMAILS)).emails == 1


async def test_user_import_writes_no_email_digest_of_a_user_deleted_meanwhile(imported: Import) -> None:
    async with imported.database.transaction() as conn:
        await delete_user(conn, "default", "ann")
        importing = asyncio.ensure_future(imported(firebase_user("ann", **VERIFIED), plan=WITH_EMAILS))
        await until_waiting(imported.database)
    report = await importing
    assert (report.users, report.blocked) == (0, 1)
    assert [row[6] for row in await imported.rows("user_identities")] == [None]


async def test_nothing_else_of_an_export_is_kept_or_logged(imported: Import, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await imported(firebase_user("ann", **VERIFIED), firebase_user("bob", disabled=True), plan=WITH_EMAILS)
    kept = repr(await imported.everything()) + caplog.text
    for secret in (PASSWORD_HASH, SALT, "Name of", "+43660", "@example.com", "@gmail.com", "admin", "1234"):
        assert secret not in kept, secret


async def test_user_import_joins_nobody(imported: Import, database: Database) -> None:
    async with database.transaction() as conn:
        # Firebase's uid `taken` is a user of the new issuer by now, and `moved` is linked to somebody else.
        await identities.claim_ids(conn, [Identity("default", NEW, "taken")])
        await users.insert_users(conn, [("default", "ann")])
        await identities.insert_identity(conn, Identity("default", ISSUER, "moved"), "ann", LinkedBy.LINK_TOKEN)
        await identities.insert_identity(conn, Identity("default", NEW, "uuid-1"), "bob", LinkedBy.LINK_TOKEN)
        await identities.insert_identity(conn, Identity("default", ISSUER, "bob"), "bob", LinkedBy.HOME)
    before = await imported.identities()
    report = await imported(*(firebase_user(name, disabled=True) for name in ("taken", "moved", "ann", "bob", "eve")))
    # ann is Firebase's subject `moved`, so its subject `ann` is not she.
    assert (report.misfits, report.examples) == ({UserMisfit.TAKEN: 3}, {UserMisfit.TAKEN: 1})
    assert imported.disabled == ["bob", "eve"]
    assert await imported.identities() == before | {(ISSUER, "eve", "eve")}


def plan_beside(**fields: Any) -> ImportPlan:
    """Return the plan where Firebase is a further issuer, and the first one is new."""
    app = AppSettings(jwt_issuer=NEW, issuers=(IssuerSettings(jwt_issuer=ISSUER, jwt_profile="firebase"),), **fields)
    return plan_user_import("default", app, "our-shop", dry_run=False)


async def who_is(database: Database, subject: str) -> list[str]:
    """Return whom a subject names, at the first issuer, which is new, and at Firebase."""
    async with database.connection() as conn:
        keys = [AccountKey("default", subject, "", NEW, False), AccountKey("default", subject, "", ISSUER, True)]
        return [one.user_id for one in await users.read_statuses(conn, keys)]


async def test_user_import_takes_no_user_from_the_first_issuer(imported: Import, database: Database) -> None:
    async with database.transaction() as conn:  # signed in at the first issuer: nobody needs an identity there
        await users.insert_users(conn, [("default", "u1"), ("default", "u2")])
    before = await who_is(database, "u1")
    export = [firebase_user("u1"), firebase_user("u2", disabled=True), firebase_user("eve")]
    report = await imported(*export, plan=plan_beside())
    assert before == ["u1", ""]
    assert await who_is(database, "u1") == before
    assert (report.misfits, report.disabled) == ({UserMisfit.TAKEN: 2}, 0)
    assert await imported.identities() == {(ISSUER, "eve", "eve")}
    again = await imported(firebase_user("eve"), plan=plan_beside())
    assert (again.misfits, again.identities) == ({}, 0)


async def test_first_sign_in_beside_a_user_import_stays_the_first_issuers(imported: Import, database: Database) -> None:
    async with database.transaction() as conn:
        await users.insert_users(conn, [("default", "u1")])  # seen by the import once it is committed, and not before
        importing = asyncio.ensure_future(imported(firebase_user("u1"), firebase_user("eve"), plan=plan_beside()))
        await until_waiting(database)
    report = await importing
    assert (report.users, report.misfits) == (1, {UserMisfit.TAKEN: 1})
    assert await who_is(database, "u1") == ["u1", ""]


async def test_user_import_takes_users_of_nobody_where_no_first_issuer_has_any(
    imported: Import, database: Database
) -> None:
    async with database.transaction() as conn:  # by sessions of ours
        await users.insert_users(conn, [("default", "u1")])
    report = await imported(firebase_user("u1"), plan=plan_beside(unlinked_subjects="new"))
    assert (report.misfits, report.identities) == ({}, 1)


@pytest.mark.parametrize("user_id", ["", "x" * 129, "a\nb", "a\0b", 7, None, ["ann"]], ids=repr)
async def test_ids_that_no_token_may_name_are_left_out(imported: Import, user_id: object) -> None:
    report = await imported({"localId": user_id}, firebase_user("ann"))
    assert report.misfits.total() == 1
    assert await imported.identities() == {(ISSUER, "ann", "ann")}


@pytest.mark.parametrize(
    "octets", [b"", b"{}", b"[]", b'{"users": {}}', b'{"users": []}', b"not json", b'{"users": [{']
)
async def test_what_is_no_export_is_refused(imported: Import, octets: bytes) -> None:
    with pytest.raises(ConfigurationError):
        await imported(octets=octets)
    assert not await imported.identities()


def test_export_is_read_as_a_stream() -> None:
    class Endless:
        def __init__(self) -> None:
            self.octets = 0

        def read(self, size: int = -1) -> bytes:
            if not size:
                return b""  # asked for, to learn if these are octets
            head = b'{"users": [' if not self.octets else b""
            block = head + b'{"localId": "ann", "email": "a@b.c", "emailVerified": true},' * 100
            self.octets += len(block)
            return block

    endless: Any = Endless()
    found = read_users(endless)
    wanted = FirebaseUser("ann", disabled=False, verified_email="a@b.c", providers=("anonymous or custom",))
    assert next(found) == wanted
    assert endless.octets < 1_000_000


def test_plan_refuses_shared_subjects_and_tells_an_issuer_that_is_not_configured() -> None:
    with pytest.raises(ConfigurationError, match="shared"):
        plan_with(unlinked_subjects="shared")
    uuids = plan_with(jwt_subjects="uuid")
    assert not uuids.is_user_id("ann")
    other = AppSettings(jwt_issuer=NEW)
    plan = plan_user_import("default", other, "our-shop", dry_run=False)
    assert plan.is_user_id("ann")
    assert not is_configured(other, plan)
    assert is_configured(AppSettings(jwt_issuer=ISSUER), plan)
