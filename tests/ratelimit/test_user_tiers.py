"""Tests tiers granted to users: kept apart from who is let in, and believed for a minute at most."""

from __future__ import annotations

import pytest

from syncbeat_server.auth.model import Issuer, VerifiedToken
from syncbeat_server.errors import FieldReason, InvalidRequest
from syncbeat_server.ratelimit.model import Tier, TierPolicy, TierSource, UserTier
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import make_account_statuses, make_user_tiers
from tests.support.fake_clock import START, FakeClock

pytestmark = pytest.mark.store

POLICY = TierPolicy({name: Tier(name, ()) for name in ("free", "pro", "service")}, "free", None)
OPEN = Issuer("default", "https://issuer.example")
CLOSED = Issuer("default", "https://issuer.example", accept_unknown_users=False)
LIFE = START.replace(hour=23)


def token(issuer: Issuer = OPEN) -> VerifiedToken:
    return VerifiedToken(issuer, "ann", "", START, LIFE)


async def test_granted_tier_holds_until_it_is_cleared(database: Database) -> None:
    told: list[tuple[str, str]] = []
    tiers = make_user_tiers(database, POLICY, lambda *user: told.append(user))
    assert await tiers.get("default", "ann") == UserTier("free", TierSource.DEFAULT, "")
    for _ in range(2):
        assert await tiers.set("default", "ann", "pro") == UserTier("pro", TierSource.SET, "pro")
    assert await tiers.get("default", "ann") == UserTier("pro", TierSource.SET, "pro")
    assert await tiers.get("default", "bob") == await tiers.get("other", "ann")
    for _ in range(2):
        assert await tiers.set("default", "ann", "") == UserTier("free", TierSource.DEFAULT, "")
    assert await tiers.get("default", "ann") == UserTier("free", TierSource.DEFAULT, "")
    assert told == [("default", "ann")] * 4


async def test_unknown_tier_is_refused_with_its_field(database: Database) -> None:
    told: list[str] = []
    tiers = make_user_tiers(database, POLICY, lambda app_id, user_id: told.append(user_id))
    await tiers.set("default", "ann", "pro")
    for other in ("gold", "service"):
        with pytest.raises(InvalidRequest) as raised:
            await tiers.set("default", "ann", other)
        (violation,) = raised.value.violations
        assert (violation.path, violation.reason) == ("tier", FieldReason.UNKNOWN_VALUE)
        assert violation.description.endswith(": free, pro")
    assert (await tiers.get("default", "ann")).name == "pro"
    assert told == ["ann"]


async def test_granted_tier_lets_no_unknown_user_in(database: Database, clock: FakeClock) -> None:
    await make_user_tiers(database, POLICY).set("default", "ann", "pro")
    statuses = make_account_statuses(database, clock)
    assert not (await statuses.get(token(CLOSED))).status.exists
    status = (await statuses.get(token(OPEN), fresh=True)).status
    assert (status.exists, status.tier) == (True, "pro")


async def test_granted_tier_holds_in_every_process_within_a_minute_without_invalidation(
    database: Database, clock: FakeClock
) -> None:
    processes = [make_account_statuses(database, clock) for _ in range(3)]
    tiers = make_user_tiers(database, POLICY)
    for granted in ("pro", "free", ""):
        for statuses in processes:
            await statuses.get(token())
        await tiers.set("default", "ann", granted)
        await clock.advance(60.0)
        assert [(await statuses.get(token())).status.tier for statuses in processes] == [granted] * 3
