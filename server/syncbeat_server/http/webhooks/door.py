"""Takes one webhook in: finds its source, verifies it, maps it, has it ingested, and decides the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DeadlineExceeded, Overloaded, SyncbeatError
from syncbeat_server.http.webhooks import answers
from syncbeat_server.http.webhooks.answers import WebhookAnswer
from syncbeat_server.http.webhooks.mapping import map_payload
from syncbeat_server.http.webhooks.model import (
    Delivery,
    MappedEvent,
    MappingFault,
    SignatureFault,
    Source,
    WebhookOutcome,
)
from syncbeat_server.http.webhooks.schemes import Headers, refuse, verify

_log = logging.getLogger(__name__)

Sources = Callable[[], Mapping[tuple[str, str], Source]]
"""Returns the present sources, by app and name."""
Address = Callable[[], str]
"""Returns the address of a sender, as the audit log has it; asked for only where an entry is written."""
Ingest = Callable[[Source, MappedEvent, float, Address], Awaitable[WebhookOutcome]]
"""Ingests an event within so many seconds, and returns what became of it once that is committed.

Raises SyncbeatError: nothing is recorded.
"""
Count = Callable[[str, str, WebhookOutcome, SignatureFault | None], None]
"""Counts a webhook by app and source (empty unless its signature is good), outcome, and its signature's fault."""


@dataclass(frozen=True)
class IngestRule:
    """Bounds of what is done for senders that are known.

    Attributes:
        most: Events ingested at a time; a further one is to come again.
        within_s: Seconds in which one has to be committed: GitHub waits for 10 s in all, the others for longer.
    """

    most: int = 64
    within_s: float = 7.0


class WebhookDoor:
    """Takes webhooks in."""

    def __init__(
        self, sources: Sources, ingest: Ingest, count: Count, clock: Clock, rule: IngestRule | None = None
    ) -> None:
        self._sources = sources
        self._ingest = ingest
        self._count = count
        self._clock = clock
        self._rule = rule or IngestRule()
        self._under_way = 0
        self._receiving = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drained(self) -> None:
        """Return once no webhook is being taken in."""
        await self._idle.wait()

    async def receive(
        self, app_id: str, name: str, headers: Headers, body: bytes, on_known: Callable[[], None], address: Address
    ) -> WebhookAnswer:
        """Return the answer to a webhook; `on_known` is called once its signature is found good."""
        self._receiving += 1
        self._idle.clear()
        try:
            return await self._receive(app_id, name, headers, body, on_known, address)
        finally:
            self._receiving -= 1
            if not self._receiving:
                self._idle.set()

    async def _receive(
        self, app_id: str, name: str, headers: Headers, body: bytes, on_known: Callable[[], None], address: Address
    ) -> WebhookAnswer:
        source = self._sources().get((app_id, name))
        checked = self._checked(source, headers, body)
        if isinstance(checked, SignatureFault):
            self._count("", "", WebhookOutcome.UNSIGNED, checked)
            # Unknown sources are logged too, without what the caller invented: logging takes time.
            known = ("", "") if source is None else (source.app_id, source.name)
            _log.warning("a webhook was refused", extra={"app": known[0], "source": known[1], "fault": checked})
            return answers.unsigned()
        source, found = checked
        on_known()
        outcome, answer = await self._taken_in(source, found, body, address)
        self._count(source.app_id, source.name, outcome, None)
        return answer

    async def _taken_in(
        self, source: Source, found: Delivery, body: bytes, address: Address
    ) -> tuple[WebhookOutcome, WebhookAnswer]:
        """Map and ingest what a known sender signed; whatever goes wrong has an outcome and an answer."""
        try:
            mapped = map_payload(source.mapping, body, found, self._clock.now())
            outcome = WebhookOutcome.IGNORED if mapped is None else await self._bounded(source, mapped, address)
        except MappingFault as fault:
            _tell(source, "a webhook does not fit the mapping of its source", str(fault))
            return WebhookOutcome.UNMAPPED, answers.unmapped(fault)
        except SyncbeatError as error:
            _tell(source, "a webhook was not recorded", error.message)
            return answers.failed(source.scheme, error)
        except Exception:  # noqa: BLE001  # a bug must not lose an event: the sender comes again, after the mending
            _log.exception("a webhook met a bug", extra={"app": source.app_id, "source": source.name})
            return answers.failed(source.scheme, SyncbeatError("an internal error"))
        return outcome, answers.done(outcome)

    def _checked(
        self, source: Source | None, headers: Headers, body: bytes
    ) -> tuple[Source, Delivery] | SignatureFault:
        if source is None:
            return refuse(headers, body)
        now_s = self._clock.now().timestamp()
        found = verify(source.scheme, source.keys, headers, body, now_s, source.tolerance_s)
        return found if isinstance(found, SignatureFault) else (source, found)

    async def _bounded(self, source: Source, mapped: MappedEvent, address: Address) -> WebhookOutcome:
        if self._under_way >= self._rule.most:
            raise Overloaded("too many webhooks at once")
        self._under_way += 1
        try:
            async with asyncio.timeout(self._rule.within_s):
                return await self._ingest(source, mapped, self._rule.within_s, address)
        except TimeoutError:
            raise DeadlineExceeded("the event was not committed in time") from None
        finally:
            self._under_way -= 1


def _tell(source: Source, message: str, why: str) -> None:
    _log.warning(message, extra={"app": source.app_id, "source": source.name, "fault": why})
