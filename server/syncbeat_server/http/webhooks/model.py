"""Values of the webhook door: sources, deliveries, mapped events, and the faults that keep one from being taken in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from syncbeat_server.defaults import SignatureScheme

if TYPE_CHECKING:
    from syncbeat_server.http.webhooks.mapping import PayloadMapping


class SignatureFault(StrEnum):
    """Names the causes of a refusal, for the log and a metric; senders are told none of them."""

    UNKNOWN_SOURCE = "unknown_source"
    HEADERS = "headers"
    TIME = "time"
    SIGNATURE = "signature"


class WebhookOutcome(StrEnum):
    """Names the outcomes of a webhook, for the answer and a metric."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE = "stale"
    FAILED = "failed"
    IGNORED = "ignored"
    UNSIGNED = "unsigned"
    UNMAPPED = "unmapped"
    REFUSED = "refused"
    POSTPONED = "postponed"


@dataclass(frozen=True)
class Delivery:
    """One delivery whose signature is good. Nothing of it comes from headers that are not signed.

    Attributes:
        id: The sender's id of the message. GitHub signs none, and Stripe's is in the body: the body's digest then.
        time: When this attempt was signed, in Unix seconds; None for GitHub, which signs no time.
        digest: The SHA-256 of the body, in hex.
    """

    id: str
    time: int | None
    digest: str


@dataclass(frozen=True)
class MappedEvent:
    """An event as a source's mapping makes it of a payload; `effects` is EventEffects of the contract, as JSON."""

    event_id: str
    type: str
    subject: str
    ordering_key: str
    occurred: datetime | None
    payload_json: str
    effects: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A source of webhooks of one app: how it signs, how its payloads are mapped, and what its effects may do.

    Attributes:
        keys: The keys of its secrets, any of which may sign.
        methods: The RPCs that its effects may stand for.
    """

    app_id: str
    name: str
    scheme: SignatureScheme
    keys: tuple[bytes, ...]
    tolerance_s: float
    mapping: PayloadMapping
    methods: frozenset[str]


class MappingFault(Exception):
    """A payload does not fit the mapping. The message names the setting, and repeats nothing of the payload."""

    def __init__(self, setting: str, text: str) -> None:
        super().__init__(f"{setting}: {text}")
        self.setting = setting
        self.text = text
