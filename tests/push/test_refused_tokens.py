"""Registration tokens that the provider refuses, from the worker that met them to the device's next registration."""

from __future__ import annotations

import pytest

from syncbeat_server.directory.model import TokenState
from syncbeat_server.push.model import Outcome, Reason, Target, Verdict
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_device, couple, message, rows_of, shown, value_of
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


UNREGISTERED = Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)


async def test_dead_token_unregistered_is_removed(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent, next_one = message(), message(Target(scope="couple"))
    await accept(database, sent)
    provider = ScriptedProvider(UNREGISTERED)
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann DEAD UNREGISTERED", of=sent)
        await accept(database, next_one)
    tokens = await rows_of(database, "SELECT user_id, token_state, registration_token FROM devices ORDER BY 1")
    assert tokens == [("ann", "DEAD", None), ("bob", "ACTIVE", "token-of-bob-phone")]
    assert (await shown(database, next_one))[0] == "ann SUPPRESSED NO_TOKEN"


async def test_dead_token_invalid_is_removed_and_reported_until_reregistered(
    database: Database, clock: FakeClock
) -> None:
    await couple(database)
    sent, next_one = message(), message()
    await accept(database, sent)
    provider = ScriptedProvider(Outcome(Verdict.INVALID_TOKEN, Reason.UNREGISTERED))

    async def state() -> TokenState:
        return (await make_directory(database).device(APP, "ann", "phone", by_user=False)).token_state

    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann DEAD UNREGISTERED", of=sent)
    assert await state() is TokenState.INVALID
    await accept(database, next_one)
    assert await shown(database, next_one) == ["ann SUPPRESSED NO_TOKEN"]
    await clock.advance(1)
    await add_device(database, "ann")
    assert await state() is TokenState.ACTIVE
    another = message()
    await accept(database, another)
    async with running(make_worker(database, clock, ScriptedProvider(UNREGISTERED))):
        await until_shown(database, "ann DEAD UNREGISTERED", of=another)
    assert await state() is TokenState.DEAD, "this time for another reason"


async def test_sender_mismatch_token_is_not_pushed_to_until_reregistered(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    provider = ScriptedProvider(Outcome(Verdict.REJECTED, Reason.WRONG_SENDER))
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann DEAD WRONG_SENDER", of=sent)
    tokens = await rows_of(database, "SELECT user_id, token_state, registration_token FROM devices ORDER BY 1")
    assert tokens == [("ann", "QUARANTINED", "token-of-ann-phone"), ("bob", "ACTIVE", "token-of-bob-phone")]
    next_one = message()
    await accept(database, next_one)
    assert await shown(database, next_one) == ["ann SUPPRESSED NO_TOKEN"]
    await add_device(database, "ann")
    assert await value_of(database, "SELECT count(*) FROM devices WHERE token_state = 'ACTIVE'") == 2
