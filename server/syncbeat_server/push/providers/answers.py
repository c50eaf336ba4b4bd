"""Reads what the other side of a provider answers, whatever a proxy in between made of it: bounded and decoded."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

MAX_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 3600.0
# Nothing is asked for in a compressed form, since answers are short; some proxies compress all the same.
PLAIN = {"accept-encoding": "identity"}

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_RAW_DEFLATE = -zlib.MAX_WBITS
_MAX_CODINGS = 3  # a proxy adds one, two of them two
_BOM = b"\xef\xbb\xbf"


async def read(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body, or its beginning when there is too much of it, without its compression.

    A body that breaks off raises aiohttp's error; after a head that says 2xx what came of it is returned.
    """
    text = b""
    try:
        while len(text) < MAX_BYTES and (piece := await answer.content.readany()):
            text += piece
    except (aiohttp.ClientError, TimeoutError, OSError):
        if not 200 <= answer.status < 300:
            raise
        # The head says that it was taken.
    return _decoded(text, answer.headers.getall("content-encoding", []))


def parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object that an answer holds; an empty one when it holds none."""
    try:
        answer = orjson.loads(text.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header: a delay, or an HTTP date (RFC 9110, 10.2.3); None for neither.

    More than an hour counts as one: whoever names a day, or a year that its clock has wrong, is asked again by then.
    """
    if header is None:
        return None
    try:
        if header.isdecimal():
            return min(MAX_RETRY_AFTER_S, float(header))
        moment = parsedate_to_datetime(header)
        # Without a zone it is meant to be in GMT, as all dates of HTTP.
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return min(MAX_RETRY_AFTER_S, max(0.0, (moment - now).total_seconds()))


def _decoded(text: bytes, headers: list[str]) -> bytes:
    codings = [coding.strip().lower() for header in headers for coding in header.split(",")]
    for coding in list(reversed(codings))[:_MAX_CODINGS]:
        if coding in ("gzip", "x-gzip", "deflate"):
            text = _inflated(text)
    # A proxy may also take the header away and leave the body as it was: JSON begins with nothing of the kind.
    return _inflated(text) if text.startswith(_GZIP_MAGIC) else text


def _inflated(text: bytes) -> bytes:
    """Return the beginning of what was compressed, as far as it can be read; what is not compressed stays as it is."""
    for window in (_GZIP_OR_ZLIB, _RAW_DEFLATE):  # "deflate" is either, depending on whom one asks
        try:
            return zlib.decompressobj(window).decompress(text, MAX_BYTES)
        except zlib.error:
            continue
    return text
