"""Sessions on real PostgreSQL: rotation, theft, races; two services on two pools stand for two processes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from syncbeat_server.auth.model import SessionTokens
from syncbeat_server.auth.sessions.refresh_token_codec import RefreshKeys
from syncbeat_server.auth.sessions.signing import SigningKeys
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.verify import parse_token
from syncbeat_server.errors import (
    AccessDenied,
    InvalidRequest,
    NotConfigured,
    NotFound,
    RateLimited,
    TokenExpired,
    TokenInvalid,
    TokenRevoked,
)
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import ISSUER, REFRESHES_PER_MINUTE, SIGNER, SIGNING, SessionFeature
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import FakeClock, wait_until

pytestmark = pytest.mark.store
HOUR = 3_600.0


async def state(sessions: SessionFeature, column: str) -> Any:
    async with sessions.database.connection() as conn:
        return await conn.fetchval(f"SELECT {column} FROM sessions")


@pytest.fixture
def sessions(database: Database, clock: FakeClock) -> SessionFeature:
    return SessionFeature(database, clock)


@pytest.fixture
async def other(database_urls: DatabaseUrls, clock: FakeClock) -> AsyncIterator[SessionFeature]:
    """Another process on the same database."""
    async with open_database(database_urls.app_url, size=4, name="another") as opened:
        yield SessionFeature(opened, clock)


async def test_session_tokens_authenticate_their_user(sessions: SessionFeature, clock: FakeClock) -> None:
    tokens = await sessions.create(claims={"plan": "pro"})
    verified = sessions.verified(tokens)
    assert (verified.subject, verified.session_id, verified.issuer) == ("ann", tokens.session_id, ISSUER)
    assert parse_token(tokens.access_token).claims["plan"] == "pro"
    assert timedelta(seconds=540) <= tokens.access_expires_at - clock.now() <= timedelta(seconds=600)
    assert tokens.refresh_expires_at == clock.now() + timedelta(hours=1)
    assert await sessions.use(tokens)
    assert sessions.told == [("default", "ann")]
    assert tokens.access_token not in repr(tokens)
    assert tokens.refresh_token not in repr(tokens)


async def test_token_rotation_issues_the_next_pair_and_extends_idle_expiry(
    sessions: SessionFeature, clock: FakeClock
) -> None:
    first = await sessions.create()
    await clock.advance(HOUR / 2)
    second = await sessions.refresh(first.refresh_token)
    assert second.session_id == first.session_id
    assert second.refresh_token != first.refresh_token
    assert second.refresh_expires_at == clock.now() + timedelta(hours=1)
    assert await sessions.use(second)
    assert await state(sessions, "counter") == 1


async def test_token_rotation_of_concurrent_refreshes_has_one_successor(
    sessions: SessionFeature, other: SessionFeature
) -> None:
    first = await sessions.create()
    callers = [sessions, other] * 50
    got = await asyncio.gather(*(caller.refresh(first.refresh_token) for caller in callers))
    assert len({tokens.refresh_token for tokens in got}) == 1
    assert await state(sessions, "counter") == 1
    assert all([await sessions.use(tokens) for tokens in got[:4]])
    assert (await other.refresh(got[0].refresh_token)).refresh_token != got[0].refresh_token


async def test_token_rotation_survives_a_cancelled_caller(sessions: SessionFeature) -> None:
    first = await sessions.create()
    tasks = [asyncio.ensure_future(sessions.refresh(first.refresh_token)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    second, third = await asyncio.gather(*tasks[1:])
    assert second.refresh_token == third.refresh_token
    assert tasks[0].cancelled()


async def test_token_rotation_repeats_a_lost_response_an_hour_later(
    sessions: SessionFeature, other: SessionFeature, clock: FakeClock
) -> None:
    first = await sessions.create()
    lost = await sessions.refresh(first.refresh_token)
    await clock.advance(HOUR - 1)
    again = await other.refresh(first.refresh_token)
    assert again.refresh_token == lost.refresh_token
    assert await sessions.use(again)
    assert (await sessions.refresh(again.refresh_token)).session_id == first.session_id


async def test_token_rotation_thrice_in_one_second_is_three_rotations(
    sessions: SessionFeature, clock: FakeClock
) -> None:
    tokens = [await sessions.create()]
    for _ in range(3):
        tokens.append(await sessions.refresh(tokens[-1].refresh_token))
    assert len({one.refresh_token for one in tokens}) == 4
    with pytest.raises(TokenRevoked):
        await sessions.refresh(tokens[1].refresh_token)


Theft = Callable[[SessionFeature, FakeClock], Any]


async def grandparent(sessions: SessionFeature, _clock: FakeClock) -> tuple[SessionTokens, SessionTokens]:
    first = await sessions.create()
    second = await sessions.refresh(first.refresh_token)
    return first, await sessions.refresh(second.refresh_token)


async def parent_of_one_in_use(sessions: SessionFeature, clock: FakeClock) -> tuple[SessionTokens, SessionTokens]:
    first = await sessions.create()
    second = await sessions.refresh(first.refresh_token)
    assert await sessions.use(second)
    await clock.advance(31)
    return first, second


@pytest.mark.parametrize("theft", [grandparent, parent_of_one_in_use])
async def test_token_reuse_revokes_the_family(
    sessions: SessionFeature,
    other: SessionFeature,
    database_urls: DatabaseUrls,
    clock: FakeClock,
    theft: Theft,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stolen, newest = await theft(sessions, clock)
    with caplog.at_level(logging.WARNING), pytest.raises(TokenRevoked):
        await sessions.refresh(stolen.refresh_token)
    # Committed, although the call failed; every process sees it, and one that starts anew does too.
    assert await state(other, "revoke_reason") == "REUSED"
    assert sessions.told[-1] == ("default", "ann")
    async with open_database(database_urls.app_url, size=1, name="restarted") as opened:
        for process in (sessions, other, SessionFeature(opened, clock)):
            for tokens in (stolen, newest):
                assert isinstance(await process.outcome(tokens), TokenRevoked)
            assert not await process.use(newest)
    assert [record.message for record in caplog.records] == ["a spent refresh token came again"]
    assert not any(stolen.refresh_token in str(record.__dict__) for record in caplog.records)


async def test_token_reuse_revokes_the_family_even_if_the_caller_left(
    sessions: SessionFeature, clock: FakeClock
) -> None:
    stolen, newest = await grandparent(sessions, clock)
    calling = asyncio.ensure_future(sessions.refresh(stolen.refresh_token))
    await asyncio.sleep(0)
    calling.cancel()
    await wait_until(lambda: not sessions.service._refreshes)
    assert await state(sessions, "revoke_reason") == "REUSED"
    assert isinstance(await sessions.outcome(newest), TokenRevoked)


async def test_session_expires_when_idle_and_at_its_maximum_age(sessions: SessionFeature, clock: FakeClock) -> None:
    idle, busy = await sessions.create(), await sessions.create("bob")
    for _ in range(47):
        await clock.advance(HOUR / 2)
        busy = await sessions.refresh(busy.refresh_token)
    assert isinstance(await sessions.outcome(idle), TokenExpired)
    # The last tokens end with the session: 30 minutes are left of its day.
    assert busy.refresh_expires_at - clock.now() == timedelta(minutes=30)
    await clock.advance(HOUR / 4)
    busy = await sessions.refresh(busy.refresh_token)
    assert busy.access_expires_at - clock.now() <= timedelta(minutes=15)
    await clock.advance(HOUR / 4)
    assert isinstance(await sessions.outcome(busy), TokenExpired)


async def test_revoked_session_issues_nothing(sessions: SessionFeature, other: SessionFeature) -> None:
    tokens, kept = await sessions.create(), await sessions.create()
    await other.service.revoke("default", "ann", tokens.session_id, by_user=True)
    await other.service.revoke("default", "ann", tokens.session_id, by_user=False)
    assert isinstance(await sessions.outcome(tokens), TokenRevoked)
    assert not await sessions.use(tokens)
    assert await sessions.use(kept)
    assert other.told == [("default", "ann")] * 2


async def test_session_revoked_again_is_recorded_once(sessions: SessionFeature, other: SessionFeature) -> None:
    tokens = await sessions.create()
    both = (sessions, other)
    revoking = [one.service.revoke("default", "ann", tokens.session_id, by_user=True) for one in both * 5]
    await asyncio.gather(*revoking)
    async with sessions.database.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM audit_entries WHERE action = 'SESSION_REVOKED'") == 1
    assert len(other.told) == 5


async def test_revoke_session_of_another_user_is_refused(sessions: SessionFeature) -> None:
    tokens = await sessions.create()
    for user_id, session_id in (("bob", tokens.session_id), ("ann", "no such session"), ("", tokens.session_id)):
        with pytest.raises(AccessDenied):
            await sessions.service.revoke("default", user_id, session_id, by_user=True)
        with pytest.raises(NotFound):
            await sessions.service.revoke("default", user_id, session_id, by_user=False)
    with pytest.raises(NotFound):
        await sessions.service.revoke("other", "ann", tokens.session_id, by_user=False)
    assert await sessions.use(tokens)


async def test_revoke_user_ends_earlier_sessions_and_spares_later_ones(
    sessions: SessionFeature, other: SessionFeature
) -> None:
    before = [await sessions.create() for _ in range(3)]
    _, count = await other.service.revoke_user("default", "ann", "lost phone")
    assert count == 3
    after = await sessions.create()
    for tokens in before:
        assert isinstance(await sessions.outcome(tokens), TokenRevoked)
        assert not await sessions.use(tokens)
    assert await sessions.use(after)  # in the same second: the generation tells them apart
    assert (await sessions.refresh(after.refresh_token)).session_id == after.session_id
    assert (await other.service.revoke_user("default", "ann", ""))[1] == 1
    assert (await other.service.revoke_user("default", "nobody", ""))[1] == 0


async def test_revoke_racing_refresh_a_thousand_times_leaves_nothing_alive(
    sessions: SessionFeature, other: SessionFeature
) -> None:
    came_to: Counter[str] = Counter()

    async def race(number: int) -> None:
        user_id = f"user-{number}"
        first = await sessions.create(user_id)
        by_user = number % 2

        async def revoke() -> None:
            if by_user:
                await other.service.revoke_user("default", user_id, "")
            else:
                await other.service.revoke("default", user_id, first.session_id, by_user=False)

        # Who starts together is nearly always revoked first, so a quarter refreshes first: its repeat races then.
        early = await sessions.outcome(first) if number // 2 % 4 == 0 else None
        outcome, again, _ = await asyncio.gather(sessions.outcome(first), other.outcome(first), revoke())
        for tokens in (first, early, outcome, again):
            if isinstance(tokens, SessionTokens):
                assert not await sessions.use(tokens)
                assert isinstance(await other.outcome(tokens), TokenRevoked)
        came_to[type(early or outcome).__name__] += 1

    for start in range(0, 1_000, 50):
        await asyncio.gather(*(race(number) for number in range(start, start + 50)))
    # Both orders were tried, or the races would show nothing.
    assert came_to["SessionTokens"] + came_to["TokenRevoked"] == 1_000
    assert min(came_to.values()) > 10, came_to


async def test_revoke_racing_session_creation_is_atomic(sessions: SessionFeature, other: SessionFeature) -> None:
    for number in range(100):
        user_id = f"user-{number}"
        made, (_, count) = await asyncio.gather(
            sessions.create(user_id), other.service.revoke_user("default", user_id, "")
        )
        assert await sessions.use(made) is (count == 0)


async def test_idempotency_of_create_session_returns_the_same_session(
    sessions: SessionFeature, other: SessionFeature, clock: FakeClock
) -> None:
    first = await sessions.create(request_id="r", content_hash=b"x")
    await clock.advance(60)
    again = await other.create(request_id="r", content_hash=b"x")
    assert (again.session_id, again.refresh_token) == (first.session_id, first.refresh_token)
    assert again.replayed
    assert again.access_expires_at > clock.now() + timedelta(minutes=8)
    assert other.told == []
    async with sessions.database.connection() as conn:
        kept = await conn.fetchval("SELECT answer::text FROM request_records")
    for secret in (first.refresh_token, first.access_token, first.refresh_token[-20:]):
        assert secret not in kept


@pytest.mark.parametrize("name", ["sub", "exp", "role", "session_id", "gen", "ctr", "iss", "user_metadata"])
async def test_reserved_claims_cannot_be_given_to_a_session(sessions: SessionFeature, name: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await sessions.create(claims={"fine": "x", name: "x"})
    assert [fault.path for fault in raised.value.violations] == [f'claims["{name}"]']


async def test_custom_claims_are_bounded_in_size(sessions: SessionFeature) -> None:
    # Six octets in the token for each of these: none is longer once it is JSON.
    most = {f"c{number}": "\N{SNOWMAN}" * 300 for number in range(2)}
    assert await sessions.use(await sessions.create(claims=most))
    with pytest.raises(InvalidRequest) as raised:
        await sessions.create(claims={**most, "c3": "x" * 300})
    assert [fault.path for fault in raised.value.violations] == ["claims"]


async def test_session_limit_per_user_evicts_ended_ones(sessions: SessionFeature, clock: FakeClock) -> None:
    made = [await sessions.create() for _ in range(7)]
    alive = [await sessions.use(tokens) for tokens in made]
    assert alive == [False] * 2 + [True] * 5
    listed = await sessions.service.list_sessions("default", "ann", "", 10, by_user=True)
    assert [session.session_id for session in listed] == [tokens.session_id for tokens in reversed(made[2:])]
    page = await sessions.service.list_sessions("default", "ann", listed[1].session_id, 2, by_user=False)
    assert page == listed[2:4]
    await clock.advance(9 * 86_400)
    assert await sessions.service.list_sessions("default", "ann", "", 10, by_user=True) == []
    await sessions.create()
    assert await state(sessions, "count(*)") == 1


async def test_disabled_user_gets_no_session_and_deleted_user_begins_anew(sessions: SessionFeature) -> None:
    old = await sessions.create()
    async with sessions.database.transaction() as conn:
        await users.disable_user(conn, "default", "ann")
    with pytest.raises(AccessDenied):
        await sessions.create(request_id="r")
    assert isinstance(await sessions.outcome(old), TokenRevoked)
    async with sessions.database.transaction() as conn:
        await users.enable_user(conn, "default", "ann")
    assert await sessions.use(old)
    async with sessions.database.transaction() as conn:
        await users.revoke_user(conn, "default", "ann", "")
        await users.mark_deleted(conn, "default", "ann")
    assert not await sessions.use(old)
    assert await sessions.use(await sessions.create(request_id="r"))
    assert not await sessions.use(old)


async def test_refresh_tokens_of_another_server_or_app_are_refused(
    sessions: SessionFeature, database: Database, clock: FakeClock
) -> None:
    tokens = await sessions.create()
    stranger = SessionFeature(database, clock, SIGNING._replace(refresh=RefreshKeys({"k1": b"t" * 32})))
    assert isinstance(await stranger.outcome(tokens), TokenInvalid)
    elsewhere = SessionFeature(database, clock, SigningKeys({"other": SIGNER}, SIGNING.refresh))
    assert isinstance(await elsewhere.outcome(tokens), TokenInvalid)
    with pytest.raises(NotConfigured, match="SYNCBEAT_SESSION_KEYS"):
        await SessionFeature(database, clock, None).create()


async def test_refresh_rate_limit_of_forged_tokens_makes_no_store_call(
    database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    async with open_database(database_urls.app_url, size=1, name="one") as database:
        sessions = SessionFeature(database, clock)
        tokens = await sessions.create()
        forged = RefreshKeys({"k1": b"t" * 32}).encode(SIGNING.refresh.decode(tokens.refresh_token))
        async with database.connection():  # the only one: whoever asks the database waits for it
            for number in range(2 * REFRESHES_PER_MINUTE):
                with pytest.raises(TokenInvalid if number < REFRESHES_PER_MINUTE else RateLimited):
                    await asyncio.wait_for(sessions.refresh(forged), 1.0)
        assert (await sessions.refresh(tokens.refresh_token)).session_id == tokens.session_id


async def test_refresh_rate_limit_applies_per_session(sessions: SessionFeature, clock: FakeClock) -> None:
    tokens, others = await sessions.create(), await sessions.create("bob")
    for _ in range(REFRESHES_PER_MINUTE):
        tokens = await sessions.refresh(tokens.refresh_token)
    with pytest.raises(RateLimited) as raised:
        await sessions.refresh(tokens.refresh_token)
    assert raised.value.retry_after_s == 60 / REFRESHES_PER_MINUTE
    assert await state(sessions, "max(counter)") == REFRESHES_PER_MINUTE
    others = await sessions.refresh(others.refresh_token)
    await clock.advance(raised.value.retry_after_s)
    assert (await sessions.refresh(tokens.refresh_token)).session_id == tokens.session_id


async def test_refresh_rate_limit_counts_concurrent_duplicates_once(sessions: SessionFeature) -> None:
    tokens = await sessions.create()
    got = await asyncio.gather(*(sessions.refresh(tokens.refresh_token) for _ in range(3 * REFRESHES_PER_MINUTE)))
    assert len({one.refresh_token for one in got}) == 1


async def test_refresh_rate_limit_bounds_store_calls_of_ended_sessions(sessions: SessionFeature) -> None:
    tokens = await sessions.create()
    await sessions.service.revoke("default", "ann", tokens.session_id, by_user=False)
    came_to = [type(await sessions.outcome(tokens)) for _ in range(2 * REFRESHES_PER_MINUTE)]
    assert came_to == [TokenRevoked] * REFRESHES_PER_MINUTE + [RateLimited] * REFRESHES_PER_MINUTE
