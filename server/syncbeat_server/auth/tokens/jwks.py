"""The keys of one issuer that publishes them by URL (JWKS, RFC 7517): fetched beforehand, kept while it is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextvars import Context

import aiohttp

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import MAX_JWKS_BYTES, MAX_KID, PUBLISHED, also_without_kid, keys_of_jwks
from syncbeat_server.auth.tokens.unknown_kids import UnknownKid, UnknownKids
from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, KeyUnknownYet
from syncbeat_server.ops.fault_log import FaultLog

_log = logging.getLogger(__name__)

REFRESH_S, SPREAD = 300.0, 0.1
COOLDOWN_S = 30.0
STALE_S = 24 * 3_600.0
_TIMEOUT_S = 2.0
_FIRST_RETRY_S = 1.0
_NEVER = float("-inf")
_NO_KEYS: Mapping[tuple[str, str], KeyRow] = {}


class _Unusable(Exception):
    """What was answered is no JWKS of ours."""


class JwksStore:
    """Looks keys up by kid. A kid that is not known makes it fetch anew, once in 30 s at most, whatever comes of it.

    Once more in those 30 s it does so for a kid that many distinct addresses bring: then the issuer has changed its
    keys while somebody's inventions had used up the fetch.
    """

    def __init__(self, url: str, issuer: Issuer, clock: Clock, taken: frozenset[str] = frozenset()) -> None:
        """`url` is https, or on this machine; the settings see to that. `taken`: kids of keys in the settings."""
        self.issuer = issuer
        self.fetches = self.failures = self._good_fetch = 0
        self._url = url
        self._clock = clock
        self._taken = taken
        self._session: aiohttp.ClientSession | None = None
        self._rows = _NO_KEYS
        self._kids: frozenset[str] = frozenset()
        self._unknown = UnknownKids()
        self._etag = ""
        self._fetched_at = self._forced_at = self._reserve_at = _NEVER
        self._failing = True
        self._faults: list[str] = []
        self._trouble = FaultLog(
            _log,
            "the keys of an issuer could not be fetched",
            "the keys of an issuer can be fetched again",
            logging.WARNING,
            issuer=issuer.name,
        )
        self._generation = 0
        self._fetching: asyncio.Task[None] | None = None
        self._spread = random.SystemRandom().uniform

    def row(self, kid: str, algorithm: str) -> KeyRow | None:
        """A key that is known, without asking anybody; for as long as 24 h after the issuer last answered."""
        row = self._rows.get((kid, algorithm))
        return row if row is not None and self._is_fresh() else None

    def publishes(self, kid: str) -> bool:
        """Tell if a key of this kid is known, of any algorithm."""
        return kid in self._kids

    async def find(self, kid: str, algorithm: str, address: str = "") -> KeyRow | None:
        """A key, which is asked for if `row` does not know it: None when the issuer has none of this name.

        That it has none is known once it was asked after the kid had come up. `address`: who brings it.

        Raises:
            DependencyDown: that cannot be known, because the issuer does not answer.
            KeyUnknownYet: that cannot be known yet, because the issuer was asked just before.
        """
        row = self.row(kid, algorithm)
        if row is not None or not self._may_be_published(kid, algorithm):
            return row
        # What a fetch has told is the answer until there may be another.
        may_ask_again = self._clock.monotonic() - self._fetched_at >= COOLDOWN_S
        unknown = self._unknown.met(kid, address, self.fetches, self._good_fetch if may_ask_again else 0)
        if self._fetching is not None:
            await asyncio.shield(self._fetching)
        if unknown.seen_after >= self._good_fetch and self._may_fetch_for(unknown):
            await asyncio.shield(self._fetch())
        row = self.row(kid, algorithm)
        if row is None and (self._failing or unknown.seen_after >= self._good_fetch):
            wait_s = self._forced_at + COOLDOWN_S - self._clock.monotonic()
            if self._failing:
                raise DependencyDown("the keys of the token's issuer cannot be fetched", retry_after_s=max(1.0, wait_s))
            raise KeyUnknownYet(
                "the token's key is unknown, and its issuer was asked just before", retry_after_s=max(1.0, wait_s)
            )
        return row

    def _is_fresh(self) -> bool:
        return self._clock.monotonic() - self._fetched_at <= STALE_S

    def _may_be_published(self, kid: str, algorithm: str) -> bool:
        # A kid that is known is of another algorithm; a token without one, where keys are known, may mean any of them.
        if algorithm not in PUBLISHED or len(kid) > MAX_KID or kid in self._taken:
            return False
        return not self._is_fresh() or not (kid in self._kids if kid else self._kids)

    def _may_fetch_for(self, unknown: UnknownKid) -> bool:
        now = self._clock.monotonic()
        if now - self._forced_at >= COOLDOWN_S:
            self._forced_at = now
            return True
        if unknown.widely_seen and now - self._reserve_at >= COOLDOWN_S:
            self._reserve_at = now
            return True
        return False

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
        self._rows, self._kids, self._etag, self._fetched_at, self._failing = _NO_KEYS, frozenset(), "", _NEVER, True
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
        generation, number = self._generation, self.fetches
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                document, etag = await self._get()
            # In a thread, since looking at many keys takes a while.
            rows = None if document is None else await asyncio.to_thread(keys_of_jwks, document, self.issuer)
            if generation == self._generation:
                if rows is not None:
                    self._use(*rows)
                self._etag, self._fetched_at, self._failing = etag, self._clock.monotonic(), False
                self._good_fetch = number
            self._trouble.resolve()
        except Exception as error:  # noqa: BLE001  # whatever an issuer answers: who serves by known keys goes on
            self.failures += 1
            self._failing = True
            self._trouble.report(str(error) if isinstance(error, _Unusable) else type(error).__name__)
        finally:
            self._fetching = None

    def _use(self, rows: list[KeyRow], faults: list[str]) -> None:
        taken = sorted({row.kid for row in rows} & self._taken)
        faults = [*faults, *(f"key {kid!r}: the settings have another key of this kid" for kid in taken)]
        for fault in [] if faults == self._faults else faults:  # each is told once, not with every fetch
            _log.warning("a key of an issuer is not used", extra={"issuer": self.issuer.name, "fault": fault})
        self._faults = faults
        used = [row for row in rows if row.kid not in self._taken]
        self._kids = frozenset(row.kid for row in used if row.kid)
        self._rows = {(row.kid, row.algorithm): row for row in also_without_kid(used)}

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
            return await _read_at_most(answer.content, MAX_JWKS_BYTES), answer.headers.get("etag", "")


async def _read_at_most(content: aiohttp.StreamReader, most: int) -> bytes:
    document = bytearray()
    async for chunk in content.iter_chunked(16 * 1024):
        document += chunk
        if len(document) > most:
            raise _Unusable("too long")
    return bytes(document)
