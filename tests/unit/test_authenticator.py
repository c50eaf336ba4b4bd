"""From the authorization header to who is calling."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

import pytest

from syncbeat_server.auth import service
from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.auth.tokens import KeyRow, KeyTable, VerifiedToken, key_table, mint, verify
from syncbeat_server.errors import TokenExpired, TokenInvalid
from tests.fakes import FakeClock

KEY = KeyRow("default", "issuer", "authenticated", "k", "HS256", "s" * 32)
BACKEND = Principal(PrincipalKind.SERVICE, "backend", methods=frozenset({"SendNotification"}))
TOKEN = "a-token-of-the-backend"


@pytest.fixture
def clock() -> FakeClock:
    """No database here, so the clock is nobody else's."""
    return FakeClock()


@pytest.fixture
def door(clock: FakeClock) -> Authenticator:
    return Authenticator(key_table([KEY]), {hashlib.sha256(TOKEN.encode()).hexdigest(): BACKEND}, clock)


def bearer(clock: FakeClock, user_id: str = "ann", life_s: float = 600.0) -> str:
    return f"Bearer {mint(KEY, user_id, clock.now(), timedelta(seconds=life_s))}"


def test_a_user_comes_in_by_a_jwt(door: Authenticator, clock: FakeClock) -> None:
    principal = door.authenticate([bearer(clock)])
    assert (principal.kind, principal.name, principal.app_id) == (PrincipalKind.USER, "ann", "default")
    assert principal.caller == "user:ann"
    assert principal.expires_at == clock.now() + timedelta(seconds=600)
    assert door.authenticate([bearer(clock).replace("Bearer", "bEARER")]) == principal


def test_a_service_comes_in_by_its_token(door: Authenticator, clock: FakeClock) -> None:
    assert door.authenticate([f"Bearer {TOKEN}"]) is BACKEND
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
def test_anything_else_stays_out(door: Authenticator, values: list[str]) -> None:
    with pytest.raises(TokenInvalid) as raised:
        door.authenticate(values)
    assert TOKEN not in raised.value.message


async def test_a_token_that_was_checked_still_ends_in_time(door: Authenticator, clock: FakeClock) -> None:
    value = bearer(clock, life_s=20.0)
    for _ in range(5):
        assert door.authenticate([value]).name == "ann"
        await clock.advance(9.9)
    await clock.advance(0.5)
    with pytest.raises(TokenExpired):
        door.authenticate([value])  # by the cache
    await clock.advance(60)
    with pytest.raises(TokenExpired):
        door.authenticate([value])  # by the signature


async def test_a_checked_token_is_remembered_for_a_while(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[str] = []

    def counted(token: str, keys: KeyTable, now: datetime) -> VerifiedToken:
        checks.append(token)
        return verify(token, keys, now)

    monkeypatch.setattr(service, "verify", counted)
    door = Authenticator(key_table([KEY]), {}, clock)
    value = bearer(clock)
    for _ in range(3):
        door.authenticate([value])
    assert len(checks) == 1
    await clock.advance(60)
    door.authenticate([value])
    assert len(checks) == 2


def test_what_is_remembered_is_bounded(door: Authenticator, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_CACHED", 5)
    values = [bearer(clock, f"user-{n}") for n in range(9)]
    assert [door.authenticate([value]).name for value in values] == [f"user-{n}" for n in range(9)]
    assert len(door._verified) == 5
    assert door.authenticate([values[0]]).name == "user-0"


def test_a_refused_token_is_not_remembered(door: Authenticator) -> None:
    for number in range(3):
        with pytest.raises(TokenInvalid):
            door.authenticate([f"Bearer a.b.{number}"])
    assert not door._verified
