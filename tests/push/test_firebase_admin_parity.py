"""Tests our sender against firebase-admin's own on the same fake: what it puts on the wire, and makes of answers.

firebase-admin's URL is private to it. It is set in this test and in the bench, nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import firebase_admin
import pytest
from firebase_admin import exceptions, messaging
from google.auth.credentials import Credentials as GoogleCredentials

from syncbeat_devtools.fake_fcm import FakeFcm, running_fake_fcm
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.model import Content, Kind, Lane, Reason, Verdict
from syncbeat_server.push.providers import HttpRule, Message
from syncbeat_server.push.providers.fcm import AccessTokens, FcmProvider
from tests.support.claimed_delivery import MESSAGE

pytestmark = pytest.mark.http

DELIVERY = replace(MESSAGE, ttl_s=3600.9)
TOPIC_OF_K = "glTDKakoUPbVOd03b0gW7idkUX2l4CNV"
CONTENTS = {
    "a title": Content(title="Anna"),
    "everything": Content(
        title='Anna "A"\n',
        body="schrieb äöü 😀 7777777",
        data={"k": "v\\", "7777777s": "3600s"},
        image_url="https://example.org/i.png",
        sound="ping",
        badge=3,
        click_action="https://example.org/open",
        channel_id="c",
    ),
    "data alone": Content(data={"k": "v"}),
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm() as running:
        yield running


@pytest.fixture
def account(fake: FakeFcm, tmp_path: Path) -> Path:
    fake.write_service_account(tmp_path / "account.json")
    return tmp_path / "account.json"


@pytest.fixture
async def ours(fake: FakeFcm, account: Path) -> AsyncIterator[FcmProvider]:
    clock = SystemClock()
    provider = FcmProvider(AccessTokens(account, clock), fake.base_url, HttpRule(10), clock)
    yield provider
    await provider.close()


class OneToken(GoogleCredentials):
    """An access token that is there. A service account's own would block the loop that the fake runs on."""

    def __init__(self, token: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # google-auth leaves it untyped
        self.token = token

    def refresh(self, request: object) -> None:
        """It stays as it is."""


@pytest.fixture
async def theirs(fake: FakeFcm, account: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[firebase_admin.App]:
    service: Any = vars(messaging)["_MessagingService"]
    monkeypatch.setattr(service, "FCM_URL", fake.base_url + "/v1/projects/{0}/messages:send")
    tokens = AccessTokens(account, SystemClock())
    credential = OneToken(await tokens.current())
    app = firebase_admin.initialize_app(credential, {"projectId": tokens.project_id}, name="reference")
    yield app
    # Not delete_app: it would run a loop of its own inside this one.
    vars(firebase_admin)["_apps"].pop("reference")
    for used in vars(app)["_services"].values():
        await vars(used)["_async_client"].aclose()


def as_firebase_would(message: Message) -> messaging.Message:
    """The same message, told to firebase-admin field by field."""
    delivery, content = message.delivery, message.content
    shown, sync = content.visible, delivery.kind is Kind.SYNC
    data = {**content.data, "delivery_id": delivery.delivery_id, "ack_token": message.ack_token}
    if sync:
        data |= {"syncbeat": "sync", "type": delivery.type, "scope": delivery.scope, "epoch": delivery.epoch}
        data["sequence"] = str(delivery.sequence)
    high = delivery.lane is Lane.HIGH
    link = content.click_action if content.click_action.startswith("https://") else None
    data |= {"click_action": link} if link else {}
    return messaging.Message(
        token=delivery.registration_token,
        data=data,
        notification=messaging.Notification(content.title or None, content.body or None, content.image_url or None)
        if shown
        else None,
        android=messaging.AndroidConfig(
            collapse_key=delivery.collapse_key or ("sync" if sync and not content.is_alert else None),
            priority="high" if high else "normal",
            ttl=timedelta(seconds=int(delivery.ttl_s)),
            notification=messaging.AndroidNotification(
                tag=delivery.collapse_key or delivery.delivery_id,
                sound=content.sound or None,
                default_sound=None if content.sound else True,
                click_action=None if link else content.click_action or None,
                channel_id=content.channel_id or None,
                notification_count=content.badge,
            )
            if shown
            else None,
        ),
        apns=messaging.APNSConfig(
            headers={
                "apns-collapse-id": delivery.collapse_key or delivery.delivery_id,
                "apns-push-type": "alert" if shown else "background",
                "apns-priority": "10" if shown and high else "5",
            },
            payload=messaging.APNSPayload(
                messaging.Aps(
                    content_available=None if shown else True,
                    sound=content.sound or ("default" if shown else None),
                    badge=content.badge,
                    category=None if link else content.click_action or None,
                    mutable_content=True if content.image_url else None,
                )
            ),
        ),
        webpush=messaging.WebpushConfig(
            headers={"TTL": str(int(delivery.ttl_s)), "Urgency": "high" if high else "normal"}
            # Of "k", by hand: printf k | sha256sum | xxd -r -p | head -c 24 | basenc --base64url
            | ({"Topic": TOPIC_OF_K} if delivery.collapse_key else {}),
            notification=messaging.WebpushNotification(tag=delivery.collapse_key or delivery.delivery_id)
            if shown
            else None,
            fcm_options=messaging.WebpushFCMOptions(link) if link and shown else None,
        ),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
async def test_firebase_admin_sends_the_same_message(
    fake: FakeFcm, ours: FcmProvider, theirs: firebase_admin.App, content: Content, kind: Kind, lane: Lane
) -> None:
    collapse_key = "k" if kind is Kind.MESSAGE else ""
    delivery = replace(DELIVERY, kind=kind, lane=lane, content=content, collapse_key=collapse_key)
    if kind is Kind.SYNC:
        delivery = replace(delivery, scope='a "scope"', epoch="e", sequence=42)
    message = Message(delivery, content, "default.ack")
    assert (await ours.send(message)).verdict is Verdict.SENT
    answer = await messaging.send_each_async([as_firebase_would(message)], app=theirs)
    assert answer.success_count == 1
    sent, reference = (dict(record.message) for record in fake.deliveries())
    # The one thing that firebase-admin's caller would have to work out, and that differs from one claim to the next.
    expiry = int(sent["apns"]["headers"].pop("apns-expiration"))
    assert expiry == delivery.claimed_at.timestamp() + 3600, "by the database's clock, not by this machine's"
    assert sent == reference


CLASSES: dict[str, tuple[type[Exception], Verdict, Reason]] = {
    "unregistered": (messaging.UnregisteredError, Verdict.DEAD_TOKEN, Reason.UNREGISTERED),
    "sender-mismatch": (messaging.SenderIdMismatchError, Verdict.REJECTED, Reason.WRONG_SENDER),
    "quota": (messaging.QuotaExceededError, Verdict.RETRY, Reason.THROTTLED),
    "third-party-auth": (messaging.ThirdPartyAuthError, Verdict.RETRY, Reason.PROVIDER_CONFIG),
    "bad-payload": (exceptions.InvalidArgumentError, Verdict.REJECTED, Reason.REJECTED),
    "bad-token": (exceptions.InvalidArgumentError, Verdict.REJECTED, Reason.REJECTED),
    "404": (exceptions.NotFoundError, Verdict.RETRY, Reason.PROVIDER_CONFIG),
    "401": (exceptions.UnauthenticatedError, Verdict.RETRY, Reason.PROVIDER_CONFIG),
    # firebase-admin does not retry it, nor say that it is transient.
    "502": (exceptions.UnknownError, Verdict.RETRY, Reason.UNAVAILABLE),
    "reset": (exceptions.UnknownError, Verdict.RETRY, Reason.AMBIGUOUS),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fault", CLASSES)
async def test_firebase_admin_classifies_errors_alike(
    ours: FcmProvider, theirs: firebase_admin.App, fault: str
) -> None:
    raised, verdict, reason = CLASSES[fault]
    token = f"fault:{fault}:*"
    outcome = await ours.send(Message(replace(DELIVERY, registration_token=token), CONTENTS["a title"], "a.k"))
    answer = await messaging.send_each_async([messaging.Message(token=token)], app=theirs)
    assert type(answer.responses[0].exception) is raised
    assert (outcome.verdict, outcome.reason) == (verdict, reason)


async def test_firebase_admin_batch_error_costs_the_others_nothing(fake: FakeFcm, ours: FcmProvider) -> None:
    """firebase-admin raises for the whole batch when one answer is no JSON, although FCM took the others."""
    tokens = ["one", "fault:not-json:*", "fault:503:*", "other"]
    outcomes = await asyncio.gather(
        *(ours.send(Message(replace(DELIVERY, registration_token=t), CONTENTS["a title"], "a.k")) for t in tokens)
    )
    assert [outcome.verdict for outcome in outcomes] == [Verdict.SENT, Verdict.SENT, Verdict.RETRY, Verdict.SENT]
    assert fake.stats().requests == 4
