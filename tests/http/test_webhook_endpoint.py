"""The door of webhooks bounds what unknown callers can ask, and answers by what senders do with it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

import aiohttp
import pytest

from syncbeat_server.defaults import SignatureScheme
from syncbeat_server.errors import (
    AccessDenied,
    DeadlineExceeded,
    DependencyDown,
    EventIdReused,
    FieldReason,
    FieldViolation,
    InvalidRequest,
    Overloaded,
    RateLimited,
    SyncbeatError,
)
from syncbeat_server.http.webhooks.door import IngestRule
from syncbeat_server.http.webhooks.endpoint import MOST_BODY, DoorRule, serve_webhooks
from syncbeat_server.http.webhooks.model import SignatureFault, WebhookOutcome
from syncbeat_server.rpc.pipeline.client_address import full_address
from tests.support.fake_clock import START, ahead, wait_until
from tests.support.raw_http import connected, is_over
from tests.support.webhooks import Desk, body_of, made_secret, sign, source_of

pytestmark = pytest.mark.http

STRIPE = SignatureScheme.STRIPE
BODY = body_of(id="evt_1", type="user.created", subject="ann", at=int(START.timestamp()))
RULE = DoorRule(connections=8, bodies=4, headers=24)


class Answer(NamedTuple):
    """An answer of the door."""

    status: int
    headers: dict[str, str]
    text: str


PROXIES = (ipaddress.ip_network("127.0.0.0/8"),)
ADDRESS_OF = partial(full_address, trusted=PROXIES)


@asynccontextmanager
async def served(desk: Desk) -> AsyncIterator[int]:
    async with serve_webhooks("127.0.0.1:0", desk.door(), ADDRESS_OF, share_port=False, rule=RULE) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def desk() -> Desk:
    return Desk([source_of(scheme) for scheme in SignatureScheme], rule=IngestRule(most=2))


@pytest.fixture
async def port(desk: Desk) -> AsyncIterator[int]:
    async with served(desk) as port:
        yield port


async def post(
    port: int, source: str = "shop/stripe", body: bytes = BODY, headers: dict[str, str] | None = None
) -> Answer:
    """Send a webhook, signed as its source wants it unless headers are given."""
    if headers is None:
        scheme = SignatureScheme(source.partition("/")[2])
        headers = sign(scheme, made_secret(scheme), body, START)
    url = f"http://127.0.0.1:{port}/v1/webhooks/{source}"
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as answer:
        told = {name.lower(): value for name, value in answer.headers.items() if name.lower() != "date"}
        return Answer(answer.status, told, await answer.text())


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ({}, "127.0.0.1"),
        ({"x-forwarded-for": "203.0.113.9, 2001:db8::1"}, "2001:db8::1"),
        ({"X-Forwarded-For": "made up"}, "127.0.0.1"),
    ],
)
async def test_address_of_a_sender_is_the_one_that_a_trusted_proxy_forwards(
    desk: Desk, port: int, forwarded: dict[str, str], address: str
) -> None:
    scheme = SignatureScheme.STRIPE
    headers = sign(scheme, made_secret(scheme), BODY, START) | forwarded
    assert (await post(port, headers=headers)).status == 200
    assert desk.addresses == [address]


@pytest.mark.parametrize("scheme", SignatureScheme)
async def test_signed_webhook_is_ingested(desk: Desk, port: int, scheme: SignatureScheme) -> None:
    answer = await post(port, f"shop/{scheme}")
    assert (answer.status, json.loads(answer.text)) == (200, {"state": "ACCEPTED"})
    assert [event.event_id for event in desk.ingested] == ["evt_1"]


async def test_unknown_source_and_wrong_signature_are_answered_alike(desk: Desk, port: int) -> None:
    good = sign(STRIPE, made_secret(STRIPE), BODY, START)
    wrong = sign(STRIPE, made_secret(STRIPE, 1), BODY, START)
    answers = [
        await post(port, "shop/stripe", headers=wrong),
        await post(port, "shop/stripe", headers={}),
        await post(port, "shop/stripe", BODY + b" ", good),
        await post(port, "shop/paypal", headers=good),
        await post(port, "nobody/stripe", headers=good),
        await post(port, "shop/github", headers=good),
    ]
    assert len(set(map(str, answers))) == 1
    assert answers[0].status == 403
    assert not desk.ingested
    assert {where for where, _, _ in desk.counted} == {"/"}
    assert {fault for _, _, fault in desk.counted} == {*SignatureFault} - {SignatureFault.TIME}


@pytest.mark.parametrize("outcome", ["accepted", "duplicate", "stale", "failed"])
async def test_recorded_event_is_answered_200_after_its_commit(desk: Desk, port: int, outcome: str) -> None:
    desk.outcome, desk.hold = WebhookOutcome(outcome), asyncio.Event()
    sending = asyncio.create_task(post(port))
    await wait_until(lambda: bool(desk.ingested))
    assert not sending.done(), "nothing is answered before the commit"
    desk.hold.set()
    answer = await sending
    assert (answer.status, json.loads(answer.text)) == (200, {"state": outcome.upper()})


VIOLATION = FieldViolation("effects.tiers[0].user_id", "required", FieldReason.REQUIRED)
ERRORS: dict[str, tuple[SyncbeatError, dict[SignatureScheme, int], str | None]] = {
    "overload": (Overloaded("busy", retry_after_s=3.2), dict.fromkeys(SignatureScheme, 503), "4"),
    "database": (DependencyDown("PostgreSQL does not answer"), dict.fromkeys(SignatureScheme, 503), "1"),
    "deadline": (DeadlineExceeded("too late"), dict.fromkeys(SignatureScheme, 503), "1"),
    "rate": (RateLimited("10 a second", retry_after_s=9_999), dict.fromkeys(SignatureScheme, 429), "3600"),
    "mapping": (InvalidRequest(VIOLATION), dict.fromkeys(SignatureScheme, 422), None),
    "allow-list": (AccessDenied("wants SetUserTier"), dict.fromkeys(SignatureScheme, 422), None),
    "unforeseen": (SyncbeatError("not listed"), dict.fromkeys(SignatureScheme, 503), "60"),
    "reused id": (
        EventIdReused("came before with other content"),
        {
            SignatureScheme.STRIPE: 200,
            SignatureScheme.STANDARD_WEBHOOKS: 200,
            SignatureScheme.SVIX: 409,
            SignatureScheme.GITHUB: 409,
        },
        None,
    ),
}


@pytest.mark.parametrize(("error", "statuses", "retry_after"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("scheme", SignatureScheme)
async def test_event_not_recorded_is_answered_by_its_scheme(
    desk: Desk,
    port: int,
    scheme: SignatureScheme,
    error: SyncbeatError,
    statuses: dict[SignatureScheme, int],
    retry_after: str | None,
) -> None:
    desk.outcome = error
    answer = await post(port, f"shop/{scheme}")
    told = json.loads(answer.text)
    assert (answer.status, answer.headers.get("retry-after")) == (statuses[scheme], retry_after)
    assert told["reason"] == error.reason
    assert answer.headers["content-type"] == (
        "application/json" if answer.status == 200 else "application/problem+json"
    )
    aborts = answer.headers.get("webhook-delivery") == "abort-message"
    assert aborts == (scheme is SignatureScheme.SVIX and isinstance(error, EventIdReused)), "Svix repeats it no more"


async def test_payload_that_does_not_fit_is_422(desk: Desk, port: int) -> None:
    answer = await post(port, body=body_of(id="evt_1", type="user.created", at="soon"))
    assert (answer.status, json.loads(answer.text)["detail"]) == (422, "occurred: no number")
    assert not desk.ingested


async def test_ingests_beyond_their_bound_are_told_to_come_again(desk: Desk, port: int) -> None:
    desk.hold = asyncio.Event()
    held = [asyncio.create_task(post(port)) for _ in range(2)]
    await wait_until(lambda: len(desk.ingested) == 2)
    answer = await post(port)
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    desk.hold.set()
    assert [one.status for one in await asyncio.gather(*held)] == [200, 200]


async def test_ingest_that_takes_too_long_is_postponed(desk: Desk, port: int) -> None:
    desk.hold = asyncio.Event()
    sending = asyncio.create_task(post(port))
    await wait_until(lambda: bool(desk.ingested))
    with ahead(desk.rule.within_s):
        answer = await sending
    assert (answer.status, json.loads(answer.text)["reason"]) == (503, "DEADLINE_EXCEEDED")


# -------------------------------------------------------------------------------------------------------------- bounds

HEAD = b"POST /v1/webhooks/shop/stripe HTTP/1.1\r\nhost: x\r\n"
STALLS = {
    "says nothing": b"",
    "half a line": HEAD[:20],
    "half a header": HEAD + b"x-slow: ",
    "no end of headers": HEAD,
    "half a body": HEAD + b"content-length: 1000\r\n\r\n{",
    "half a chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\n{",
    "no last chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
}


@pytest.mark.parametrize("sent", STALLS.values(), ids=STALLS)
async def test_client_that_stalls_is_disconnected(desk: Desk, port: int, sent: bytes) -> None:
    async with connected(port) as streams:
        streams[1].write(sent)
        assert (await post(port)).status == 200, "while it stalls others are served"
        with ahead(RULE.read_s):
            assert not await is_over(streams)
    assert len(desk.ingested) == 1


async def test_body_that_trickles_is_disconnected(port: int) -> None:
    async with connected(port) as (reader, writer):
        writer.write(HEAD + b"content-length: 100000\r\n\r\n")
        ended = asyncio.create_task(is_over((reader, writer)))

        def trickled() -> bool:
            writer.write(b" ")
            return ended.done()

        with ahead(RULE.read_s):
            await wait_until(trickled)


async def test_body_that_breaks_off_is_not_ingested(desk: Desk, port: int) -> None:
    signed = sign(STRIPE, made_secret(STRIPE), BODY, START)["stripe-signature"].encode()
    async with connected(port) as (_, writer):
        writer.write(HEAD + b"stripe-signature: " + signed + b"\r\ncontent-length: %d\r\n\r\n" % (len(BODY) + 1) + BODY)
        await writer.drain()
    assert (await post(port)).status == 200
    assert len(desk.ingested) == 1


HUGE = {
    "told": (HEAD + b"content-length: %d\r\n\r\n" % (MOST_BODY + 1), 413),
    "told as a terabyte": (HEAD + b"content-length: 1000000000000\r\n\r\n", 413),
    "in chunks": (
        HEAD
        + b"transfer-encoding: chunked\r\n\r\n"
        + b"10000\r\n"
        + b" " * 65_536
        + b"\r\n"
        + (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 4,
        413,
    ),
    "packed": (HEAD + b"content-encoding: gzip\r\ncontent-length: 10\r\n\r\n0123456789", 415),
    "line": (b"POST /" + b"x" * RULE.line + b" HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "header": (HEAD + b"x: " + b"x" * RULE.header * 2 + b"\r\n\r\n", 400),
    "headers": (HEAD + b"x: y\r\n" * RULE.headers + b"content-length: 0\r\n\r\n", 400),
    "other method": (b"GET /v1/webhooks/shop/stripe HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "other path": (b"POST /v1/webhooks HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", 404),
    "no HTTP": (b"\x16\x03\x01 <script>\r\n\r\n", 400),
    "two lengths": (HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}", 400),
    "length and chunks": (HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize(("sent", "status"), HUGE.values(), ids=HUGE)
async def test_request_beyond_the_bounds_is_a_problem(desk: Desk, port: int, sent: bytes, status: int) -> None:
    async with connected(port) as streams:
        streams[1].write(sent)
        head, _, body = (await is_over(streams)).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["status"] == status
    assert not desk.counted


async def test_largest_body_is_taken(port: int) -> None:
    body = BODY[:-1] + b" " * (MOST_BODY - len(BODY)) + b"}"
    assert len(body) == MOST_BODY
    assert (await post(port, body=body)).status == 200


async def test_connections_beyond_their_bound_end_the_oldest_unknown(desk: Desk, port: int) -> None:
    desk.hold = asyncio.Event()
    sending = asyncio.create_task(post(port))
    await wait_until(lambda: bool(desk.ingested))
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(port)) for _ in range(RULE.connections + 3)]
        for streams in held[:3]:
            await is_over(streams)
        desk.hold.set()
        assert (await sending).status == 200, "one whose signature was good is left alone"


async def test_bodies_beyond_their_bound_end_the_oldest(desk: Desk, port: int) -> None:
    async with AsyncExitStack() as stack:
        held = []
        for _ in range(RULE.bodies + 1):
            streams = await stack.enter_async_context(connected(port))
            streams[1].write(HEAD + b"expect: 100-continue\r\ncontent-length: 1000\r\n\r\n")
            await streams[0].readuntil(b"\r\n\r\n")
            held.append(streams)
        await is_over(held[0])
        assert (await post(port)).status == 200
    assert len(desk.ingested) == 1


@pytest.mark.parametrize("place", ["mapping", "ingest"])
async def test_unforeseen_error_is_answered_503_and_counted(
    desk: Desk, port: int, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if place == "ingest":
        desk.outcome = ZeroDivisionError("geheim")
    else:
        monkeypatch.setattr("syncbeat_server.http.webhooks.door.map_payload", lambda *_: 1 // 0)
    answer = await post(port)
    assert (answer.status, answer.headers["retry-after"]) == (503, "60")
    assert answer.headers["content-type"] == "application/problem+json"
    told = json.loads(answer.text)
    assert told["reason"] == "INTERNAL"
    assert "geheim" not in answer.text
    assert desk.counted == [("shop/stripe", WebhookOutcome.POSTPONED, None)]
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]
