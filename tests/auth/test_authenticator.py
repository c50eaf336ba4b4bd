"""From the credentials of a call to who is calling."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

import pytest

from syncbeat_server.auth import service
from syncbeat_server.auth.accounts.account_status_cache import AccountStatusCache
from syncbeat_server.auth.accounts.caller_caches import CallerCaches, caller_caches
from syncbeat_server.auth.accounts.token_cache import TokenCache
from syncbeat_server.auth.model import MAX_LEEWAY, Issuer, KeyRow, Principal, PrincipalKind
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.bearer import parse_bearer
from syncbeat_server.auth.tokens.keys import key_table
from syncbeat_server.auth.tokens.verify import mint, verify_token
from syncbeat_server.errors import DependencyDown, TokenExpired, TokenInvalid, TokenRevoked
from syncbeat_server.storage.postgres.database import Database
from tests.fakes import FakeClock
from tests.storage.doubles import Refuses

ISSUER = Issuer("default", "issuer", uuid_subjects=False)
KEY = KeyRow(ISSUER, "k", "HS256", "s" * 32)
BACKEND = Principal(PrincipalKind.SERVICE, "backend", methods=frozenset({"SendNotification"}))
BILLING = Principal(PrincipalKind.SERVICE, "billing")
TOKEN = "a-token-of-the-backend"


@pytest.fixture
def refuses(database: Database) -> Refuses:
    return Refuses(database)


@pytest.fixture
def caches(refuses: Refuses, clock: FakeClock) -> CallerCaches:
    return caller_caches(refuses.as_database, clock, 100)


@pytest.fixture
def door(caches: CallerCaches, clock: FakeClock) -> Authenticator:
    holders = {hashlib.sha256(TOKEN.encode()).digest(): BACKEND}
    certified = {"backend.example": BACKEND, "www.backend.example": BACKEND, "spiffe://example/billing": BILLING}
    return Authenticator(Credentials(key_table([KEY]), {}, holders, certified), caches, clock)


def bearer(clock: FakeClock, user_id: str = "ann", life_s: float = 600.0, session_id: str = "s") -> str:
    return f"Bearer {mint(KEY, user_id, clock.now(), timedelta(seconds=life_s), session_id=session_id)}"


async def enter(door: Authenticator, *values: str) -> Principal:
    """As the interceptor asks."""
    shown = parse_bearer(values)
    found = door.cached(shown) or door.try_sync(shown)
    return found if isinstance(found, Principal) else await door.authenticate(shown, found)


async def test_a_user_comes_in_by_a_jwt(door: Authenticator, clock: FakeClock) -> None:
    principal = await enter(door, bearer(clock))
    assert (principal.kind, principal.name, principal.app_id) == (PrincipalKind.USER, "ann", "default")
    assert principal.caller == "user:ann"
    assert principal.expires_at is not None
    assert (principal.expires_at - clock.now()).total_seconds() == 600
    assert await enter(door, bearer(clock).replace("Bearer", "bEARER")) == principal


async def test_a_service_comes_in_by_its_token_without_the_database(door: Authenticator, refuses: Refuses) -> None:
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
async def test_anything_else_stays_out(door: Authenticator, values: list[str]) -> None:
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
def test_a_service_comes_in_by_its_certificate(door: Authenticator, names: Sequence[str], found: Principal) -> None:
    assert door.authenticate_certificate(names) is found


@pytest.mark.parametrize("names", [[], ["other.example"], ["backend.example", "spiffe://example/billing"]])
def test_a_certificate_that_names_nobody_or_several_stays_out(door: Authenticator, names: Sequence[str]) -> None:
    with pytest.raises(TokenInvalid):
        door.authenticate_certificate(names)


async def test_a_token_that_was_checked_still_ends_in_time(door: Authenticator, clock: FakeClock) -> None:
    value = bearer(clock, life_s=20.0)
    for _ in range(5):
        assert (await enter(door, value)).name == "ann"
        await clock.advance(9.9)
    await clock.advance(0.5)
    with pytest.raises(TokenExpired):
        await enter(door, value)


async def test_a_checked_token_is_remembered_for_a_while(
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


async def test_a_refused_token_is_not_remembered(door: Authenticator, caches: CallerCaches) -> None:
    for number in range(3):
        with pytest.raises(TokenInvalid):
            await enter(door, f"Bearer a.b.{number}")
    assert caches.tokens.stats().size == 0


async def test_what_was_revoked_is_refused_once_told(
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


async def test_what_goes_on_is_checked_against_the_database_and_not_the_cache(
    door: Authenticator, database: Database, clock: FakeClock
) -> None:
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


async def test_what_was_looked_up_anew_for_a_stream_ends_the_older_answer(
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


async def test_a_standing_that_made_room_for_others_ends_its_tokens(
    refuses: Refuses, database: Database, clock: FakeClock
) -> None:
    caches = CallerCaches(AccountStatusCache(refuses.as_database, clock, 2), TokenCache(clock, 100))
    door = Authenticator(Credentials(key_table([KEY]), {}, {}, {}), caches, clock)
    values = [bearer(clock, f"user-{number}") for number in range(4)]
    for value in values:
        await enter(door, value)
    async with database.transaction() as conn:
        await users.disable_user(conn, "default", "user-0")
    caches.invalidate_user("default", "user-0")
    with pytest.raises(TokenRevoked):
        await enter(door, values[0])


async def test_an_outage_is_told_as_one_and_who_was_checked_goes_on(
    door: Authenticator, refuses: Refuses, clock: FakeClock
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
