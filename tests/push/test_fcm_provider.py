"""The FCM provider against the fake FCM, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncbeat_devtools.fake_fcm import FakeFcm, FakeFcmSettings, running_fake_fcm
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.model import Blame, Content, Kind, Lane, Outcome, Reason, Verdict
from syncbeat_server.push.providers import HttpRule, Message
from syncbeat_server.push.providers.fcm import AccessTokens, FcmProvider
from tests.support.claimed_delivery import MESSAGE
from tests.support.fake_clock import ahead, settle, wait_until

pytestmark = pytest.mark.http

_DELIVERY = replace(
    MESSAGE, delivery_id="d-1", content=Content(title="Anna", body="wrote something", data={"k": "v"}, badge=2)
)


def to(token: str, **changes: Any) -> Message:
    delivery = replace(_DELIVERY, registration_token=token, **changes)
    return Message(delivery, delivery.content, "default.ack")


DELIVERY = to("phone-1")


@asynccontextmanager
async def providing(fake: FakeFcm, folder: Path, **arguments: Any) -> AsyncIterator[FcmProvider]:
    account = folder / "account.json"
    fake.write_service_account(account)
    clock = SystemClock()
    base_url, rule = arguments.pop("base_url", fake.base_url), HttpRule(**{"max_in_flight": 50, **arguments})
    provider = FcmProvider(AccessTokens(account, clock), base_url, rule, clock)
    try:
        yield provider
    finally:
        await provider.close()


@pytest.fixture(params=["http", "https"])
async def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm(FakeFcmSettings(tls=request.param == "https")) as running:
        if running.ca_file is not None:
            monkeypatch.setenv("SSL_CERT_FILE", str(running.ca_file))
        yield running


@pytest.fixture
async def provider(fake: FakeFcm, tmp_path: Path) -> AsyncIterator[FcmProvider]:
    async with providing(fake, tmp_path) as opened:
        yield opened


async def test_fcm_message_resent_is_shown_once(fake: FakeFcm, provider: FcmProvider) -> None:
    first, again = await provider.send(DELIVERY), await provider.send(DELIVERY)
    assert (first.verdict, first.reason, first.retry_after_s) == (Verdict.SENT, Reason.NONE, None)
    assert first.provider_message_id.startswith("projects/demo-project/messages/")
    assert first.provider_message_id != again.provider_message_id
    device = fake.device("phone-1")
    assert (device.shown, device.replaced, len(device.on_screen)) == (1, 1, 1)
    message = fake.deliveries()[0].message
    assert message["notification"] == {"title": "Anna", "body": "wrote something"}
    assert message["data"] == {"k": "v", "delivery_id": "d-1", "ack_token": "default.ack"}
    assert (message["android"]["priority"], message["android"]["ttl"]) == ("high", "3600s")
    assert (message["apns"]["headers"]["apns-priority"], message["apns"]["payload"]["aps"]["badge"]) == ("10", 2)


async def test_fcm_sync_shows_nothing_and_carries_the_cursor(fake: FakeFcm, provider: FcmProvider) -> None:
    sync = to("p", kind=Kind.SYNC, content=Content(), scope="couple:1", epoch="e", sequence=42, lane=Lane.NORMAL)
    assert (await provider.send(sync)).verdict is Verdict.SENT
    [record] = fake.device("p").data_messages
    assert record.message["data"] == {
        "delivery_id": "d-1",
        "ack_token": "default.ack",
        "syncbeat": "sync",
        "type": "note",
        "scope": "couple:1",
        "epoch": "e",
        "sequence": "42",
    }
    assert record.message["android"]["collapse_key"] == "sync"
    assert record.message["apns"]["headers"]["apns-push-type"] == "background"
    assert record.message["apns"]["payload"] == {"aps": {"content-available": 1}}


ANSWERS = {
    "unregistered": (Verdict.DEAD_TOKEN, Reason.UNREGISTERED, None),
    "404": (Verdict.RETRY, Reason.PROVIDER_CONFIG, None),
    "sender-mismatch": (Verdict.REJECTED, Reason.WRONG_SENDER, None),
    "bad-token": (Verdict.REJECTED, Reason.REJECTED, None),
    "bad-token-field": (Verdict.INVALID_TOKEN, Reason.UNREGISTERED, None),
    "bad-payload": (Verdict.REJECTED, Reason.REJECTED, None),
    "quota": (Verdict.RETRY, Reason.THROTTLED, None),
    "quota+30": (Verdict.RETRY, Reason.THROTTLED, 30.0),
    "third-party-auth": (Verdict.RETRY, Reason.PROVIDER_CONFIG, None),
    "500": (Verdict.RETRY, Reason.UNAVAILABLE, None),
    "502": (Verdict.RETRY, Reason.UNAVAILABLE, None),
    "503": (Verdict.RETRY, Reason.UNAVAILABLE, None),
    "503+12": (Verdict.RETRY, Reason.UNAVAILABLE, 12.0),
    "reset": (Verdict.RETRY, Reason.AMBIGUOUS, None),
}


async def test_fcm_response_is_classified_and_not_retried_here(fake: FakeFcm, provider: FcmProvider) -> None:
    for fault, (verdict, reason, retry_after_s) in ANSWERS.items():
        before = fake.stats().requests
        outcome = await provider.send(to(f"fault:{fault}:1"))
        blame = {"404": Blame.APP, "third-party-auth": Blame.PLATFORM}.get(fault, Blame.MESSAGE)
        assert outcome == Outcome(verdict, reason, retry_after_s=retry_after_s, blame=blame), fault
        assert fake.stats().requests - before == 1, fault
    assert fake.stats().accepted == 0
    assert fake.stats().token_calls == 1


async def test_fcm_retry_after_date_counts_from_now(provider: FcmProvider) -> None:
    outcome = await provider.send(to("fault:quota+300d:1"))
    assert outcome.reason is Reason.THROTTLED
    assert outcome.retry_after_s is not None
    assert 290 < outcome.retry_after_s <= 300


async def test_fcm_accepted_before_an_error_is_shown_once(fake: FakeFcm, provider: FcmProvider) -> None:
    for fault, reason in (("accepted-503", Reason.UNAVAILABLE), ("accepted-reset", Reason.AMBIGUOUS)):
        token = f"fault:{fault}:1"
        assert await provider.send(to(token)) == Outcome(Verdict.RETRY, reason)
        assert (await provider.send(to(token))).verdict is Verdict.SENT
        assert (fake.device(token).shown, fake.device(token).replaced) == (1, 1)


async def test_fcm_acceptance_with_nonsense_body_is_acceptance(fake: FakeFcm, provider: FcmProvider) -> None:
    assert await provider.send(to("fault:not-json:1")) == Outcome(Verdict.SENT)
    assert fake.stats().accepted == 1


async def test_fcm_timeout_is_ambiguous(fake: FakeFcm, provider: FcmProvider) -> None:
    sending = asyncio.create_task(provider.send(to("fault:hang:1")))
    await wait_until(lambda: fake.stats().hanging == 1)
    with ahead(20.0):
        assert await sending == Outcome(Verdict.RETRY, Reason.AMBIGUOUS)
    assert (await provider.send(DELIVERY)).verdict is Verdict.SENT


async def test_fcm_connect_timeout_is_unsent(fake: FakeFcm, tmp_path: Path) -> None:
    async with providing(fake, tmp_path, max_in_flight=1) as provider:
        first = asyncio.create_task(provider.send(to("fault:hang:1")))
        await wait_until(lambda: fake.stats().hanging == 1)
        second = asyncio.create_task(provider.send(DELIVERY))
        await settle()  # it waits for the connection
        with ahead(6.0):
            assert await second == Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
        fake.release()
        assert (await first).verdict is Verdict.SENT


async def test_fcm_connection_refused_is_unsent(fake: FakeFcm, tmp_path: Path, closed_port: int) -> None:
    async with providing(fake, tmp_path, base_url=f"http://127.0.0.1:{closed_port}") as provider:
        assert await provider.send(DELIVERY) == Outcome(Verdict.RETRY, Reason.UNAVAILABLE)


async def test_fcm_access_token_refused_is_renewed_once_for_all(fake: FakeFcm, provider: FcmProvider) -> None:
    assert (await provider.send(DELIVERY)).verdict is Verdict.SENT
    fake.token_endpoint.active_tokens.clear()
    outcomes = await asyncio.gather(*(provider.send(to(f"p{n}")) for n in range(40)))
    assert {outcome.verdict for outcome in outcomes} == {Verdict.SENT}
    stats = fake.stats()
    assert stats.token_calls == 2
    assert stats.statuses == {200: 41, 401: 40}


async def test_fcm_access_token_always_refused_is_misconfiguration(fake: FakeFcm, provider: FcmProvider) -> None:
    outcome = await provider.send(to("fault:401:*"))
    assert outcome == Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)
    assert (fake.stats().requests, fake.stats().token_calls) == (2, 2)


async def test_fcm_access_token_is_shared_by_first_sends(fake: FakeFcm, provider: FcmProvider) -> None:
    outcomes = await asyncio.gather(*(provider.send(to(f"p{n}")) for n in range(100)))
    assert {outcome.verdict for outcome in outcomes} == {Verdict.SENT}
    assert (fake.stats().token_calls, fake.stats().connections <= 52) == (1, True)
