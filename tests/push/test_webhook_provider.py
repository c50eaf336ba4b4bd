"""The webhook provider against a real HTTP server: what a relay is told, and what its answers mean."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from syncbeat_server.clock import SystemClock
from syncbeat_server.push.model import Blame, Content, Outcome, Reason, Verdict
from syncbeat_server.push.providers import HttpRule, Message
from syncbeat_server.push.providers.private_addresses import is_public
from syncbeat_server.push.providers.webhook import RelayAddress, WebhookProvider
from tests.push.test_firebase_admin_parity import DELIVERY

pytestmark = pytest.mark.http

MESSAGE = Message(DELIVERY, Content(title="Anna", data={"k": "v"}), "default.ack")
RETRY, CONFIG = Verdict.RETRY, Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)


CLOCK = SystemClock()
RULE = HttpRule(10, timeout_s=20.0)


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
        made = WebhookProvider(RelayAddress(str(server.make_url("/push")), "a-relay-token", private=True), RULE, CLOCK)
        yield made
        await made.close()


async def test_webhook_request_carries_all_a_push_needs(relay: Relay, provider: WebhookProvider) -> None:
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
        (404, "", Outcome(Verdict.REJECTED, Reason.REJECTED)),
        (404, "<html>", Outcome(Verdict.REJECTED, Reason.REJECTED)),
        (403, "", CONFIG),
        (401, '{"unregistered": true}', CONFIG),
        (422, "", Outcome(Verdict.REJECTED, Reason.REJECTED)),
        (429, "", Outcome(RETRY, Reason.THROTTLED)),
        (302, "", Outcome(RETRY, Reason.UNAVAILABLE)),
        (503, "", Outcome(RETRY, Reason.UNAVAILABLE)),
        (0, "", Outcome(RETRY, Reason.AMBIGUOUS)),
    ],
)
async def test_webhook_response_is_classified(
    relay: Relay, provider: WebhookProvider, status: int, body: str, outcome: Outcome
) -> None:
    relay.status, relay.body = status, body
    assert await provider.send(MESSAGE) == outcome
    assert len(relay.got) == 1, "nothing is tried again here"


async def test_webhook_response_may_be_compressed(relay: Relay, provider: WebhookProvider) -> None:
    relay.status, relay.body, relay.headers = 410, '{"unregistered": true}', {"content-encoding": "gzip"}
    assert await provider.send(MESSAGE) == Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)
    relay.status, relay.body, relay.headers = 200, "", {"content-encoding": "br"}
    assert await provider.send(MESSAGE) == Outcome(Verdict.SENT)


async def test_webhook_connection_refused_is_unsent(closed_port: int) -> None:
    provider = WebhookProvider(RelayAddress(f"http://127.0.0.1:{closed_port}", private=True), RULE, CLOCK)
    assert await provider.send(MESSAGE) == Outcome(RETRY, Reason.UNAVAILABLE)
    await provider.close()


@pytest.mark.parametrize("status", [429, 503, 500, 401])
@pytest.mark.parametrize(("header", "seconds"), [("17", 17.0), ("7200", 3600.0), ("soon", None), ("far", 3600.0)])
async def test_webhook_retry_after_is_honoured(
    relay: Relay, provider: WebhookProvider, status: int, header: str, seconds: float | None
) -> None:
    header = header.replace("far", "Fri, 01 Jan 2100 00:00:00 GMT")
    relay.status, relay.headers = status, {"retry-after": header}
    outcome = await provider.send(MESSAGE)
    assert (outcome.verdict, outcome.retry_after_s) == (RETRY, seconds)


async def test_webhook_retry_after_beside_an_acceptance_is_ignored(relay: Relay, provider: WebhookProvider) -> None:
    relay.status, relay.headers = 200, {"retry-after": "17"}
    assert await provider.send(MESSAGE) == Outcome(Verdict.SENT)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_webhook_redirect_is_not_followed(relay: Relay, provider: WebhookProvider, status: int) -> None:
    relay.status, relay.headers = status, {"location": "/push?again=1"}
    assert await provider.send(MESSAGE) == Outcome(RETRY, Reason.UNAVAILABLE)
    assert len(relay.got) == 1


async def test_webhook_in_a_private_network_needs_a_setting(relay: Relay) -> None:
    """By names, of which nobody knows where they lead before they are asked; `0x7f.1` is an address to the resolver."""
    app = web.Application()
    app.router.add_post("/push", relay.answer)
    async with TestServer(app) as server:
        for host in ("localhost", "0x7f.1"):
            for private, outcome in ((False, Outcome(RETRY, Reason.UNAVAILABLE)), (True, Outcome(Verdict.SENT))):
                made = WebhookProvider(RelayAddress(f"http://{host}:{server.port}/push", private=private), RULE, CLOCK)
                assert await made.send(MESSAGE) == outcome, (host, private)
                await made.close()
    assert len(relay.got) == 2


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808")),
        *((address, False) for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254")),
        *((address, False) for address in ("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::")),
        *((address, False) for address in ("fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1")),
        *((address, False) for address in ("2002:7f00:1::", "::ffff:127.0.0.1", "ff02::1")),
    ],
)
def test_webhook_addresses_are_public_or_not(address: str, public: bool) -> None:
    assert is_public(address) == public
