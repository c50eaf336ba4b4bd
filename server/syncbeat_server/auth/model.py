"""Values of authentication: principals, issuers, keys, tokens, sessions.

Those made for each call are named tuples, which cost a third of a frozen dataclass to create.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from syncbeat_server.defaults import JWT_LEEWAY_S, UnlinkedSubjects

MAX_LEEWAY = timedelta(seconds=JWT_LEEWAY_S)
ROLE = "authenticated"
"""The role of a signed-in user, under the name that Supabase uses."""
OPTIONAL_CLAIMS = frozenset({"iat", "aud", "role", "session_id"})
"""Claims that are required by default and that an issuer may be configured to omit. `exp`, `iss` and `sub` are always
required."""
ACCESS_TOKEN_TYPES = frozenset({"jwt", "at+jwt"})
"""Header types (`typ`) of access tokens, in lower case; a token without one counts as "jwt"."""


class PrincipalKind(StrEnum):
    """The kind of a caller; the access option of each RPC names the kinds that may call it."""

    USER = "user"
    SERVICE = "service"
    ADMIN = "admin"


class Principal(NamedTuple):
    """A caller whose credentials have been verified.

    Attributes:
        name: The user id, or the service's or operator's configured name.
        app_id: The app of a USER. A SERVICE or ADMIN names the app in each request, one of `apps`.
        methods: The RPCs it may call; None: all that its kind may.
        token: The verified token of a USER.
        tier: The tier that was set for a USER; empty: none. Its token may name another, `token.tier`.
    """

    kind: PrincipalKind
    name: str
    app_id: str = ""
    expires_at: datetime | None = None
    methods: frozenset[str] | None = None
    apps: frozenset[str] = frozenset()
    token: VerifiedToken | None = None
    tier: str = ""

    @property
    def caller(self) -> str:
        """Return the caller's name in records, such as `user:alice` or `service:backend`."""
        return f"{self.kind}:{self.name}"


class LinkedBy(StrEnum):
    """Says by what an identity of a user came to be known."""

    FIRST_SIGN_IN = "FIRST_SIGN_IN"
    IMPORT = "IMPORT"
    HOME = "HOME"
    LINK_TOKEN = "LINK_TOKEN"  # noqa: S105  # no password
    VERIFIED_EMAIL = "VERIFIED_EMAIL"


class ClaimRule(NamedTuple):
    """A claim that must have one of these values if it is present."""

    claim: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer of access tokens for one app's users, and the checks its tokens must pass.

    Claims that are not `required` may be absent; if present they are checked all the same.

    Attributes:
        audiences: Accepted audiences; the first goes into tokens that we mint.
        required: Claims that must be present.
        roles: Values of `role` that denote users; None: the issuer does not use `role`, and its value is ignored.
        uuid_subjects: User ids must be UUIDs.
        own_sessions: The tokens belong to sessions of ours, whose rows are checked.
        accept_unknown_users: A user that is not in the database yet is admitted and inserted.
        clients: Accepted values of `azp` and `client_id`; empty: any.
        client_optional: A token may lack both `azp` and `client_id` even if `clients` is set.
        types: Accepted values of the header's `typ`, in lower case.
        rules: Values of further claims that distinguish the issuer's access tokens from its other tokens.
        accept_id_tokens: ID tokens are accepted as well.
        tier_claim: The claim that names its user's tier, or a path to it (`app_metadata.plan`); empty: none.
        user_id_claim: The claim that is its subject's id, or a path to it.
        unlinked: Who a subject is that is linked to no user.
        email_joins: Issuers whose users its users join by a verified e-mail address that both have.
    """

    app_id: str
    name: str
    audiences: tuple[str, ...] = (ROLE,)
    required: frozenset[str] = OPTIONAL_CLAIMS
    roles: frozenset[str] | None = frozenset({ROLE})
    uuid_subjects: bool = True
    leeway: timedelta = MAX_LEEWAY
    own_sessions: bool = False
    accept_unknown_users: bool = True
    clients: frozenset[str] = frozenset()
    client_optional: bool = False
    types: frozenset[str] = ACCESS_TOKEN_TYPES
    rules: tuple[ClaimRule, ...] = ()
    accept_id_tokens: bool = False
    tier_claim: str = ""
    user_id_claim: str = "sub"
    unlinked: UnlinkedSubjects = UnlinkedSubjects.OWN
    email_joins: frozenset[str] = frozenset()
    identity_issuer: str = field(init=False, repr=False, compare=False)
    claims_ids: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive what is looked up for each token: the issuer of its identities, and if subjects claim free ids."""
        linked = not self.own_sessions and self.unlinked is not UnlinkedSubjects.SHARED
        object.__setattr__(self, "identity_issuer", self.name if linked else "")
        object.__setattr__(self, "claims_ids", linked and self.unlinked is UnlinkedSubjects.NEW)


def home_issuer(issuers: Iterable[Issuer]) -> str:
    """Return the name of the issuer whose subjects users without identities are; empty: none."""
    return next((one.name for one in issuers if one.unlinked is UnlinkedSubjects.OWN), "")


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key that may sign tokens of one issuer, with the single algorithm it may be used with."""

    issuer: Issuer
    kid: str
    algorithm: str
    key: Any


class VerifiedToken(NamedTuple):
    """The contents of an access token that passed all checks.

    `subject` is the user's id, unless an identity of the issuer links it to another (`AccountStatus.user_id`).
    Only tokens of our own sessions carry `generation` (of the user) and `counter` (of the refresh token issued with
    it). `tier` is the tier that the issuer's `tier_claim` names, empty if it names none.
    """

    issuer: Issuer
    subject: str
    session_id: str
    issued_at: datetime | None
    expires_at: datetime
    generation: int = 0
    counter: int = 0
    tier: str = ""


class Identity(NamedTuple):
    """A subject of an issuer of an app's tokens."""

    app_id: str
    issuer: str
    subject: str


class ProvenIdentity(NamedTuple):
    """The verified token of another issuer, and its e-mail address if the issuer says that it has verified it."""

    token: VerifiedToken
    verified_email: str


class LinkGrant(NamedTuple):
    """The contents of a link token: a subject of `issuer` may become the user, until it expires, once.

    `generation` is the user's when it was signed, so that revoking the user revokes it.
    """

    app_id: str
    user_id: str
    issuer: str
    link_id: str
    generation: int
    expires_at: datetime


class AccountKey(NamedTuple):
    """The key of an account status.

    Attributes:
        session_id: Empty for tokens of other issuers, whose sessions are not ours.
        issuer: The issuer of an identity; empty: the subject is the user's id.
        claims_id: A subject without an identity is a user's id only if nobody has that id.
    """

    app_id: str
    subject: str
    session_id: str
    issuer: str = ""
    claims_id: bool = False


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """The state of a user and a session in the database, which decides if a genuine token is still accepted.

    Attributes:
        exists: The user has a row.
        blocked: The user is disabled or deleted.
        generation: Tokens of our sessions with a lower generation are revoked.
        revoked_at: Tokens of other issuers issued up to then are revoked.
        session_active: The session exists, and neither ended nor expired.
        confirmed: The highest refresh-token counter that the client is known to have received.
        tier: The tier that was set for the user; empty: none.
        user_id: Who the subject is; empty: nobody, since the id it would have is another's.
    """

    exists: bool
    blocked: bool = False
    generation: int = 0
    revoked_at: datetime | None = None
    session_active: bool = False
    confirmed: int = 0
    tier: str = ""
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A session (one family of refresh tokens) as shown to its user."""

    session_id: str
    user_id: str
    device_id: str
    created_at: datetime
    refreshed_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session's locked row and its user's state: the input of the rotation decision.

    `counter` is the number of the current refresh token; `confirmed` is the highest that is known to have arrived.
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
    blocked: bool
    user_generation: int


class Revocation(Enum):
    """Tells whether a call revoked a session, or found it revoked."""

    NOW = 1
    BEFORE = 2


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """The time at which a session was written, and the expiries of its refresh token and of itself."""

    now: datetime
    idle_until: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SessionTokens:
    """The tokens issued for a session. `repr` omits them."""

    session_id: str
    access_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_token: str = field(repr=False)
    refresh_expires_at: datetime
    replayed: bool = False
