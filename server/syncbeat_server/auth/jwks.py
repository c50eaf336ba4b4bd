"""The keys of one issuer that publishes them by URL (JWKS, RFC 7517): fetched beforehand, kept while it is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextvars import Context

import aiohttp

from syncbeat_server.auth.keys import keys_of_jwks
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.ops.trouble import Trouble

_log = logging.getLogger(__name__)

REFRESH_S, SPREAD = 300.0, 0.1
COOLDOWN_S = 30.0
STALE_S = 24 * 3_600.0
MAX_BYTES = 256 * 1024
_TIMEOUT_S = 2.0
_FIRST_RETRY_S = 1.0
_NEVER = float("-inf")


class _Unusable(Exception):
    """What was answered is no JWKS of ours."""


class JwksStore:
    """Looks keys up by kid. A kid that is not known makes it fetch anew, once in 30 s at most, whatever comes of it."""

    def __init__(self, url: str, issuer: Issuer, clock: Clock) -> None:
        """`url` is https, or on this machine; the settings see to that."""
        self.issuer = issuer
        self.fetches = self.failures = 0
        self._url = url
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._rows: Mapping[str, KeyRow] = {}
        self._etag = ""
        self._fetched_at = self._forced_at = _NEVER
        self._failing = True
        self._faults: list[str] = []
        self._trouble = Trouble(
            _log,
            "the keys of an issuer could not be fetched",
            "the keys of an issuer can be fetched again",
            logging.WARNING,
            issuer=issuer.name,
        )
        self._generation = 0
        self._fetching: asyncio.Task[None] | None = None
        self._spread = random.SystemRandom().uniform

    def row(self, kid: str) -> KeyRow | None:
        """A key that is known, without asking anybody; for as long as 24 h after the issuer last answered."""
        row = self._rows.get(kid)
        return row if row is not None and self._clock.monotonic() - self._fetched_at <= STALE_S else None

    async def find(self, kid: str) -> KeyRow | None:
        """A key, which is asked for if `row` does not know it: None when the issuer has none of this name.

        Raises:
            DependencyDown: that cannot be known, because the issuer does not answer.
        """
        row = self.row(kid)
        if row is not None:
            return row
        now = self._clock.monotonic()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)
        elif now - self._forced_at >= COOLDOWN_S:
            self._forced_at = now
            await asyncio.shield(self._fetch())
        row = self.row(kid)
        if row is None and self._failing:
            wait_s = self._forced_at + COOLDOWN_S - self._clock.monotonic()
            raise DependencyDown("the keys of the token's issuer cannot be fetched", retry_after_s=max(1.0, wait_s))
        return row

    async def run(self) -> None:
        """Fetch at once and then every 300 s +-10 %, for ever; after a failure sooner."""
        retry_s = _FIRST_RETRY_S
        while True:
            await asyncio.shield(self._fetch())
            retry_s = min(2 * retry_s, COOLDOWN_S) if self._failing else _FIRST_RETRY_S
            pause_s = retry_s / 2 if self._failing else REFRESH_S
            await self._clock.sleep(pause_s * self._spread(1 - SPREAD, 1 + SPREAD))

    async def flush(self) -> None:
        """Trust no key any more, and fetch them anew."""
        self._generation += 1  # what is under way may have been read before the issuer took a key back
        self._rows, self._etag, self._fetched_at, self._failing = {}, "", _NEVER, True
        if self._fetching is not None:
            await asyncio.wait([self._fetching])
        self._forced_at = self._clock.monotonic()
        await asyncio.shield(self._fetch())

    async def close(self) -> None:
        """End the connections."""
        if self._fetching is not None:
            self._fetching.cancel()
        if self._session is not None:
            await self._session.close()

    def _fetch(self) -> asyncio.Task[None]:
        # One at a time, which all who want it share: in nobody's context.
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetched(), context=Context())
        return self._fetching

    async def _fetched(self) -> None:
        self.fetches += 1
        generation = self._generation
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                document, etag = await self._get()
            rows = self._rows if document is None else self._read(document)
            if generation == self._generation:
                self._rows, self._etag = rows, etag
                self._fetched_at, self._failing = self._clock.monotonic(), False
            self._trouble.ended()
        except Exception as error:  # noqa: BLE001  # whatever an issuer answers: who serves by known keys goes on
            self.failures += 1
            self._failing = True
            self._trouble.met(str(error) if isinstance(error, _Unusable) else type(error).__name__)
        finally:
            self._fetching = None

    def _read(self, document: bytes) -> Mapping[str, KeyRow]:
        rows, faults = keys_of_jwks(document, self.issuer)
        for fault in [] if faults == self._faults else faults:  # each is told once, not with every fetch
            _log.warning("a key of an issuer is not used", extra={"issuer": self.issuer.name, "fault": fault})
        self._faults = faults
        found = {row.kid: row for row in rows}
        if len(found) != len(rows):
            raise _Unusable("two keys of one kid")
        return found

    async def _get(self) -> tuple[bytes | None, str]:
        """The document, None when it has not changed; and its etag."""
        if self._session is None:
            # Compressed answers are refused, so that a small one cannot become large.
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=False
            )
        headers = {"accept-encoding": "identity", **({"if-none-match": self._etag} if self._etag else {})}
        async with self._session.get(self._url, headers=headers, allow_redirects=False) as answer:
            if answer.status == 304 and self._etag:
                return None, self._etag
            if answer.status != 200 or answer.headers.get("content-encoding", "identity") != "identity":
                raise _Unusable(f"status {answer.status}")
            return await _read_at_most(answer.content, MAX_BYTES), answer.headers.get("etag", "")


async def _read_at_most(content: aiohttp.StreamReader, most: int) -> bytes:
    document = bytearray()
    async for chunk in content.iter_chunked(16 * 1024):
        document += chunk
        if len(document) > most:
            raise _Unusable("too long")
    return bytes(document)
