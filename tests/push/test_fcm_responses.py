"""Tests the FCM provider on answers that a proxy may have had its hands on, each written byte by byte."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from firebase_admin import _utils, messaging

from syncbeat_devtools.fake_fcm import running_fake_fcm
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from tests.push.test_fcm_provider import DELIVERY, providing

pytestmark = pytest.mark.http

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(write: Write) -> AsyncIterator[str]:
    """A server that answers one request after the other with whatever `write` writes."""

    served: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.extend(filter(None, [asyncio.current_task()]))
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b"accept-encoding: identity\r\n" in head
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            await write(writer)
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            writer.transport.abort()  # the client has heard enough

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*served)


def answer(head: str, body: bytes) -> bytes:
    """An answer, its head without the length."""
    return f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


UNREGISTERED = (
    b'{"error":{"code":404,"details":[{"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError",'
    b'"errorCode":"UNREGISTERED"}]}}'
)


async def outcome_of(parts: list[bytes], tmp_path: Path) -> Outcome:
    async def write(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            for _ in range(20):  # the client reads this part before the next comes
                await asyncio.sleep(0)

    async with (
        running_fake_fcm() as fake,
        answering(write) as base_url,
        providing(fake, tmp_path, base_url=base_url) as provider,
    ):
        return await provider.send(DELIVERY)


async def test_fcm_response_in_pieces(tmp_path: Path) -> None:
    whole = answer("404 Not Found", UNREGISTERED)
    outcome = await outcome_of([whole[:60], whole[60:90], whole[90:]], tmp_path)
    assert outcome == Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)


async def test_fcm_response_cut_off_counts_by_its_head(tmp_path: Path) -> None:
    cut = answer("200 OK", b'{"name":"x"}')[:-3]
    assert await outcome_of([cut], tmp_path) == Outcome(Verdict.SENT)
    cut = answer("404 Not Found", UNREGISTERED)[:-3]
    assert await outcome_of([cut], tmp_path) == Outcome(Verdict.RETRY, Reason.AMBIGUOUS)


async def test_fcm_response_without_end_is_not_read_to_the_end(tmp_path: Path) -> None:
    endless = answer("503 Busy", b"x" * 5_000_000)
    assert await outcome_of([endless], tmp_path) == Outcome(Verdict.RETRY, Reason.UNAVAILABLE)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("", None),
        ("Fri, 31 Dec 9999 23:59:00 -2359", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        (format_datetime(datetime(2099, 1, 1, tzinfo=UTC), usegmt=True), 3600.0),
        ("Thu, 01 Jan 2099 00:00:00 -0000", 3600.0),
        ("3599", 3599.0),
        ("3601", 3600.0),
        ("7200", 3600.0),
        ("9" * 400, 3600.0),
    ],
)
async def test_retry_after_counts_up_to_an_hour_and_nonsense_is_none(
    header: str, seconds: float | None, tmp_path: Path
) -> None:
    outcome = await outcome_of([answer(f"503 Busy\r\nRetry-After: {header}", b"{}")], tmp_path)
    assert outcome.reason is Reason.UNAVAILABLE
    assert outcome.retry_after_s == seconds


def gzipped(text: bytes) -> bytes:
    """Return what gzip makes of it, always the same: a test's name holds it, and is the same in all processes."""
    return gzip.compress(text, mtime=0)


HTML = b"<html><title>Error</title></html>"
BARE = b'{"error":{"code":404,"status":"NOT_FOUND"}}'
CUT = gzipped(UNREGISTERED)[:-30]
RAW_DEFLATE = zlib.compressobj(wbits=-15)
DEFLATED = RAW_DEFLATE.compress(UNREGISTERED) + RAW_DEFLATE.flush()
UNKNOWN_TOKEN = Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)
CONFIG = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)
UNREACHED = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
PERHAPS = Outcome(Verdict.RETRY, Reason.AMBIGUOUS)
CHUNKED = b"HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("head", "body", "outcome"),
    [
        ("404 Not Found\r\nContent-Encoding: gzip", gzipped(UNREGISTERED), UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Encoding: X-GZIP", gzipped(UNREGISTERED), UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Encoding: deflate", zlib.compress(UNREGISTERED), UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Encoding: deflate", DEFLATED, UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Encoding: deflate, gzip", gzipped(zlib.compress(UNREGISTERED)), UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Encoding: identity", UNREGISTERED, UNKNOWN_TOKEN),
        ("404 Not Found", gzipped(UNREGISTERED), UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Encoding: gzip", UNREGISTERED, UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Type: text/plain", b"\xef\xbb\xbf" + UNREGISTERED, UNKNOWN_TOKEN),
        ("404 Not Found\r\nContent-Encoding: gzip", CUT, CONFIG),
        ("404 Not Found\r\nContent-Encoding: gzip", b"", CONFIG),
        ("404 Not Found\r\nContent-Encoding: br", b"\x0b\x02\x80", CONFIG),
        ("404 Not Found\r\nContent-Encoding: gzip", gzipped(b"x" * 10_000_000), CONFIG),
        ("404 Not Found", HTML, CONFIG),
        ("404 Not Found", BARE, CONFIG),
        ("403 Forbidden", HTML, CONFIG),
        ("200 OK\r\nContent-Encoding: gzip", gzipped(b'{"name":"n"}'), Outcome(Verdict.SENT, Reason.NONE, "n")),
        ("200 OK\r\nContent-Encoding: gzip", b"\x1f\x8bbroken", Outcome(Verdict.SENT)),
        ("200 OK\r\nContent-Encoding: zstd", b"?", Outcome(Verdict.SENT)),
        ("200 OK", b"", Outcome(Verdict.SENT)),
        ("202 Accepted", HTML, PERHAPS),
        ("302 Found\r\nLocation: http://127.0.0.1:1/", HTML, UNREACHED),
        ("307 Temporary Redirect\r\nLocation: /elsewhere", b"", UNREACHED),
        ("400 Bad Request", HTML, UNREACHED),
        ("407 Proxy Authentication Required", HTML, UNREACHED),
        ("413 Content Too Large", HTML, Outcome(Verdict.REJECTED, Reason.REJECTED)),
        ("429 Too Many Requests", HTML, Outcome(Verdict.RETRY, Reason.THROTTLED)),
        ("451 Unavailable For Legal Reasons", b"", UNREACHED),
        ("502 Bad Gateway", b"", UNREACHED),
        ("599 ?", b"[" * 50_000, UNREACHED),
    ],
)
async def test_proxy_response_is_classified(head: str, body: bytes, outcome: Outcome, tmp_path: Path) -> None:
    assert await outcome_of([answer(head, body)], tmp_path) == outcome


@pytest.mark.parametrize(
    ("whole", "outcome"),
    [
        (b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n" + answer("404 Not Found", UNREGISTERED), UNKNOWN_TOKEN),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + answer("503 Busy", b""), UNREACHED),
        (CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(UNREGISTERED), UNREGISTERED), UNKNOWN_TOKEN),
        (CHUNKED + b"\r\n%x\r\n%b" % (len(UNREGISTERED), UNREGISTERED[:20]), PERHAPS),
        (CHUNKED + b"\r\nno length\r\n", PERHAPS),
        (b"HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n" + UNREGISTERED, UNKNOWN_TOKEN),
        (b"SSH-2.0-OpenSSH_9.6\r\n", PERHAPS),
        (b"", PERHAPS),
    ],
)
async def test_proxy_framing_changes_nothing(whole: bytes, outcome: Outcome, tmp_path: Path) -> None:
    assert await outcome_of([whole], tmp_path) == outcome


def refusal(status: int, code: str) -> bytes:
    detail = {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}
    return answer(f"{status} Refused", orjson.dumps({"error": {"code": status, "details": [detail]}}))


IPHONES = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.PLATFORM)
# The reference of `ErrorCode` has all but APNS_AUTH_ERROR, which is an older name that firebase-admin still knows.
CODES = {
    "UNSPECIFIED_ERROR": (500, UNREACHED),
    "INVALID_ARGUMENT": (400, Outcome(Verdict.REJECTED, Reason.REJECTED)),
    "UNREGISTERED": (404, UNKNOWN_TOKEN),
    "SENDER_ID_MISMATCH": (403, Outcome(Verdict.REJECTED, Reason.WRONG_SENDER)),
    "QUOTA_EXCEEDED": (429, Outcome(Verdict.RETRY, Reason.THROTTLED)),
    "UNAVAILABLE": (503, UNREACHED),
    "INTERNAL": (500, UNREACHED),
    "THIRD_PARTY_AUTH_ERROR": (401, IPHONES),
    "APNS_AUTH_ERROR": (401, IPHONES),
}
# By the class that firebase-admin raises.
VERDICTS = {
    messaging.UnregisteredError: UNKNOWN_TOKEN,
    messaging.SenderIdMismatchError: Outcome(Verdict.REJECTED, Reason.WRONG_SENDER),
    messaging.QuotaExceededError: Outcome(Verdict.RETRY, Reason.THROTTLED),
    messaging.ThirdPartyAuthError: IPHONES,
}


@pytest.mark.parametrize("code", CODES)
async def test_fcm_error_codes_have_the_meaning_of_the_reference(code: str, tmp_path: Path) -> None:
    status, outcome = CODES[code]
    assert await outcome_of([refusal(status, code)], tmp_path) == outcome


def test_fcm_error_codes_agree_with_firebase_admins_own_map() -> None:
    service: Any = vars(messaging)["_MessagingService"]
    assert set(service.FCM_ERROR_TYPES) <= set(CODES), "firebase-admin knows a code that has no row"
    for code, raised in service.FCM_ERROR_TYPES.items():
        assert CODES[code][1] == VERDICTS[raised], code


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome(Verdict.REJECTED, Reason.REJECTED)),
        (401, Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG)),
        (403, Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG)),
        (404, Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG)),
        (409, UNREACHED),
        (412, UNREACHED),
        (429, Outcome(Verdict.RETRY, Reason.THROTTLED)),
        (500, UNREACHED),
        (503, UNREACHED),
    ],
)
async def test_fcm_error_codes_that_are_new_blame_no_app(status: int, outcome: Outcome, tmp_path: Path) -> None:
    assert status in vars(_utils)["_HTTP_STATUS_TO_ERROR_CODE"], "each status that firebase-admin tells apart"
    assert await outcome_of([refusal(status, "A_CODE_OF_NEXT_YEAR")], tmp_path) == outcome


def bad_request(*fields: object, status: int = 400) -> bytes:
    detail = {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": field, "description": "wrong"} for field in fields],
    }
    return answer(f"{status} Refused", orjson.dumps({"error": {"code": status, "details": [1, {}, detail]}}))


INVALID = Outcome(Verdict.INVALID_TOKEN, Reason.UNREGISTERED)
REJECTED = Outcome(Verdict.REJECTED, Reason.REJECTED)


@pytest.mark.parametrize(
    ("whole", "outcome"),
    [
        (bad_request("message.token"), INVALID),
        (bad_request("message.data", "message.token"), INVALID),
        (bad_request("message.data[0].value"), REJECTED),
        (bad_request("message.android.notification.token"), REJECTED),
        (bad_request(7, None, ["message.token"]), REJECTED),
        (bad_request(), REJECTED),
        (bad_request("message.token", status=404), CONFIG),
        (bad_request("message.token", status=503), UNREACHED),
    ],
)
async def test_bad_request_condemns_the_token_it_names(whole: bytes, outcome: Outcome, tmp_path: Path) -> None:
    assert await outcome_of([whole], tmp_path) == outcome
