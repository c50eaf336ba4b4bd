"""Fetches the keys that an issuer publishes (JWKS, RFC 7517), in advance, and keeps them while it does not answer."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextvars import Context
from dataclasses import replace
from typing import Any

import aiohttp

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import MAX_JWKS_BYTES, MAX_KID, PUBLISHED, parse_jwks, with_kidless_row
from syncbeat_server.auth.tokens.unknown_kid_counts import UnknownKid, UnknownKids
from syncbeat_server.clock import Clock, sleep_unless
from syncbeat_server.errors import DependencyDown, KeyUnknownYet
from syncbeat_server.ops.fault_log import FaultLog

_log = logging.getLogger(__name__)

REFRESH_S, JITTER = 300.0, 0.1
COOLDOWN_S = 30.0
STALE_S = 24 * 3_600.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 10.0
_MOST_TOLD = 10  # kids of a line of the log
_NEVER = float("-inf")
_NO_KEYS: Mapping[tuple[str, str], KeyRow] = {}


class _BadResponse(Exception):
    """The issuer's response is not a JWKS that can be used."""


class JwksStore:
    """Keys of one issuer by kid. An unknown kid triggers a fetch, at most once in 30 s whatever its result.

    One more fetch within those 30 s is allowed for a kid that many distinct addresses present: then the issuer has
    rotated its keys after invented kids had used up the fetch.
    """

    def __init__(
        self,
        url: str,
        issuer: Issuer,
        clock: Clock,
        configured_kids: frozenset[str] = frozenset(),
        timeout_s: float = 2.0,
    ) -> None:
        """Take the URL, which the settings check to be https or on this machine.

        Published keys with one of `configured_kids`, which have keys in the settings, are not used. A fetch takes
        `timeout_s` at most.
        """
        self.issuer = issuer
        self.made_of = url, issuer, configured_kids
        self.fetches = self.failures = self._good_fetch = 0
        self._url = url
        self._clock = clock
        self._configured_kids = configured_kids
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._rows = _NO_KEYS
        self._kids: frozenset[str] = frozenset()
        self._unknown = UnknownKids()
        self._etag = ""
        self._fetched_at = self._forced_at = self._reserve_at = _NEVER
        self._failing = True
        self._faults: list[str] = []
        self._told: Mapping[str, Any] | None = None
        self._trouble = FaultLog(
            _log,
            "the keys of an issuer could not be fetched",
            "the keys of an issuer can be fetched again",
            logging.WARNING,
            issuer=issuer.name,
        )
        self._generation = 0
        self._failed = asyncio.Event()
        self._runs = False
        self._retry_at = _NEVER
        self._fetching: asyncio.Task[None] | None = None
        self._uniform = random.SystemRandom().uniform

    def take_over(self, before: JwksStore) -> None:
        """Begin with the keys that another store has fetched from the same URL, so that none is missing meanwhile."""
        rows = [replace(row, issuer=self.issuer) for row in before._rows.values()]
        used = [row for row in rows if row.kid not in self._configured_kids]
        self._rows = {(row.kid, row.algorithm): row for row in used}
        self._kids = frozenset(row.kid for row in used if row.kid)
        self._fetched_at, self._told = before._fetched_at, before._told

    @property
    def fetched_at(self) -> float:
        """Return the moment of the monotonic clock at which the issuer last answered; -inf: never."""
        return self._fetched_at

    @property
    def is_failing(self) -> bool:
        """Return True if the last fetch failed, or there was none yet."""
        return self._failing

    def cached_key(self, kid: str, algorithm: str) -> KeyRow | None:
        """Return a key that has been fetched, for up to 24 h after the issuer last answered; None otherwise."""
        row = self._rows.get((kid, algorithm))
        return row if row is not None and self._is_fresh() else None

    @property
    def kids(self) -> frozenset[str]:
        """Return the kids that have been fetched."""
        return self._kids

    def has_kid(self, kid: str) -> bool:
        """Tell if a key of this kid has been fetched, for any algorithm."""
        return kid in self._kids

    async def find_key(self, kid: str, algorithm: str, address: str = "") -> KeyRow | None:
        """Return a key, fetching the keys if it is not cached; None if the issuer does not publish it.

        None is answered only once a fetch began after the kid was first seen. `address` is the caller's.

        Raises:
            DependencyDown: the issuer does not answer.
            KeyUnknownYet: the issuer was asked just before and may not be asked again yet.
        """
        row = self.cached_key(kid, algorithm)
        if row is not None or not self._may_be_published(kid, algorithm):
            return row
        # The result of a fetch holds until another one is allowed.
        may_ask_again = self._clock.monotonic() - self._fetched_at >= COOLDOWN_S
        unknown = self._unknown.record(kid, address, self.fetches, self._good_fetch if may_ask_again else 0)
        if self._fetching is not None:
            await _fetched(self._fetching)
        if unknown.seen_after >= self._good_fetch and self._may_fetch_for(unknown):
            await _fetched(self._fetch())
        row = self.cached_key(kid, algorithm)
        if row is None and (self._failing or unknown.seen_after >= self._good_fetch):
            if self._failing:
                raise DependencyDown("the keys of the token's issuer cannot be fetched", retry_after_s=self._wait_s())
            raise KeyUnknownYet(
                "the token's key is unknown, and its issuer was asked just before", retry_after_s=self._wait_s()
            )
        return row

    def _wait_s(self) -> float:
        """Return the seconds until the issuer is asked again: for a caller, or before by `run` while it fails."""
        forced_s = self._forced_at + COOLDOWN_S - self._clock.monotonic()
        if not (self._failing and self._runs):
            return max(_FIRST_RETRY_S, forced_s)
        return max(_FIRST_RETRY_S, min(forced_s, self._retry_at - self._clock.monotonic()))

    def _is_fresh(self) -> bool:
        return self._clock.monotonic() - self._fetched_at <= STALE_S

    def _may_be_published(self, kid: str, algorithm: str) -> bool:
        # A fetched kid is of another algorithm. A token without a kid is ambiguous once keys have been fetched.
        if algorithm not in PUBLISHED or len(kid) > MAX_KID or kid in self._configured_kids:
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
        """Fetch at once and then every 300 s +-10 %, for ever; within seconds after any fetch that failed."""
        self._runs = True
        retry_s = _FIRST_RETRY_S
        while True:
            await asyncio.shield(self._fetch())
            if not self._failing:
                retry_s = _FIRST_RETRY_S
                # Not longer than until a fetch that was forced meanwhile has failed.
                await sleep_unless(self._clock, self._vary(REFRESH_S), self._failed)
            if self._failing:
                pause_s = self._vary(retry_s)
                self._retry_at = self._clock.monotonic() + pause_s
                await self._clock.sleep(pause_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    def _vary(self, seconds: float) -> float:
        return seconds * self._uniform(1 - JITTER, 1 + JITTER)

    async def flush(self) -> None:
        """Drop all keys and fetch them anew."""
        self._generation += 1  # a fetch in progress may have read the document before the issuer withdrew a key
        self._rows, self._kids, self._etag, self._fetched_at, self._failing = _NO_KEYS, frozenset(), "", _NEVER, True
        if self._fetching is not None:
            await asyncio.wait([self._fetching])
        self._forced_at = self._clock.monotonic()
        await asyncio.wait([self._fetch()])

    async def close(self) -> None:
        """Close the HTTP connections."""
        if self._fetching is not None:
            self._fetching.cancel()
        if self._session is not None:
            await self._session.close()

    def _fetch(self) -> asyncio.Task[None]:
        # One at a time, shared by all callers and therefore in an empty context.
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch_once(), context=Context())
        return self._fetching

    async def _fetch_once(self) -> None:
        self.fetches += 1
        generation, number = self._generation, self.fetches
        try:
            async with asyncio.timeout(self._timeout_s):
                document, etag = await self._get()
            # In a thread: checking many keys would block the loop for a while.
            rows = None if document is None else await asyncio.to_thread(parse_jwks, document, self.issuer)
            if generation == self._generation:
                if rows is not None:
                    self._use_keys(*rows)
                self._etag, self._fetched_at, self._failing = etag, self._clock.monotonic(), False
                self._good_fetch = number
                self._failed.clear()
            self._trouble.resolve()
        except Exception as error:  # noqa: BLE001  # no response of an issuer may stop serving with the known keys
            self.failures += 1
            self._failing = True
            self._failed.set()
            self._trouble.report(str(error) if isinstance(error, _BadResponse) else type(error).__name__)
        finally:
            self._fetching = None

    def _use_keys(self, rows: list[KeyRow], faults: list[str]) -> None:
        configured = sorted({row.kid for row in rows} & self._configured_kids)
        faults = [*faults, *(f"key {kid!r}: the settings have another key of this kid" for kid in configured)]
        for fault in [] if faults == self._faults else faults:  # logged once, not with every fetch
            _log.warning("a key of an issuer is not used", extra={"issuer": self.issuer.name, "fault": fault})
        self._faults = faults
        used = [row for row in rows if row.kid not in self._configured_kids]
        self._kids = frozenset(row.kid for row in used if row.kid)
        self._rows = {(row.kid, row.algorithm): row for row in with_kidless_row(used)}
        self._tell_change({row.kid: row.key for row in used})

    def _tell_change(self, keys: Mapping[str, Any]) -> None:
        """Say in the log which keys the issuer added, took away or replaced since it was asked last (ADR 209)."""
        before, self._told = self._told, keys
        if before is None:
            return  # the first answer
        changes = {
            "added": keys.keys() - before.keys(),
            "removed": before.keys() - keys.keys(),
            "replaced": {kid for kid in keys.keys() & before.keys() if keys[kid] != before[kid]},
        }
        told = {name: sorted(kids)[:_MOST_TOLD] for name, kids in changes.items() if kids}
        if told:
            _log.warning("the keys of an issuer changed", extra={"issuer": self.issuer.name, **told})

    async def _get(self) -> tuple[bytes | None, str]:
        """Return the document (None if it has not changed) and its etag."""
        if self._session is None:
            # Compressed responses are refused, so that a small one cannot expand to a large one.
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=False
            )
        headers = {"accept-encoding": "identity", **({"if-none-match": self._etag} if self._etag else {})}
        async with self._session.get(self._url, headers=headers, allow_redirects=False) as answer:
            if answer.status == 304 and self._etag:
                return None, self._etag
            if answer.status != 200 or answer.headers.get("content-encoding", "identity") != "identity":
                raise _BadResponse(f"status {answer.status}")
            return await _read_at_most(answer.content, MAX_JWKS_BYTES), answer.headers.get("etag", "")


async def _fetched(fetch: asyncio.Task[None]) -> None:
    """Wait for a fetch that others wait for too; the end of the store cancels it, and not those who wait.

    Raises:
        DependencyDown: the store was closed meanwhile; the next one asks the issuer anew.
    """
    await asyncio.wait([fetch])
    if fetch.cancelled():
        raise DependencyDown("the keys of the token's issuer are being fetched anew", retry_after_s=_FIRST_RETRY_S)
    fetch.result()


async def _read_at_most(content: aiohttp.StreamReader, most: int) -> bytes:
    document = bytearray()
    async for chunk in content.iter_chunked(16 * 1024):
        document += chunk
        if len(document) > most:
            raise _BadResponse("too long")
    return bytes(document)
