"""Settings of an issuer of access tokens: its keys, and the claims its tokens must have."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from pydantic import Field

from syncbeat_server.defaults import JWT_LEEWAY_S
from syncbeat_server.ops.settings.types import (
    CheckedTogether,
    Names,
    OptionalText,
    OrderedNames,
    ReadableFile,
    Secrets,
    check_base_url,
    check_secrets,
    faults_of,
)

DEFAULT_ISSUER = "syncbeat"


class SubjectFormat(StrEnum):
    """Names the forms that an issuer's user ids can have."""

    UUID = "uuid"
    ANY = "any"


class UnknownUsers(StrEnum):
    """Names the treatments of a valid token whose user the service has not seen before."""

    ACCEPT = "accept"
    REFUSE = "refuse"


class IssuerSettings(CheckedTogether):
    """Settings of one issuer of an app's access tokens.

    An empty setting takes the value of `jwt_profile`, the preset of a known kind of issuer.
    """

    jwt_profile: str = Field(
        default="",
        description="The kind of issuer (supabase, firebase, auth0, clerk, cognito, keycloak, rfc9068), which presets "
        "the claims required and the URL of the keys. Empty: an issuer of your own, for this service alone.",
    )
    jwt_secrets: Secrets = Field(
        default={}, description="HS256 secrets of 32 bytes or more that access tokens are signed with: kid=secret,..."
    )
    jwt_issuer: str = Field(default=DEFAULT_ISSUER, min_length=1, description="The `iss` claim of its tokens.")
    jwt_audience: OrderedNames = Field(
        default=(), description="The `aud` claims accepted, separated by commas. Empty: those of the profile."
    )
    jwt_clients: Names = Field(
        default=frozenset(),
        description="The clients (`azp`, `client_id`) whose tokens are accepted, separated by commas; * accepts all.",
    )
    jwks_file: ReadableFile = Field(
        default=None,
        description="A file with the issuer's public keys (JWKS: RS256, ES256, EdDSA), read at the start "
        "and when the app's tables change.",
    )
    jwks_url: str = Field(
        default="", description="The https URL of the issuer's public keys (JWKS), fetched again as they rotate."
    )
    jwt_optional: Names = Field(
        default=frozenset(),
        description="Claims that a token may lack (iat, aud, role, session_id, azp); one that is there must be right.",
    )
    jwt_roles: Names = Field(
        default=frozenset(), description="The `role` claims accepted. Empty: those of the profile, if it has any."
    )
    jwt_subjects: OptionalText[SubjectFormat] = Field(
        default=None, description="The form of user ids (`sub`). Empty: that of the profile."
    )
    jwt_leeway_s: float = Field(
        default=JWT_LEEWAY_S,
        ge=0.0,
        le=JWT_LEEWAY_S,
        description="Seconds by which a token's times may be off, for clocks that differ.",
    )
    unknown_users: UnknownUsers = Field(
        default=UnknownUsers.ACCEPT,
        description="The treatment of a valid token of a user not seen before.",
    )

    def faults(self) -> Iterator[str]:
        """Yield the faults of keys and their address."""
        yield from faults_of(check_secrets, "JWT_SECRETS", self.jwt_secrets)
        if self.jwks_url:
            yield from faults_of(check_base_url, "JWKS_URL", self.jwks_url)
        yield from super().faults()
