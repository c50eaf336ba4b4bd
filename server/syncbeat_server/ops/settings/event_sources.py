"""Settings of an app's sources of webhooks: how each signs, how its payloads are mapped, and what they may do."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from syncbeat_server.defaults import (
    GITHUB_MAX_AGE_S,
    MOST_AHEAD_S,
    SENDER_REPEATS_S,
    WEBHOOK_SECRETS,
    WEBHOOK_TOLERANCE_S,
    SignatureScheme,
    TimeFormat,
)
from syncbeat_server.ops.settings.types import NAME, ReadableFile

MAX_SOURCES = 50
_MAX_TYPES = 200
_MAX_SAMPLES = 50
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
_EXPRESSION = Field(max_length=4_096)
# GitHub signs neither id nor time; Stripe's id is in the body.
_DEFAULT_IDS = {SignatureScheme.STRIPE: "body.id"}


class SourceSettings(BaseModel):
    """Settings of one source of webhooks. Expressions are JMESPath over `body` and `delivery`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: SignatureScheme = Field(description="The way in which the sender signs.")
    secrets: tuple[SecretStr, ...] = Field(
        default=(), description="Secrets as the sender's console shows them; any may sign, so that they can be rotated."
    )
    secret_files: tuple[ReadableFile, ...] = Field(
        default=(), description="Files with one secret each, read again when they change."
    )
    secret_variables: tuple[Annotated[str, Field(pattern=_VARIABLE)], ...] = Field(
        default=(), description="Names of environment variables with one secret each; an empty one counts as unset."
    )
    tolerance_s: float = Field(
        default=WEBHOOK_TOLERANCE_S,
        ge=1.0,
        le=3_600.0,
        description="Seconds by which a signed time may differ from our clock. GitHub signs none.",
    )
    max_age_s: Annotated[float, Field(ge=60.0, le=31_536_000.0)] | None = Field(
        default=None,
        description="Seconds that an event may be old by its `occurred`, which it has to have then; with 300 s no more "
        "than SYNCBEAT_KEEP_EVENTS_DAYS, so that a replay is a duplicate. Unset: "
        f"{GITHUB_MAX_AGE_S:.0f} for GitHub, as long as it sends deliveries again, and no limit for others.",
    )
    allow: frozenset[str] = Field(
        default=frozenset(), description="RPCs that effects may stand for, such as SetUserTier. Empty: none."
    )
    id: Annotated[str, _EXPRESSION] = Field(
        default="",
        description="The event's id. Empty: `body.id` for Stripe, else `delivery.id`, the signed one; for GitHub, "
        "which signs none, the SHA-256 of the body.",
    )
    type: Annotated[str, _EXPRESSION] = Field(default="body.type", description="The event's type.")
    subject: Annotated[str, _EXPRESSION] = Field(default="", description="What it is about. Empty: nothing.")
    ordering_key: Annotated[str, _EXPRESSION] = Field(
        default="", description="What it is ordered by. Empty: the subject."
    )
    occurred: Annotated[str, _EXPRESSION] = Field(
        default="", description="When it happened. Empty: when it comes; not for GitHub, nor with max_age_s."
    )
    occurred_as: TimeFormat = Field(default=TimeFormat.ISO, description="The form of that time.")
    keep_payload: bool = Field(default=True, description="Keep the payload with the event's record.")
    effects: dict[str, Annotated[str, _EXPRESSION]] = Field(
        min_length=1,
        max_length=_MAX_TYPES,
        description="By the event's type (`*`: any other) an expression that makes EventEffects of the contract. A "
        "type without one, and null, is answered 200 and not recorded; {} is recorded without effects.",
    )
    samples: tuple[str, ...] = Field(
        min_length=1,
        max_length=_MAX_SAMPLES,
        description="Payloads (JSON) that a start and check-config try the mapping with.",
    )

    @property
    def id_expression(self) -> str:
        """Return the expression of the event's id."""
        return self.id or _DEFAULT_IDS.get(self.scheme, "delivery.id")

    @property
    def oldest_s(self) -> float | None:
        """Return the age that an event may have, in seconds; None: any."""
        return GITHUB_MAX_AGE_S if self.max_age_s is None and self.scheme is SignatureScheme.GITHUB else self.max_age_s

    @property
    def repeats_s(self) -> float:
        """Return for how many seconds after an event came first it may come again, and has to be known.

        A signed time bounds a replay to minutes, and the sender's own repeats to days. Where an event's age is bounded
        instead, it can come until it is too old, and first come while our clock is behind the sender's.
        """
        return SENDER_REPEATS_S if self.oldest_s is None else self.oldest_s + MOST_AHEAD_S

    @model_validator(mode="after")
    def _check_age(self) -> Self:
        if self.oldest_s is not None and not self.occurred:
            raise ValueError("max_age_s (GitHub's too, which signs no time) wants `occurred`: it tells an event's age")
        return self

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        count = len(self.secrets) + len(self.secret_files) + len(self.secret_variables)
        if not 1 <= count <= WEBHOOK_SECRETS:
            raise ValueError(
                f"want 1 to {WEBHOOK_SECRETS} secrets in all of secrets, secret_files and secret_variables; two while "
                "they are rotated"
            )
        return self


class SourceSelection(BaseModel):
    """Settings of the sources of webhooks that an app has."""

    sources: dict[str, SourceSettings] = Field(
        default_factory=dict,
        max_length=MAX_SOURCES,
        description="Sources of webhooks by name, served at EVENTS_LISTEN: tables `sources.NAME`.",
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not all(re.fullmatch(NAME, name) for name in self.sources):
            raise ValueError("SOURCES: a source's name is 1 to 64 of A-Z a-z 0-9 _ . -")
        return self
