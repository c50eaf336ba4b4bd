"""The webhook provider against a real HTTP server: what a relay is told, and what its answers mean."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from syncbeat_server.push.model import Blame, Content, Outcome, Reason, Verdict
from syncbeat_server.push.providers import Message
from syncbeat_server.push.providers.webhook import WebhookProvider
from tests.push.test_like_firebase_admin import DELIVERY

MESSAGE = Message(DELIVERY, Content(title="Anna", data={"k": "v"}), "default.ack")
RETRY, CONFIG = Verdict.RETRY, Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)


class Relay:
    """Answers what it is told to, and keeps what it got."""

    def __init__(self) -> None:
        self.status, self.body = 204, ""
        self.headers: dict[str, str] = {}
        self.got: list[tuple[str, dict[str, Any]]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.got.append((request.headers.get("authorization", ""), json.loads(await request.read())))
        if self.status == 0 and request.transport is not None:
            request.transport.close()
        told = web.Response(status=self.status or 200, text=self.body, headers=self.headers)
        if self.headers.get("content-encoding") == "gzip":
            told.body = gzip.compress(self.body.encode())
        return told


@pytest.fixture
async def relay() -> Relay:
    return Relay()


@pytest.fixture
async def provider(relay: Relay) -> AsyncIterator[WebhookProvider]:
    app = web.Application()
    app.router.add_post("/push", relay.answer)
    async with TestServer(app) as server:
        made = WebhookProvider(str(server.make_url("/push")), "a-relay-token", 10, 20.0)
        yield made
        await made.close()


async def test_a_relay_is_told_everything_a_push_needs(relay: Relay, provider: WebhookProvider) -> None:
    assert await provider.send(MESSAGE) == Outcome(Verdict.SENT)
    [(authorization, told)] = relay.got
    assert authorization == "Bearer a-relay-token"
    assert told["delivery_id"] == DELIVERY.delivery_id
    assert (told["registration_token"], told["ack_token"], told["ttl_s"]) == ("a-token", "default.ack", 3600)
    assert (told["content"]["title"], told["content"]["data"], told["priority"]) == ("Anna", {"k": "v"}, "HIGH")


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (202, "", Outcome(Verdict.SENT)),
        (404, '{"unregistered": true}', Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)),
        (410, '{"unregistered": true}', Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)),
        (410, "gone", Outcome(Verdict.REJECTED, Reason.REJECTED)),
        (404, "", CONFIG),
        (401, '{"unregistered": true}', CONFIG),
        (422, "", Outcome(Verdict.REJECTED, Reason.REJECTED)),
        (429, "", Outcome(RETRY, Reason.THROTTLED)),
        (302, "", Outcome(RETRY, Reason.UNAVAILABLE)),
        (503, "", Outcome(RETRY, Reason.UNAVAILABLE)),
        (0, "", Outcome(RETRY, Reason.AMBIGUOUS)),
    ],
)
async def test_what_its_answers_mean(
    relay: Relay, provider: WebhookProvider, status: int, body: str, outcome: Outcome
) -> None:
    relay.status, relay.body = status, body
    assert await provider.send(MESSAGE) == outcome
    assert len(relay.got) == 1, "nothing is tried again here"


async def test_a_relays_compressed_answer_is_read(relay: Relay, provider: WebhookProvider) -> None:
    relay.status, relay.body, relay.headers = 410, '{"unregistered": true}', {"content-encoding": "gzip"}
    assert await provider.send(MESSAGE) == Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)
    relay.status, relay.body, relay.headers = 200, "", {"content-encoding": "br"}
    assert await provider.send(MESSAGE) == Outcome(Verdict.SENT)


async def test_a_relay_that_is_not_there_was_surely_not_heard(closed_port: int) -> None:
    provider = WebhookProvider(f"http://127.0.0.1:{closed_port}", "", 1, 20.0)
    assert await provider.send(MESSAGE) == Outcome(RETRY, Reason.UNAVAILABLE)
    await provider.close()
