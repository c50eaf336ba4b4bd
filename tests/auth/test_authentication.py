"""From the credentials of a call to who is calling."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

import pytest

from syncbeat_server.auth import service
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.model import MAX_LEEWAY, Issuer, KeyRow, Principal, PrincipalKind
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.bearer import parse_bearer
from syncbeat_server.auth.tokens.keys import key_table
from syncbeat_server.auth.tokens.verify import mint, verify_token
from syncbeat_server.errors import DependencyDown, TokenExpired, TokenInvalid, TokenRevoked
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import make_authenticator, make_caller_caches
from tests.support.doubles import FailingDatabase
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.store

ISSUER = Issuer("default", "issuer", uuid_subjects=False)
KEY = KeyRow(ISSUER, "k", "HS256", "s" * 32)
BACKEND = Principal(PrincipalKind.SERVICE, "backend", methods=frozenset({"SendNotification"}))
BILLING = Principal(PrincipalKind.SERVICE, "billing")
TOKEN = "a-token-of-the-backend"


@pytest.fixture
def refuses(database: Database) -> FailingDatabase:
    return FailingDatabase(database)


@pytest.fixture
def caches(refuses: FailingDatabase, clock: FakeClock) -> CallerCaches:
    return make_caller_caches(refuses.as_database, clock)


@pytest.fixture
def door(caches: CallerCaches, clock: FakeClock) -> Authenticator:
    holders = {hashlib.sha256(TOKEN.encode()).digest(): BACKEND}
    certified = {"backend.example": BACKEND, "www.backend.example": BACKEND, "spiffe://example/billing": BILLING}
    return make_authenticator(Credentials(key_table([KEY]), {}, holders, certified), caches, clock)


def bearer(clock: FakeClock, user_id: str = "ann", life_s: float = 600.0, session_id: str = "s") -> str:
    return f"Bearer {mint(KEY, user_id, clock.now(), timedelta(seconds=life_s), session_id=session_id)}"


async def enter(door: Authenticator, *values: str) -> Principal:
    """As the interceptor asks."""
    shown = parse_bearer(values)
    found = door.cached(shown) or door.try_sync(shown)
    return found if isinstance(found, Principal) else await door.authenticate(shown, found)


async def test_user_is_authenticated_by_jwt(door: Authenticator, clock: FakeClock) -> None:
    principal = await enter(door, bearer(clock))
    assert (principal.kind, principal.name, principal.app_id) == (PrincipalKind.USER, "ann", "default")
    assert principal.caller == "user:ann"
    assert principal.expires_at is not None
    assert (principal.expires_at - clock.now()).total_seconds() == 600
    assert await enter(door, bearer(clock).replace("Bearer", "bEARER")) == principal


async def test_service_token_is_authenticated_without_the_database(
    door: Authenticator, refuses: FailingDatabase
) -> None:
    refuses.error = DependencyDown("the database does not answer")
    assert door.cached(parse_bearer([f"Bearer {TOKEN}"])) is BACKEND
    assert BACKEND.caller == "service:backend"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [f"Bearer {TOKEN}", f"Bearer {TOKEN}"],
        [TOKEN],
        ["Bearer"],
        ["Bearer "],
        [f"Basic {TOKEN}"],
        [f"Bearer  {TOKEN}"],
        [f"Bearer {TOKEN}x"],
        [f"Bearer {hashlib.sha256(TOKEN.encode()).hexdigest()}"],
        ["Bearer " + "x" * 8193],
    ],
    ids=str,
)
async def test_malformed_credentials_are_refused(door: Authenticator, values: list[str]) -> None:
    with pytest.raises(TokenInvalid) as raised:
        await enter(door, *values)
    assert TOKEN not in raised.value.message


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["backend.example"], BACKEND),
        (["other.example", "backend.example", "www.backend.example"], BACKEND),
        (["spiffe://example/billing"], BILLING),
    ],
)
def test_service_is_authenticated_by_client_certificate(
    door: Authenticator, names: Sequence[str], found: Principal
) -> None:
    assert door.authenticate_certificate(names) is found


@pytest.mark.parametrize("names", [[], ["other.example"], ["backend.example", "spiffe://example/billing"]])
def test_client_certificate_naming_nobody_or_several_is_refused(door: Authenticator, names: Sequence[str]) -> None:
    with pytest.raises(TokenInvalid):
        door.authenticate_certificate(names)


async def test_token_cache_does_not_outlive_token_expiry(door: Authenticator, clock: FakeClock) -> None:
    value = bearer(clock, life_s=20.0)
    for _ in range(5):
        assert (await enter(door, value)).name == "ann"
        await clock.advance(9.9)
    await clock.advance(0.5)
    with pytest.raises(TokenExpired):
        await enter(door, value)


async def test_token_cache_remembers_a_verified_token(
    door: Authenticator, caches: CallerCaches, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[object] = []

    def counted(*arguments: object) -> object:
        checks.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]  # whatever it is called with

    real = verify_token
    monkeypatch.setattr(service, "verify_token", counted)
    value = bearer(clock)
    for _ in range(3):
        await enter(door, value)
    assert len(checks) == 1
    await clock.advance(60)
    await enter(door, value)
    assert len(checks) == 2
    assert (caches.tokens.stats().hits, caches.tokens.stats().misses) == (2, 2)


async def test_token_cache_does_not_remember_a_refused_token(door: Authenticator, caches: CallerCaches) -> None:
    for number in range(3):
        with pytest.raises(TokenInvalid):
            await enter(door, f"Bearer a.b.{number}")
    assert caches.tokens.stats().size == 0


async def test_revoked_token_is_refused_after_invalidation(
    door: Authenticator, caches: CallerCaches, database: Database, clock: FakeClock
) -> None:
    value = bearer(clock)
    principal = await enter(door, value)
    await clock.advance(5)
    async with database.transaction() as conn:
        await users.revoke_user(conn, "default", "ann", "")
    assert await enter(door, value) is principal
    caches.invalidate_user("default", "ann")
    with pytest.raises(TokenRevoked):
        await enter(door, value)
    with pytest.raises(TokenRevoked):
        await door.recheck(principal)
    with pytest.raises(TokenRevoked):
        await enter(door, bearer(clock))  # issued in the second of the revocation
    await clock.advance(MAX_LEEWAY.total_seconds())
    with pytest.raises(TokenRevoked):
        await enter(door, bearer(clock))  # which an issuer whose clock is fast said of one of before
    await clock.advance(1)
    assert (await enter(door, bearer(clock))).name == "ann"


async def test_stream_recheck_bypasses_the_cache(door: Authenticator, database: Database, clock: FakeClock) -> None:
    principal = await enter(door, bearer(clock, life_s=30))
    await door.recheck(principal)
    async with database.transaction() as conn:
        await users.disable_user(conn, "default", "ann")
    with pytest.raises(TokenRevoked):
        await door.recheck(principal)
    await clock.advance(30)
    with pytest.raises(TokenExpired):
        await door.recheck(principal)
    await door.recheck(BACKEND)


async def test_stream_recheck_replaces_the_cached_status(
    door: Authenticator, caches: CallerCaches, database: Database, clock: FakeClock
) -> None:
    value = bearer(clock)
    principal = await enter(door, value)
    await door.recheck(principal)
    assert (await enter(door, value)).name == "ann"
    async with database.transaction() as conn:
        await users.disable_user(conn, "default", "ann")
    caches.invalidate_user("default", "ann")
    with pytest.raises(TokenRevoked):
        await enter(door, value)


async def test_evicted_account_status_ends_its_cached_tokens(
    refuses: FailingDatabase, database: Database, clock: FakeClock
) -> None:
    caches = make_caller_caches(refuses.as_database, clock, accounts=2)
    door = make_authenticator(Credentials(key_table([KEY]), {}, {}, {}), caches, clock)
    values = [bearer(clock, f"user-{number}") for number in range(4)]
    for value in values:
        await enter(door, value)
    async with database.transaction() as conn:
        await users.disable_user(conn, "default", "user-0")
    caches.invalidate_user("default", "user-0")
    with pytest.raises(TokenRevoked):
        await enter(door, values[0])


async def test_outage_is_reported_as_unavailable_and_cached_callers_go_on(
    door: Authenticator, refuses: FailingDatabase, clock: FakeClock
) -> None:
    value = bearer(clock)
    await enter(door, value)
    refuses.error = DependencyDown("the database does not answer")
    await clock.advance(50)
    assert (await enter(door, value)).name == "ann"
    with pytest.raises(DependencyDown):
        await enter(door, bearer(clock, "bob"))
    await clock.advance(20)
    with pytest.raises(DependencyDown):
        await enter(door, value)
