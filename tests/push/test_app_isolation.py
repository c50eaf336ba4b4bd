"""Tests that no app feels what another does, or its provider does not; and what else wakes a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.push.model import Blame, Outcome, Reason, Target, Verdict
from syncbeat_server.push.providers import Message, Provider
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.pg_notify import PgNotifier, listen
from tests.support.build import make_directory, make_worker
from tests.support.databases import DatabaseUrls, open_database
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import accept, couple, message, shown, until, value_of
from tests.support.workers import running, until_shown

pytestmark = pytest.mark.store

UNAVAILABLE = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)


class Flood(ScriptedProvider):
    """Stops after so many more messages than it had when it was told to go on."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = self._until = most

    def sends_more_than(self, count: int) -> bool:
        """Return whether it goes on."""
        return len(self.asked) > count

    def go_on(self) -> None:
        """So many more."""
        self._until = len(self.asked) + self._most
        self.gate.set()

    async def send(self, message: Message) -> Outcome:
        if len(self.asked) >= self._until:
            self.gate.clear()
        return await super().send(message)


class Arrivals(ScriptedProvider):
    """Records how many of the flood's messages were sent before each of its own."""

    def __init__(self, flood: ScriptedProvider) -> None:
        super().__init__()
        self._flood = flood
        self.at: list[int] = []

    def came(self, count: int) -> bool:
        """Return whether so many have come."""
        return len(self.at) >= count

    async def send(self, message: Message) -> Outcome:
        self.at.append(len(self._flood.asked))
        return await super().send(message)


def worker_of(database: Database, **providers: Provider) -> DeliveryWorker:
    return make_worker(database, SystemClock(), providers, in_flight=50, poll_s=0.2)


@pytest.fixture
async def tenants(database: Database) -> Database:
    """Two apps with a phone each."""
    for app_id in ("calm", "wild"):
        made = Registration(app_id, "ann", "phone", Platform.ANDROID, "t", "", "")
        await make_directory(database).register(made, "test", by_user=False)
    return database


async def test_provider_hang_affects_its_own_app_only(tenants: Database) -> None:
    hangs = ScriptedProvider(gated=True)
    calm = Arrivals(hangs)
    await accept(tenants, *(message(Target(user_id="ann"), app_id="wild") for _ in range(500)))
    async with running(worker := worker_of(tenants, wild=hangs, calm=calm), patience_s=0.0):
        await wait_until(lambda: hangs.under_way == 50)
        for number in range(10):
            await accept(tenants, message(Target(user_id="ann"), app_id="calm"))
            worker.wake()
            await wait_until(partial(calm.came, number + 1))
        assert hangs.most_under_way == 50


async def test_flood_of_one_app_leaves_turns_to_others(tenants: Database) -> None:
    wild = Flood(most=400)
    calm = Arrivals(wild)
    for _ in range(10):
        await accept(tenants, *(message(Target(user_id="ann"), app_id="wild") for _ in range(500)))
    async with running(worker := worker_of(tenants, wild=wild, calm=calm), patience_s=0.0):
        for number in range(10):
            sent = len(wild.asked)
            wild.go_on()
            await wait_until(partial(wild.sends_more_than, sent))
            await accept(tenants, message(Target(user_id="ann"), app_id="calm"))
            before = len(wild.asked)
            worker.wake()
            await wait_until(partial(calm.came, number + 1))
            assert calm.at[-1] - before <= 200, "those under way, those being claimed, those claimed with it"
        assert len(wild.asked) < 5000, "the flood was still there"


async def test_provider_outage_claims_nothing_and_loses_no_attempt(database: Database, clock: FakeClock) -> None:
    await couple(database)
    provider = ScriptedProvider(*[UNAVAILABLE] * 6)
    sent = [message(ttl_s=7200.0) for _ in range(30)]
    await accept(database, *sent)
    async with running(make_worker(database, clock, provider, in_flight=5)):

        async def opened() -> bool:
            return len(provider.asked) >= 5

        await until(opened)
        await clock.advance(50)
        assert len(provider.asked) == 5
        assert await value_of(database, "SELECT sum(attempts) FROM deliveries") == 5

        async def all_sent() -> bool:
            await clock.advance(5.0)
            return bool(await value_of(database, "SELECT bool_and(state = 'SENT') FROM deliveries"))

        await until(all_sent)
    assert len(provider.asked) == 36


async def test_fallback_provider_serves_while_the_first_is_down(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = [message() for _ in range(20)]
    await accept(database, *sent)
    first, second = ScriptedProvider(*[UNAVAILABLE] * 99), ScriptedProvider()
    async with running(make_worker(database, clock, first, app={"fallback": second}, in_flight=4)):
        for one in sent:
            await until_shown(database, "ann SENT", of=one)
    assert len(second.asked) == 20
    assert len(first.asked) < 12, "the breaker spares it"


async def test_fallback_provider_gets_no_ambiguous_send(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    ambiguous = Outcome(Verdict.RETRY, Reason.AMBIGUOUS)
    first, second = ScriptedProvider(ambiguous), ScriptedProvider()
    async with running(make_worker(database, clock, first, app={"fallback": second})):
        await until_shown(database, "ann PENDING AMBIGUOUS", of=sent)
    assert second.asked == []
    assert await value_of(database, "SELECT ambiguous FROM deliveries")


async def test_misconfigured_provider_burns_no_attempts(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    refused = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)
    provider = ScriptedProvider(*[refused] * 3)
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann PENDING PROVIDER_CONFIG", of=sent)
        assert await value_of(database, "SELECT attempts FROM deliveries") == 0
        await until_shown(database, "ann SENT", of=sent, moving=clock)
    assert len(provider.asked) == 4
    assert {d.attempt for d in provider.asked} == {1}


class NoIphones(ScriptedProvider):
    """As FCM without a good key for APNs."""

    async def send(self, message: Message) -> Outcome:
        sent = await super().send(message)
        refused = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.PLATFORM)
        return refused if message.delivery.platform == "IOS" else sent


async def test_apns_credential_refusal_stops_ios_only(database: Database, clock: FakeClock) -> None:
    await couple(database)
    iphone = Registration("default", "bob", "iphone", Platform.IOS, "token-of-bobs-iphone", "", "")
    await make_directory(database).register(iphone, "test", by_user=False)
    to_iphone = Target(user_id="bob", device_id="iphone")
    refused = [message(to_iphone) for _ in range(5)]
    provider = NoIphones()
    async with running(make_worker(database, clock, provider)):
        for sent in refused:
            await accept(database, sent)
        for sent in refused:
            await until_shown(database, "bob PENDING PROVIDER_CONFIG", of=sent, moving=clock)
        later, to_ann = message(to_iphone), message()
        for sent in (later, to_ann):
            await accept(database, sent)
        await until_shown(database, "ann SENT", of=to_ann, moving=clock)
        await until_shown(database, "bob PENDING PROVIDER_CONFIG", of=later, moving=clock)
    assert len(provider.asked) == 6, "five to the iPhone and one to Ann's phone"
    assert await value_of(database, "SELECT max(attempts) FROM deliveries WHERE user_id = 'bob'") == 0


@pytest.fixture
async def another(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    async with open_database(database_urls.app_url, size=1, name="teller") as opened:
        yield opened


async def test_pg_notify_wakes_listeners_and_reconnects(
    database_urls: DatabaseUrls, another: Database, clock: FakeClock
) -> None:
    heard = 0

    def count() -> None:
        nonlocal heard
        heard += 1

    real = SystemClock()
    notices = PgNotifier(another, real)
    tasks = [asyncio.ensure_future(listen(database_urls.app_url, count, real)), asyncio.ensure_future(notices.run())]
    try:
        await wait_until(lambda: heard == 1, what="its own, by which it knows that notices come through")
        for _ in range(50):
            notices.notify()
        await wait_until(lambda: heard == 2, what="many are one")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await shown(another, message()) == []
