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
from syncbeat_server.auth.sessions.refresh_tokens import RefreshKeys
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
from syncbeat_server.storage.postgres.database import Database, open_database
from tests.auth.sessions_house import HOUR, ISSUER, PER_MINUTE, SIGNER, SIGNING, House, state
from tests.conftest import DatabaseUrls
from tests.fakes import FakeClock, wait_until


@pytest.fixture
def house(database: Database, clock: FakeClock) -> House:
    return House(database, clock)


@pytest.fixture
async def other(database_urls: DatabaseUrls, clock: FakeClock) -> AsyncIterator[House]:
    """Another process on the same database."""
    async with open_database(database_urls.app_url, size=4, name="another") as opened:
        yield House(opened, clock)


async def test_a_session_gives_tokens_that_let_its_user_in(house: House, clock: FakeClock) -> None:
    tokens = await house.create(claims={"plan": "pro"})
    verified = house.verified(tokens)
    assert (verified.user_id, verified.session_id, verified.issuer) == ("ann", tokens.session_id, ISSUER)
    assert parse_token(tokens.access_token).claims["plan"] == "pro"
    assert timedelta(seconds=540) <= tokens.access_expires_at - clock.now() <= timedelta(seconds=600)
    assert tokens.refresh_expires_at == clock.now() + timedelta(hours=1)
    assert await house.use(tokens)
    assert house.told == [("default", "ann")]
    assert tokens.access_token not in repr(tokens)
    assert tokens.refresh_token not in repr(tokens)


async def test_a_refresh_gives_the_next_tokens_and_moves_the_idle_end(house: House, clock: FakeClock) -> None:
    first = await house.create()
    await clock.advance(HOUR / 2)
    second = await house.refresh(first.refresh_token)
    assert second.session_id == first.session_id
    assert second.refresh_token != first.refresh_token
    assert second.refresh_expires_at == clock.now() + timedelta(hours=1)
    assert await house.use(second)
    assert await state(house, "counter") == 1


async def test_a_hundred_at_once_get_one_successor(house: House, other: House) -> None:
    first = await house.create()
    callers = [house, other] * 50
    got = await asyncio.gather(*(caller.refresh(first.refresh_token) for caller in callers))
    assert len({tokens.refresh_token for tokens in got}) == 1
    assert await state(house, "counter") == 1
    assert all([await house.use(tokens) for tokens in got[:4]])
    assert (await other.refresh(got[0].refresh_token)).refresh_token != got[0].refresh_token


async def test_one_who_gives_up_takes_nothing_from_the_others(house: House) -> None:
    first = await house.create()
    tasks = [asyncio.ensure_future(house.refresh(first.refresh_token)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    second, third = await asyncio.gather(*tasks[1:])
    assert second.refresh_token == third.refresh_token
    assert tasks[0].cancelled()


async def test_an_answer_that_was_lost_is_given_again_an_hour_later(
    house: House, other: House, clock: FakeClock
) -> None:
    first = await house.create()
    lost = await house.refresh(first.refresh_token)
    await clock.advance(HOUR - 1)
    again = await other.refresh(first.refresh_token)
    assert again.refresh_token == lost.refresh_token
    assert await house.use(again)
    assert (await house.refresh(again.refresh_token)).session_id == first.session_id


async def test_in_the_same_second_three_rotations_are_three(house: House, clock: FakeClock) -> None:
    tokens = [await house.create()]
    for _ in range(3):
        tokens.append(await house.refresh(tokens[-1].refresh_token))
    assert len({one.refresh_token for one in tokens}) == 4
    with pytest.raises(TokenRevoked):
        await house.refresh(tokens[1].refresh_token)


Theft = Callable[[House, FakeClock], Any]


async def grandparent(house: House, _clock: FakeClock) -> tuple[SessionTokens, SessionTokens]:
    first = await house.create()
    second = await house.refresh(first.refresh_token)
    return first, await house.refresh(second.refresh_token)


async def parent_of_one_in_use(house: House, clock: FakeClock) -> tuple[SessionTokens, SessionTokens]:
    first = await house.create()
    second = await house.refresh(first.refresh_token)
    assert await house.use(second)
    await clock.advance(31)
    return first, second


@pytest.mark.parametrize("theft", [grandparent, parent_of_one_in_use])
async def test_a_spent_token_that_comes_again_kills_the_family_for_good(
    house: House,
    other: House,
    database_urls: DatabaseUrls,
    clock: FakeClock,
    theft: Theft,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stolen, newest = await theft(house, clock)
    with caplog.at_level(logging.WARNING), pytest.raises(TokenRevoked):
        await house.refresh(stolen.refresh_token)
    # Committed, although the call failed; every process sees it, and one that starts anew does too.
    assert await state(other, "revoke_reason") == "REUSED"
    assert house.told[-1] == ("default", "ann")
    async with open_database(database_urls.app_url, size=1, name="restarted") as opened:
        for process in (house, other, House(opened, clock)):
            for tokens in (stolen, newest):
                assert isinstance(await process.outcome(tokens), TokenRevoked)
            assert not await process.use(newest)
    assert [record.message for record in caplog.records] == ["a spent refresh token came again"]
    assert not any(stolen.refresh_token in str(record.__dict__) for record in caplog.records)


async def test_the_family_dies_even_when_the_caller_is_gone(house: House, clock: FakeClock) -> None:
    stolen, newest = await grandparent(house, clock)
    calling = asyncio.ensure_future(house.refresh(stolen.refresh_token))
    await asyncio.sleep(0)
    calling.cancel()
    await wait_until(lambda: not house.sessions._refreshes)
    assert await state(house, "revoke_reason") == "REUSED"
    assert isinstance(await house.outcome(newest), TokenRevoked)


async def test_a_session_ends_idle_and_ends_for_good(house: House, clock: FakeClock) -> None:
    idle, busy = await house.create(), await house.create("bob")
    for _ in range(47):
        await clock.advance(HOUR / 2)
        busy = await house.refresh(busy.refresh_token)
    assert isinstance(await house.outcome(idle), TokenExpired)
    # The last tokens end with the session: 30 minutes are left of its day.
    assert busy.refresh_expires_at - clock.now() == timedelta(minutes=30)
    await clock.advance(HOUR / 4)
    busy = await house.refresh(busy.refresh_token)
    assert busy.access_expires_at - clock.now() <= timedelta(minutes=15)
    await clock.advance(HOUR / 4)
    assert isinstance(await house.outcome(busy), TokenExpired)


async def test_a_revoked_session_gives_nothing_any_more(house: House, other: House) -> None:
    tokens, kept = await house.create(), await house.create()
    await other.sessions.revoke("default", "ann", tokens.session_id, by_user=True)
    await other.sessions.revoke("default", "ann", tokens.session_id, by_user=False)
    assert isinstance(await house.outcome(tokens), TokenRevoked)
    assert not await house.use(tokens)
    assert await house.use(kept)
    assert other.told == [("default", "ann")] * 2


async def test_whose_session_it_is_not_does_not_end_it(house: House) -> None:
    tokens = await house.create()
    for user_id, session_id in (("bob", tokens.session_id), ("ann", "no such session"), ("", tokens.session_id)):
        with pytest.raises(AccessDenied):
            await house.sessions.revoke("default", user_id, session_id, by_user=True)
        with pytest.raises(NotFound):
            await house.sessions.revoke("default", user_id, session_id, by_user=False)
    with pytest.raises(NotFound):
        await house.sessions.revoke("other", "ann", tokens.session_id, by_user=False)
    assert await house.use(tokens)


async def test_revoking_a_user_ends_all_that_was_and_nothing_that_comes(house: House, other: House) -> None:
    before = [await house.create() for _ in range(3)]
    _, count = await other.sessions.revoke_user("default", "ann", "lost phone")
    assert count == 3
    after = await house.create()
    for tokens in before:
        assert isinstance(await house.outcome(tokens), TokenRevoked)
        assert not await house.use(tokens)
    assert await house.use(after)  # in the same second: the generation tells them apart
    assert (await house.refresh(after.refresh_token)).session_id == after.session_id
    assert (await other.sessions.revoke_user("default", "ann", ""))[1] == 1
    assert (await other.sessions.revoke_user("default", "nobody", ""))[1] == 0


async def test_a_thousand_races_of_refresh_and_revoke_leave_nothing_alive(house: House, other: House) -> None:
    came_to: Counter[str] = Counter()

    async def race(number: int) -> None:
        user_id = f"user-{number}"
        first = await house.create(user_id)
        by_user = number % 2

        async def revoke() -> None:
            if by_user:
                await other.sessions.revoke_user("default", user_id, "")
            else:
                await other.sessions.revoke("default", user_id, first.session_id, by_user=False)

        # Who starts together is nearly always revoked first, so a quarter refreshes first: its repeat races then.
        early = await house.outcome(first) if number // 2 % 4 == 0 else None
        outcome, again, _ = await asyncio.gather(house.outcome(first), other.outcome(first), revoke())
        for tokens in (first, early, outcome, again):
            if isinstance(tokens, SessionTokens):
                assert not await house.use(tokens)
                assert isinstance(await other.outcome(tokens), TokenRevoked)
        came_to[type(early or outcome).__name__] += 1

    for start in range(0, 1_000, 50):
        await asyncio.gather(*(race(number) for number in range(start, start + 50)))
    # Both orders were tried, or the races would show nothing.
    assert came_to["SessionTokens"] + came_to["TokenRevoked"] == 1_000
    assert min(came_to.values()) > 10, came_to


async def test_a_session_made_while_its_user_is_revoked_is_old_or_new_and_nothing_between(
    house: House, other: House
) -> None:
    for number in range(100):
        user_id = f"user-{number}"
        made, (_, count) = await asyncio.gather(
            house.create(user_id), other.sessions.revoke_user("default", user_id, "")
        )
        assert await house.use(made) is (count == 0)


async def test_a_call_that_is_repeated_gets_the_same_session(house: House, other: House, clock: FakeClock) -> None:
    first = await house.create(request_id="r", content_hash=b"x")
    await clock.advance(60)
    again = await other.create(request_id="r", content_hash=b"x")
    assert (again.session_id, again.refresh_token) == (first.session_id, first.refresh_token)
    assert again.replayed
    assert again.access_expires_at > clock.now() + timedelta(minutes=8)
    assert other.told == []
    async with house.database.connection() as conn:
        kept = await conn.fetchval("SELECT answer::text FROM request_records")
    for secret in (first.refresh_token, first.access_token, first.refresh_token[-20:]):
        assert secret not in kept


@pytest.mark.parametrize("name", ["sub", "exp", "role", "session_id", "gen", "ctr", "iss", "user_metadata"])
async def test_a_claim_that_says_who_somebody_is_cannot_be_given(house: House, name: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await house.create(claims={"fine": "x", name: "x"})
    assert [fault.path for fault in raised.value.violations] == [f'claims["{name}"]']


async def test_claims_that_fill_a_token_are_let_in_and_more_are_not(house: House) -> None:
    # Six octets in the token for each of these: none is longer once it is JSON.
    most = {f"c{number}": "\N{SNOWMAN}" * 300 for number in range(2)}
    assert await house.use(await house.create(claims=most))
    with pytest.raises(InvalidRequest) as raised:
        await house.create(claims={**most, "c3": "x" * 300})
    assert [fault.path for fault in raised.value.violations] == ["claims"]


async def test_a_user_has_so_many_sessions_and_ended_ones_are_forgotten(house: House, clock: FakeClock) -> None:
    made = [await house.create() for _ in range(7)]
    alive = [await house.use(tokens) for tokens in made]
    assert alive == [False] * 2 + [True] * 5
    listed = await house.sessions.list_sessions("default", "ann", "", 10, by_user=True)
    assert [session.session_id for session in listed] == [tokens.session_id for tokens in reversed(made[2:])]
    page = await house.sessions.list_sessions("default", "ann", listed[1].session_id, 2, by_user=False)
    assert page == listed[2:4]
    await clock.advance(9 * 86_400)
    assert await house.sessions.list_sessions("default", "ann", "", 10, by_user=True) == []
    await house.create()
    assert await state(house, "count(*)") == 1


async def test_a_disabled_user_gets_no_session_and_a_deleted_one_begins_anew(house: House) -> None:
    old = await house.create()
    async with house.database.transaction() as conn:
        await users.disable_user(conn, "default", "ann")
    with pytest.raises(AccessDenied):
        await house.create(request_id="r")
    assert isinstance(await house.outcome(old), TokenRevoked)
    async with house.database.transaction() as conn:
        await users.enable_user(conn, "default", "ann")
    assert await house.use(old)
    async with house.database.transaction() as conn:
        await users.revoke_user(conn, "default", "ann", "")
        await users.mark_deleted(conn, "default", "ann")
    assert not await house.use(old)
    assert await house.use(await house.create(request_id="r"))
    assert not await house.use(old)


async def test_refresh_tokens_of_another_server_or_app_are_refused(
    house: House, database: Database, clock: FakeClock
) -> None:
    tokens = await house.create()
    stranger = House(database, clock, SIGNING._replace(refresh=RefreshKeys({"k1": b"t" * 32})))
    assert isinstance(await stranger.outcome(tokens), TokenInvalid)
    elsewhere = House(database, clock, SigningKeys({"other": SIGNER}, SIGNING.refresh))
    assert isinstance(await elsewhere.outcome(tokens), TokenInvalid)
    with pytest.raises(NotConfigured, match="SYNCBEAT_SESSION_KEYS"):
        await House(database, clock, None).create()


async def test_forged_refresh_tokens_cost_no_store_call_and_no_good_token_its_turn(
    database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    async with open_database(database_urls.app_url, size=1, name="one") as database:
        house = House(database, clock)
        tokens = await house.create()
        forged = RefreshKeys({"k1": b"t" * 32}).encode(SIGNING.refresh.decode(tokens.refresh_token))
        async with database.connection():  # the only one: whoever asks the database waits for it
            for number in range(2 * PER_MINUTE):
                with pytest.raises(TokenInvalid if number < PER_MINUTE else RateLimited):
                    await asyncio.wait_for(house.refresh(forged), 1.0)
        assert (await house.refresh(tokens.refresh_token)).session_id == tokens.session_id


async def test_a_session_is_refreshed_so_often_and_no_more(house: House, clock: FakeClock) -> None:
    tokens, others = await house.create(), await house.create("bob")
    for _ in range(PER_MINUTE):
        tokens = await house.refresh(tokens.refresh_token)
    with pytest.raises(RateLimited) as raised:
        await house.refresh(tokens.refresh_token)
    assert raised.value.retry_after_s == 60 / PER_MINUTE
    assert await state(house, "max(counter)") == PER_MINUTE
    others = await house.refresh(others.refresh_token)
    await clock.advance(raised.value.retry_after_s)
    assert (await house.refresh(tokens.refresh_token)).session_id == tokens.session_id


async def test_twins_under_way_count_once_in_the_limit_of_their_session(house: House) -> None:
    tokens = await house.create()
    got = await asyncio.gather(*(house.refresh(tokens.refresh_token) for _ in range(3 * PER_MINUTE)))
    assert len({one.refresh_token for one in got}) == 1


async def test_a_session_that_has_ended_costs_store_calls_within_its_limit_only(house: House) -> None:
    tokens = await house.create()
    await house.sessions.revoke("default", "ann", tokens.session_id, by_user=False)
    came_to = [type(await house.outcome(tokens)) for _ in range(2 * PER_MINUTE)]
    assert came_to == [TokenRevoked] * PER_MINUTE + [RateLimited] * PER_MINUTE
