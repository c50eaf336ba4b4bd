"""Reads the answers of providers, bounded and decompressed, whatever a proxy in between made of them."""

from __future__ import annotations

import zlib
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from syncbeat_server.clock import Clock

MAX_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 3600.0
# Answers are short, so none is requested compressed; some proxies compress them all the same.
PLAIN = {"accept-encoding": "identity"}

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_RAW_DEFLATE = -zlib.MAX_WBITS
_MAX_CODINGS = 3  # a proxy adds one, two of them two
_BOM = b"\xef\xbb\xbf"


async def read(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body without its compression, cut off at `MAX_BYTES`.

    A body that breaks off raises aiohttp's error; after a head of 2xx the part that came is returned.
    """
    text = b""
    try:
        while len(text) < MAX_BYTES and not answer.content.at_eof():
            text += await answer.content.readany()
    except (aiohttp.ClientError, TimeoutError, OSError):
        if not 200 <= answer.status < 300:
            raise
        # The head says that the request was accepted.
    return _decoded(text, answer.headers.getall("content-encoding", []))


def parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object that an answer holds; an empty one if it holds none."""
    try:
        answer = orjson.loads(text.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def retry_after_s(header: str | None, clock: Clock) -> float | None:
    """Return the seconds of a Retry-After header: a delay, or an HTTP date (RFC 9110, 10.2.3); None for neither.

    More than an hour counts as an hour: a header may name a day, or a year that its clock has wrong.
    """
    if header is None:
        return None
    try:
        if header.isdecimal():
            return min(MAX_RETRY_AFTER_S, float(header))
        moment = parsedate_to_datetime(header)
        # All dates of HTTP are in GMT, also without a zone.
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return min(MAX_RETRY_AFTER_S, max(0.0, (moment - clock.now()).total_seconds()))


def _decoded(text: bytes, headers: list[str]) -> bytes:
    codings = [coding.strip().lower() for header in headers for coding in header.split(",")]
    for coding in reversed(codings[-_MAX_CODINGS:]):
        if coding in ("gzip", "x-gzip", "deflate"):
            text = _inflated(text)
    # A proxy may also remove the header and leave the body compressed; no JSON begins with these bytes.
    return _inflated(text) if text.startswith(_GZIP_MAGIC) else text


def _inflated(text: bytes) -> bytes:
    """Return as much of the compressed text as can be read; text that is not compressed is returned as it is."""
    for window in (_GZIP_OR_ZLIB, _RAW_DEFLATE):  # implementations disagree on which of them "deflate" is
        try:
            return zlib.decompressobj(window).decompress(text, MAX_BYTES)
        except zlib.error:
            continue
    return text
