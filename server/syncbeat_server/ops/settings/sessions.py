"""Settings of our own sessions: what signs their tokens, how long they live, how often they may be renewed."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from syncbeat_server.ops.settings.types import OptionalSecret, Secrets, check_secrets


class SessionSettings(BaseModel):
    """Settings common to all apps' sessions. Lives are in seconds; refreshes are limited per session and minute,
    wrong ones (forged tokens) per address and minute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_keys: OptionalSecret = None
    session_secrets: Secrets = {}
    access_token_s: float = Field(default=3600.0, ge=1.0, le=86_400.0)
    session_idle_s: float = Field(default=30 * 86_400.0, ge=1.0, le=366 * 86_400.0)
    session_max_s: float = Field(default=180 * 86_400.0, ge=1.0, le=1_098 * 86_400.0)
    session_grace_s: float = Field(default=30.0, ge=0.0, le=600.0)
    refreshes_per_minute: int = Field(default=60, ge=1, le=1_000_000)
    wrong_refreshes_per_minute: int = Field(default=30, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _safe_sessions(self) -> Self:
        check_secrets("SESSION_SECRETS", self.session_secrets)
        if (self.session_keys is None) != (not self.session_secrets):
            raise ValueError("SESSION_KEYS and SESSION_SECRETS: set both ('syncbeat-server token keys' prints them)")
        return self
