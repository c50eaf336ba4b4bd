"""Settings of who issues access tokens: its keys, and what its tokens must say."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from syncbeat_server.ops.settings.types import (
    Names,
    OptionalPath,
    OptionalText,
    OrderedNames,
    Secrets,
    check_base_url,
    check_file,
    check_secrets,
)

DEFAULT_ISSUER = "syncbeat"
RUNNING = "running"
"""Of validation: files were read already, and each that is gone now is told by who reads it anew."""


class Subjects(StrEnum):
    """The form of an issuer's user ids."""

    UUID = "uuid"
    ANY = "any"


class UnknownUsers(StrEnum):
    """The treatment of a good token of a user nobody has heard of."""

    ACCEPT = "accept"
    REFUSE = "refuse"


class IssuerSettings(BaseModel):
    """Settings of the issuer of an app's access tokens: its keys, and the rules for its tokens.

    What is empty is as `jwt_profile`, the kind of issuer, has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    jwt_profile: str = ""
    """Kind of issuer: supabase, firebase, auth0, clerk, cognito, keycloak or rfc9068; empty: one that signs for
    this service alone."""
    jwt_secrets: Secrets = {}
    """HS256 secrets of the issuer, at least 32 bytes each."""
    jwt_issuer: str = Field(default=DEFAULT_ISSUER, min_length=1)
    """Claim `iss` of its tokens."""
    jwt_audience: OrderedNames = ()
    """Values of `aud` that are let in; once set, a token must have one of them. Empty: those of the profile."""
    jwt_clients: Names = frozenset()
    """Values of `azp` and `client_id` that are let in; `*` is any. Empty: not looked at."""
    jwks_file: OptionalPath = None
    """File with its public keys, a JWKS: RS256, ES256 or EdDSA."""
    jwks_url: str = ""
    """URL of its public keys, a JWKS. Empty: where the profile has them, unless a secret or a file is set."""
    jwt_optional: Names = frozenset()
    """Claims that a token may lack, of iat, aud, role, session_id and azp; one that is there has to be right."""
    jwt_roles: Names = frozenset()
    """Values of `role` that are users. Empty: those of the profile."""
    jwt_subjects: OptionalText[Subjects] = None
    """Form of user ids (`sub`). Empty: as the profile has it; UUIDs without a profile."""
    jwt_leeway_s: float = Field(default=30.0, ge=0.0, le=30.0)
    """Tolerated difference between the issuer's clock and ours."""
    unknown_users: UnknownUsers = UnknownUsers.ACCEPT
    """Treatment of a good token of a user nobody has heard of."""

    @model_validator(mode="after")
    def _safe_keys(self, info: ValidationInfo) -> Self:
        check_secrets("JWT_SECRETS", self.jwt_secrets)
        if self.jwks_url:
            check_base_url("JWKS_URL", self.jwks_url)
        if info.context != RUNNING:
            check_file("JWKS_FILE", self.jwks_file)
        return self
