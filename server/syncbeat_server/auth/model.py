"""Who is calling, and what the parts of that are. What each call makes anew are tuples, which cost a third to make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from syncbeat_server.defaults import JWT_LEEWAY_S

MAX_LEEWAY = timedelta(seconds=JWT_LEEWAY_S)
ROLE = "authenticated"
"""The role of a user who has signed in, as Supabase calls it."""
OPTIONAL_CLAIMS = frozenset({"iat", "aud", "role", "session_id"})
"""What an issuer's tokens must say unless it is let do without; `exp`, `iss` and `sub` nobody can do without."""
ACCESS_TOKEN_TYPES = frozenset({"jwt", "at+jwt"})
"""The kinds (`typ`) that an access token may name in its header; none counts as the first."""


class PrincipalKind(StrEnum):
    """What a caller is; the access option of a method names the kinds it lets in."""

    USER = "user"
    SERVICE = "service"
    ADMIN = "admin"


class Principal(NamedTuple):
    """A caller whose credentials were checked.

    `name` is the user id or the service's name. `app_id` is the app of a USER; a SERVICE or ADMIN names the app in each
    request, out of `apps`. `methods` are the RPCs it may call (None: all its kind may).
    """

    kind: PrincipalKind
    name: str
    app_id: str = ""
    expires_at: datetime | None = None
    methods: frozenset[str] | None = None
    apps: frozenset[str] = frozenset()
    token: VerifiedToken | None = None

    @property
    def caller(self) -> str:
        """How the caller stands in records: `user:alice`, `service:backend`."""
        return f"{self.kind}:{self.name}"


class ClaimRule(NamedTuple):
    """A claim that must have one of these values where it is present."""

    claim: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who issues access tokens of an app's users, and what its tokens must say.

    What is not `required` may be absent; what is present has to be right all the same.

    Attributes:
        audiences: Tokens are for one of these; the first is what we mint.
        required: Claims that must be there.
        roles: Those that are users; None: `role` is no claim of the issuer's, and may say anything.
        uuid_subjects: A user id is a UUID.
        own: These are our sessions, whose rows are looked at.
        first_sight: A user nobody has heard of is let in and recorded.
        clients: Who the tokens may have been issued to (`azp`, `client_id`); empty: whoever it was.
        client_optional: A token may leave open to whom.
        types: What a token may call itself in its header, in lower case.
        rules: Claims of the issuer's own that tell its access tokens from others that it signs.
        id_tokens: Its ID tokens are what users show.
    """

    app_id: str
    name: str
    audiences: tuple[str, ...] = (ROLE,)
    required: frozenset[str] = OPTIONAL_CLAIMS
    roles: frozenset[str] | None = frozenset({ROLE})
    uuid_subjects: bool = True
    leeway: timedelta = MAX_LEEWAY
    own: bool = False
    first_sight: bool = True
    clients: frozenset[str] = frozenset()
    client_optional: bool = False
    types: frozenset[str] = ACCESS_TOKEN_TYPES
    rules: tuple[ClaimRule, ...] = ()
    id_tokens: bool = False


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key that may sign tokens of one issuer, with the only algorithm it is used for."""

    issuer: Issuer
    kid: str
    algorithm: str
    key: Any


class VerifiedToken(NamedTuple):
    """What a good token says. `generation` and `counter` are told by tokens of our own sessions only."""

    issuer: Issuer
    user_id: str
    session_id: str
    issued_at: datetime | None
    expires_at: datetime
    generation: int = 0
    counter: int = 0


class StandingKey(NamedTuple):
    """Whose standing is asked for. `session_id` is empty for tokens of other issuers, whose sessions are not ours."""

    app_id: str
    user_id: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How a user and a session stand: what of a token only the database knows."""

    known: bool
    shut_out: bool = False
    generation: int = 0
    revoked_at: datetime | None = None
    session_alive: bool = False
    confirmed: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """A family of refresh tokens, as its user sees it."""

    session_id: str
    user_id: str
    device_id: str
    created_at: datetime
    refreshed_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session's row, locked, and of its user what decides: all that a refresh token is judged by.

    `counter` is the number of the refresh token that is good, `confirmed` the newest that is known to have arrived.
    """

    user_id: str
    claims: Mapping[str, str]
    counter: int
    confirmed: int
    generation: int
    refreshed_at: datetime
    idle_until: datetime
    expires_at: datetime
    revoked: bool
    shut_out: bool
    user_generation: int


@dataclass(frozen=True, slots=True)
class SessionTokens:
    """What the holder of a session is given. Its text form shows no token."""

    session_id: str
    access_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_token: str = field(repr=False)
    refresh_expires_at: datetime
    replayed: bool = False
