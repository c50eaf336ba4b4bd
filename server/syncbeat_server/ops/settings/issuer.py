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

    model_config = ConfigDict(frozen=True, extra="forbid")

    jwt_profile: str = ""
    jwt_secrets: Secrets = {}
    jwt_issuer: str = Field(default=DEFAULT_ISSUER, min_length=1)
    jwt_audience: OrderedNames = ()
    jwt_clients: Names = frozenset()
    jwks_file: OptionalPath = None
    jwks_url: str = ""
    jwt_optional: Names = frozenset()
    jwt_roles: Names = frozenset()
    jwt_subjects: OptionalText[Subjects] = None
    jwt_leeway_s: float = Field(default=30.0, ge=0.0, le=30.0)
    unknown_users: UnknownUsers = UnknownUsers.ACCEPT

    @model_validator(mode="after")
    def _safe_keys(self, info: ValidationInfo) -> Self:
        check_secrets("JWT_SECRETS", self.jwt_secrets)
        if self.jwks_url:
            check_base_url("JWKS_URL", self.jwks_url)
        if info.context != RUNNING:
            check_file("JWKS_FILE", self.jwks_file)
        return self
