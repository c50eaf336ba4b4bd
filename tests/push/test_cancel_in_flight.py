"""Cancelling holds for what is in flight: an attempt that fails after it is not made again."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import pytest

from syncbeat_server.directory.model import Preferences, QuietHours
from syncbeat_server.push.model import Blame, DeliveryFilter, Outcome, Reason, Target, Verdict
from syncbeat_server.push.store import lifecycle as lifecycle_store
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_user_lifecycle, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import accept, add_device, claim, couple, message, shown, value_of, wake
from tests.support.workers import running, until_due, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


LEASE = str(uuid.UUID(int=5))
FAILURES: dict[str, Outcome | Exception] = {
    "unavailable": Outcome(Verdict.RETRY, Reason.UNAVAILABLE),
    "throttled": Outcome(Verdict.RETRY, Reason.THROTTLED, retry_after_s=30.0),
    "ambiguous": RuntimeError("the connection broke"),
    "no access token": Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.ACCESS),
    "rejected": Outcome(Verdict.REJECTED, Reason.REJECTED),
    "unregistered": Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED),
}


async def cancel(database: Database, notification_id: str) -> int | None:
    async with database.transaction() as conn:
        return await lifecycle_store.cancel(conn, APP, notification_id)


async def disable(database: Database) -> None:
    lifecycle = make_user_lifecycle(database)
    await lifecycle.disable(APP, "ann")
    await lifecycle.enable(APP, "ann")


async def sign_out_and_in(database: Database) -> None:
    await make_directory(database).unregister(APP, "ann", "phone", by_user=False)
    await add_device(database, "ann")


async def give_token_away(database: Database) -> None:
    await add_device(database, "eve", token="token-of-ann-phone")
    await add_device(database, "ann", token="another")


async def register_without_token(database: Database) -> None:
    await add_device(database, "ann", token="")
    await add_device(database, "ann")


CALL_BACKS: dict[str, tuple[Callable[[Database], Awaitable[None]], str]] = {
    "disabled and enabled": (disable, "USER_DISABLED"),
    "unregistered and registered": (sign_out_and_in, "DEVICE_GONE"),
    "token moved": (give_token_away, "DEVICE_GONE"),
    "token given up": (register_without_token, "DEVICE_GONE"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_cancel_in_flight_is_not_retried(database: Database, clock: FakeClock, failure: str) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    provider = ScriptedProvider(FAILURES[failure], gated=True)
    async with running(make_worker(database, clock, provider)):
        await wait_until(lambda: provider.under_way == 1)
        assert [await cancel(database, sent.notification_id) for _ in range(2)] == [1, 0]
        if failure == "unregistered":
            await add_device(database, "ann", token="newer")
        assert await shown(database, sent) == ["ann IN_FLIGHT"]
        provider.gate.set()
        await until_shown(database, "ann CANCELLED", of=sent)
    assert len(provider.asked) == 1


@pytest.mark.parametrize("kind", CALL_BACKS)
async def test_recalled_in_flight_is_not_retried(database: Database, clock: FakeClock, kind: str) -> None:
    call_back, reason = CALL_BACKS[kind]
    await couple(database)
    sent = message()
    await accept(database, sent)
    provider = ScriptedProvider(FAILURES["unavailable"], gated=True)
    async with running(make_worker(database, clock, provider)):
        await wait_until(lambda: provider.under_way == 1)
        await call_back(database)
        provider.gate.set()
        await until_shown(database, f"ann CANCELLED {reason}", of=sent)
    assert len(provider.asked) == 1


async def test_cancel_in_flight_that_succeeds_is_sent(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent, silent = message(), wake(1, exclude_user_id="bob")
    await accept(database, sent, silent)
    provider = ScriptedProvider(gated=True)
    async with running(make_worker(database, clock, provider)):
        await wait_until(lambda: provider.under_way == 2)
        assert [await cancel(database, one.notification_id) for one in (sent, silent)] == [1, 1]
        provider.gate.set()
        await until_shown(database, "ann SENT", of=sent)
        await until_shown(database, "ann SENT", of=silent)
    assert await value_of(database, "SELECT count(answer_by) FROM deliveries") == 0, "it is not sent again"


async def test_cancel_of_a_resent_wake_up_is_not_counted(database: Database, clock: FakeClock) -> None:
    await couple(database)
    silent = wake(1, exclude_user_id="bob")
    await accept(database, silent)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann SENT", of=silent)
        provider.gate.clear()
        await clock.advance(20)
        await wait_until(lambda: provider.under_way == 1)
        assert await cancel(database, silent.notification_id) == 0
        provider.script.append(FAILURES["unavailable"])
        provider.gate.set()
        await until_shown(database, "ann SENT", of=silent)
    assert await value_of(database, "SELECT count(answer_by) FROM deliveries") == 0


@pytest.mark.parametrize("left", ["given back", "lease over"])
async def test_cancel_in_flight_ends_with_its_crashed_worker(database: Database, clock: FakeClock, left: str) -> None:
    await couple(database)
    sent, other = message(), message(Target(user_id="bob"))
    await accept(database, sent, other)
    await claim(database, LEASE)
    assert await cancel(database, sent.notification_id) == 1
    async with database.transaction() as conn:
        if left == "given back":
            assert await queue.release(conn, [LEASE]) == 2
        else:
            await conn.execute("UPDATE deliveries SET lease_until = syncbeat_now() - interval '1 s'")
            assert (await queue.rescue(conn, 10)).rescued == 2
    assert await shown(database, sent, other) == ["ann CANCELLED", "bob PENDING"]
    assert await value_of(database, "SELECT sum(attempts) FROM deliveries") == (0 if left == "given back" else 2)


async def test_cancel_in_flight_skips_the_fallback_provider(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent, other = message(), message(Target(user_id="bob"))
    await accept(database, sent, other)
    first = ScriptedProvider(FAILURES["unavailable"], FAILURES["unavailable"], gated=True)
    second = ScriptedProvider()
    async with running(make_worker(database, clock, first, app={"fallback": second})):
        await wait_until(lambda: first.under_way == 2)
        assert await cancel(database, sent.notification_id) == 1
        first.gate.set()
        await until_shown(database, "ann CANCELLED", of=sent)
        await until_shown(database, "bob SENT", of=other)
    assert [d.user_id for d in second.asked] == ["bob"]


async def test_cancel_in_flight_is_not_redriven(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    provider = ScriptedProvider(FAILURES["rejected"], gated=True)
    async with running(make_worker(database, clock, provider)):
        await wait_until(lambda: provider.under_way == 1)
        await cancel(database, sent.notification_id)
        provider.gate.set()
        await until_shown(database, "ann CANCELLED", of=sent)
    async with database.transaction() as conn:
        assert await lifecycle_store.redrive(conn, APP, DeliveryFilter(user_id="ann")) == 0


@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        (Preferences(muted_types=("news",)), "SUPPRESSED MUTED"),
        (Preferences(quiet_hours=QuietHours(12 * 60, 13 * 60, "")), "HELD QUIET_HOURS"),
    ],
    ids=["muted", "quiet"],
)
async def test_preferences_set_in_flight_apply_to_the_next_attempt(
    database: Database, clock: FakeClock, wanted: Preferences, state: str
) -> None:
    await couple(database)
    sent = message(type="news", patient=True)
    await accept(database, sent)
    provider = ScriptedProvider(FAILURES["unavailable"], gated=True)
    async with running(make_worker(database, clock, provider)):
        await wait_until(lambda: provider.under_way == 1)
        await make_directory(database).set_preferences(APP, "ann", wanted, by_user=False)
        provider.gate.set()
        await until_shown(database, "ann PENDING UNAVAILABLE", of=sent)
        await until_due(database, clock)
        await until_shown(database, f"ann {state}", of=sent)
    assert len(provider.asked) == 1
