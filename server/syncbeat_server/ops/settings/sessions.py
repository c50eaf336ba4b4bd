"""Settings of our own sessions: what signs their tokens, how long they live, how often they may be renewed."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from syncbeat_server.ops.settings.types import OptionalSecret, Secrets, check_secrets


class SessionSettings(BaseModel):
    """Settings common to all apps' sessions. Lives are in seconds; refreshes are limited per session and minute,
    wrong ones (forged tokens) per address and minute."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    session_keys: OptionalSecret = None
    """Private JWKS, whose first key signs the access tokens of our own sessions; none: CreateSession is off."""
    session_secrets: Secrets = {}
    """Secrets of refresh tokens, the first makes new ones; 'syncbeat-server token keys' prints one."""
    access_token_s: float = Field(default=3600.0, ge=1.0, le=86_400.0)
    """Life of an access token of our own sessions."""
    session_idle_s: float = Field(default=30 * 86_400.0, ge=1.0, le=366 * 86_400.0)
    """Time without a refresh after which a session ends."""
    session_max_s: float = Field(default=180 * 86_400.0, ge=1.0, le=1_098 * 86_400.0)
    """Longest life of a session, however often it is refreshed."""
    session_grace_s: float = Field(default=30.0, ge=0.0, le=600.0)
    """Time after a refresh in which the refresh token before it is taken for a repeat in any case."""
    refreshes_per_minute: int = Field(default=60, ge=1, le=1_000_000)
    """Refreshes of one session, counted by each process."""
    wrong_refreshes_per_minute: int = Field(default=30, ge=1, le=1_000_000)
    """Forged refresh tokens from one address, counted by each process; genuine ones are not limited by it."""

    @model_validator(mode="after")
    def _safe_sessions(self) -> Self:
        check_secrets("SESSION_SECRETS", self.session_secrets)
        if (self.session_keys is None) != (not self.session_secrets):
            raise ValueError("SESSION_KEYS and SESSION_SECRETS: set both ('syncbeat-server token keys' prints them)")
        return self
