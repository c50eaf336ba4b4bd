"""Settings of the service's own sessions: their signing keys, lifetimes and refresh limits."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from syncbeat_server.defaults import ACCESS_TOKEN_S, SESSION_GRACE_S, SESSION_IDLE_S, SESSION_MAX_S
from syncbeat_server.ops.settings.types import CheckedTogether, OptionalSecret, Secrets, check_secrets, faults_of


class SessionSettings(CheckedTogether):
    """Settings that the sessions of all apps share."""

    session_keys: OptionalSecret = Field(
        default=None,
        description="The private JWKS that signs the sessions' access tokens; its first key signs, the others are "
        "published for rotation. Unset: CreateSession is off. 'syncbeat-server token keys' prints one.",
    )
    session_secrets: Secrets = Field(
        default={}, description="Secrets of 32 bytes or more that authenticate refresh tokens: kid=secret,..."
    )
    access_token_s: float = Field(
        default=ACCESS_TOKEN_S, ge=1.0, le=86_400.0, description="The life of a session's access token, in seconds."
    )
    session_idle_s: float = Field(
        default=SESSION_IDLE_S,
        ge=1.0,
        le=366 * 86_400.0,
        description="Seconds after which a session that is not refreshed ends.",
    )
    session_max_s: float = Field(
        default=SESSION_MAX_S,
        ge=1.0,
        le=1_098 * 86_400.0,
        description="Seconds after which a session ends however often it is refreshed.",
    )
    session_grace_s: float = Field(
        default=SESSION_GRACE_S,
        ge=0.0,
        le=600.0,
        description="Seconds for which the previous refresh token stays good, for a client that lost the answer.",
    )
    refreshes_per_minute: int = Field(
        default=60, ge=1, le=1_000_000, description="Refreshes of one session a minute, counted by each process."
    )
    wrong_refreshes_per_minute: int = Field(
        default=30,
        ge=1,
        le=1_000_000,
        description="Forged refresh tokens from one address a minute, counted by each process; genuine ones of that "
        "address are not limited by it.",
    )

    def faults(self) -> Iterator[str]:
        """Yield the faults of the sessions' keys."""
        yield from super().faults()
        yield from faults_of(check_secrets, "SESSION_SECRETS", self.session_secrets)
        if (self.session_keys is None) != (not self.session_secrets):
            yield "SESSION_KEYS and SESSION_SECRETS: set both ('syncbeat-server token keys' prints them)"
