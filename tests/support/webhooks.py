"""Signs webhooks as their senders do: by the libraries that the vendors themselves publish."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import standardwebhooks
import stripe
import svix

from syncbeat_server.defaults import WEBHOOK_TOLERANCE_S, SignatureScheme, TimeFormat
from syncbeat_server.http.webhooks.door import IngestRule, WebhookDoor
from syncbeat_server.http.webhooks.expressions import Expression
from syncbeat_server.http.webhooks.mapping import PayloadMapping
from syncbeat_server.http.webhooks.model import MappedEvent, SignatureFault, Source, WebhookOutcome
from syncbeat_server.http.webhooks.schemes import parse_key
from tests.support.fake_clock import FakeClock

Signed = dict[str, str]


def made_secret(scheme: SignatureScheme, number: int = 0) -> str:
    """Return a secret in the form in which the sender's console shows it."""
    octets = random.Random(f"{scheme}{number}").randbytes(24)
    if scheme is SignatureScheme.GITHUB:
        return octets.hex()
    return "whsec_" + base64.b64encode(octets).decode()


def sign(scheme: SignatureScheme, secret: str, body: bytes, at: datetime, name: str = "msg_1") -> Signed:
    """Return the headers that the sender of a scheme signs a body with, at a moment."""
    text = body.decode()
    match scheme:
        case SignatureScheme.STANDARD_WEBHOOKS:
            signature = standardwebhooks.Webhook(secret).sign(name, at, text)
            return _headers("webhook", name, at, signature)
        case SignatureScheme.SVIX:
            return _headers("svix", name, at, svix.Webhook(secret).sign(name, at, text))
        case SignatureScheme.STRIPE:
            made = stripe.WebhookSignature.generate_signature_header(text, secret, int(at.timestamp()))
            return {"stripe-signature": made}
        case SignatureScheme.GITHUB:
            mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
            return {"x-hub-signature-256": f"sha256={mac}", "x-github-delivery": name, "x-github-event": "ping"}


def in_lists(headers: Mapping[str, str]) -> dict[str, list[str]]:
    """Return headers as the door passes them on: the values of each by its name in small letters."""
    return {name.lower(): [value] for name, value in headers.items()}


def body_of(**fields: object) -> bytes:
    """Return a JSON body."""
    return json.dumps(fields).encode()


def _headers(brand: str, name: str, at: datetime, signature: str) -> Signed:
    return {
        f"{brand}-id": name,
        f"{brand}-timestamp": str(int(at.timestamp())),
        f"{brand}-signature": signature,
    }


PLAIN_MAPPING = PayloadMapping(
    event_id=Expression("body.id"),
    type=Expression("body.type"),
    subject=Expression("body.subject"),
    ordering_key=None,
    occurred=Expression("body.at"),
    occurred_as=TimeFormat.UNIX_SECONDS,
    keep_payload=True,
    max_age_s=None,
    effects={"*": Expression("`{}`")},
)
"""A mapping of bodies `{"id", "type", "subject", "at"}` to events without effects."""


def source_of(scheme: SignatureScheme, *secrets: str, mapping: PayloadMapping = PLAIN_MAPPING) -> Source:
    """Return a source of the app "shop", named as its scheme."""
    keys = tuple(parse_key(scheme, secret) for secret in secrets or (made_secret(scheme),))
    return Source("shop", str(scheme), scheme, keys, WEBHOOK_TOLERANCE_S, mapping, frozenset())


@dataclass
class Desk:
    """A door on memory: what it let in, what it counted, and what an ingest is to do."""

    sources: Sequence[Source]
    clock: FakeClock = field(default_factory=FakeClock)
    ingested: list[MappedEvent] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    counted: list[tuple[str, WebhookOutcome, SignatureFault | None]] = field(default_factory=list)
    outcome: WebhookOutcome | Exception = WebhookOutcome.ACCEPTED
    rule: IngestRule = field(default_factory=IngestRule)
    hold: asyncio.Event | None = None

    def door(self) -> WebhookDoor:
        """Return the door."""
        by_name = {(source.app_id, source.name): source for source in self.sources}
        return WebhookDoor(lambda: by_name, self._ingest, self._count, self.clock, self.rule)

    async def _ingest(
        self, _source: Source, event: MappedEvent, _within_s: float, address: Callable[[], str]
    ) -> WebhookOutcome:
        self.addresses.append(address())
        self.ingested.append(event)
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def _count(self, app_id: str, source: str, outcome: WebhookOutcome, fault: SignatureFault | None) -> None:
        self.counted.append((f"{app_id}/{source}", outcome, fault))
