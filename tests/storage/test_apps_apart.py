"""What one app does, or its provider does not, is not felt by another; and what else wakes a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import cast

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.dependencies import DeliveryDependencies
from syncbeat_server.push.delivery.worker import DeliveryWorker, WorkerRule
from syncbeat_server.push.model import Blame, Outcome, Reason, Target, Verdict
from syncbeat_server.push.providers import Message, Provider
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.postgres.pg_notify import PgNotifier, listen
from syncbeat_server.storage.redis.token_bucket import TokenBucket
from tests.conftest import DatabaseUrls
from tests.fakes import FakeClock, wait_until
from tests.storage.doubles import ScriptedProvider, Streams, Unlimited, channel
from tests.storage.stage import accept, couple, directory, message, shown, until, value_of
from tests.storage.workers import make_worker, running, until_shown

UNAVAILABLE = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)


class Flood(ScriptedProvider):
    """Stops after so many more messages than it had when it was told to go on."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = self._until = most

    def sends_more_than(self, count: int) -> bool:
        """Whether it goes on."""
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
    """How many of the flood's messages were sent before each of its own."""

    def __init__(self, flood: ScriptedProvider) -> None:
        super().__init__()
        self._flood = flood
        self.at: list[int] = []

    def came(self, count: int) -> bool:
        """Whether so many have come."""
        return len(self.at) >= count

    async def send(self, message: Message) -> Outcome:
        self.at.append(len(self._flood.asked))
        return await super().send(message)


def worker_of(database: Database, **providers: Provider) -> DeliveryWorker:
    clock = SystemClock()
    channels: dict[str, Channel] = {app_id: channel(provider, clock, 50) for app_id, provider in providers.items()}
    deps = DeliveryDependencies(database, channels, Streams().live, cast(TokenBucket, Unlimited()), clock)
    return DeliveryWorker(deps, WorkerRule(poll_s=0.2))


@pytest.fixture
async def tenants(database: Database) -> Database:
    """Two apps with a phone each."""
    for app_id in ("calm", "wild"):
        made = Registration(app_id, "ann", "phone", Platform.ANDROID, "t", "", "")
        await directory(database).register(made, "test", by_user=False)
    return database


async def test_a_provider_that_hangs_holds_up_its_own_app_only(tenants: Database) -> None:
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


async def test_a_flood_of_one_app_leaves_the_other_its_turn(tenants: Database) -> None:
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


async def test_while_a_provider_is_down_nothing_is_claimed_and_no_attempt_is_lost(
    database: Database, clock: FakeClock
) -> None:
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


async def test_a_second_provider_serves_while_the_first_is_down(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = [message() for _ in range(20)]
    await accept(database, *sent)
    first, second = ScriptedProvider(*[UNAVAILABLE] * 99), ScriptedProvider()
    async with running(make_worker(database, clock, first, app={"fallback": second}, in_flight=4)):
        for one in sent:
            await until_shown(database, "ann SENT", of=one)
    assert len(second.asked) == 20
    assert len(first.asked) < 12, "the breaker spares it"


async def test_what_may_have_arrived_is_not_sent_another_way(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    ambiguous = Outcome(Verdict.RETRY, Reason.AMBIGUOUS)
    first, second = ScriptedProvider(ambiguous), ScriptedProvider()
    async with running(make_worker(database, clock, first, app={"fallback": second})):
        await until_shown(database, "ann PENDING AMBIGUOUS", of=sent)
    assert second.asked == []
    assert await value_of(database, "SELECT ambiguous FROM deliveries")


async def test_a_wrong_configuration_burns_no_attempts(database: Database, clock: FakeClock) -> None:
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


async def test_apns_credentials_that_are_refused_stop_iphones_and_not_android(
    database: Database, clock: FakeClock
) -> None:
    await couple(database)
    iphone = Registration("default", "bob", "iphone", Platform.IOS, "token-of-bobs-iphone", "", "")
    await directory(database).register(iphone, "test", by_user=False)
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


async def test_a_notice_of_the_database_wakes_who_listens_and_again_after_it_was_away(
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
