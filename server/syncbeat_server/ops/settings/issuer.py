"""Settings of an issuer of access tokens: its keys, and the claims its tokens must have."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from pydantic import Field

from syncbeat_server.defaults import JWT_LEEWAY_S, UnlinkedSubjects
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
_WRITABLE_CLAIM = "user_metadata"
"""A claim that users of Supabase write themselves: nothing that grants anything is read from it."""


def claim_faults(setting: str, claim: str, example: str) -> Iterator[str]:
    """Yield the faults of the path of a claim that something is granted by; `example` is a path that would do."""
    names = claim.split(".")
    if names[0] == _WRITABLE_CLAIM:
        yield f"{setting}: users write user_metadata themselves; want a claim that they cannot: {example}"
    if not all(names):
        yield f"{setting}: want names of claims, each inside the one before, joined by single dots"


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
    jwt_issuer: str = Field(
        default=DEFAULT_ISSUER, min_length=1, max_length=512, description="The `iss` claim of its tokens."
    )
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

    user_id_claim: str = Field(
        default="sub",
        min_length=1,
        max_length=128,
        description="The claim that is the user's id, or a path to it, such as app_metadata.uid.",
    )
    unlinked_subjects: OptionalText[UnlinkedSubjects] = Field(
        default=None,
        description="Who a subject is that no identity links to a user: own, the user of that id; new, a new user, "
        "and nobody if that id is taken; shared, the user of that id, whatever identities say. Empty: own for an app's "
        "first issuer, new for the others.",
    )
    email_joins: Names = Field(
        default=frozenset(),
        description="The issuers, separated by commas, whose imported users this issuer's users may join by an e-mail "
        "address that both have verified. Empty: none.",
    )

    def faults(self) -> Iterator[str]:
        """Yield the faults of keys and their address."""
        yield from faults_of(check_secrets, "JWT_SECRETS", self.jwt_secrets)
        if self.jwks_url:
            yield from faults_of(check_base_url, "JWKS_URL", self.jwks_url)
        yield from claim_faults("USER_ID_CLAIM", self.user_id_claim, "app_metadata.uid")
        if self.jwt_issuer in self.email_joins:
            yield "EMAIL_JOINS: an issuer does not join its own users"
        if self.email_joins and self.unlinked_subjects is UnlinkedSubjects.SHARED:
            yield "EMAIL_JOINS: needs UNLINKED_SUBJECTS=own or new: shared subjects are linked to nobody"
        yield from super().faults()
