"""Decides in the caller's transaction if a subject of an issuer may become another name of a user, and makes it one.

Two people are never joined: a subject that is a person already stays that person, and a person has one subject at an
issuer (ADR 196).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from syncbeat_server.auth.identities.email_digest import email_digest
from syncbeat_server.auth.model import AccountKey, Identity, LinkedBy, VerifiedToken
from syncbeat_server.auth.store import identities, sessions, users
from syncbeat_server.auth.tokens.revocation import is_revoked
from syncbeat_server.errors import IdentityConflict, NotFound, TokenFault, TokenRevoked
from syncbeat_server.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class Join:
    """A subject that is to become another name of a user.

    Attributes:
        home: The issuer whose subjects users without identities are; empty: none.
        link_id: The id of the link token; empty: it is joined by e-mail.
        generation: The user's generation when the link token was signed.
    """

    identity: Identity
    user_id: str
    home: str
    link_id: str = ""
    generation: int = 0

    @property
    def linked_by(self) -> LinkedBy:
        """Return by what it is joined."""
        return LinkedBy.LINK_TOKEN if self.link_id else LinkedBy.VERIFIED_EMAIL


async def require_joinable(conn: Connection, app_id: str, user_id: str, issuer: str, home: str) -> int:
    """Check that a user is known and has no subject at an issuer yet. Returns the user's generation.

    Raises:
        NotFound: the user is unknown, disabled or deleted.
        IdentityConflict: the user has a subject there.
    """
    (status,) = await users.read_statuses(conn, [AccountKey(app_id, user_id, "")])
    if not status.exists or status.blocked:
        raise NotFound("there is no such user, or it is disabled or deleted")
    await _require_no_subject(conn, app_id, user_id, issuer, home)
    return status.generation


async def user_by_email(conn: Connection, app_id: str, issuers: Iterable[str], address: str) -> str:
    """Return the one user whose address one of these issuers had verified. Raises NotFound if it is not one."""
    digest = email_digest(app_id, address)
    found: set[str] = set()
    for issuer in sorted(issuers):
        found.update(await identities.users_by_email(conn, app_id, issuer, digest))
    if len(found) != 1:
        raise NotFound("there is not exactly one user with this verified e-mail address")
    return found.pop()


async def check_join(conn: Connection, token: VerifiedToken, join: Join) -> bool:
    """Lock both users, and check that a subject, by its verified token, may become another name of a user.

    The caller checks beside it that other features keep nothing of a user of the subject's id, if that is another.

    Returns:
        True if it is one already.

    Raises:
        TokenRevoked: either is disabled, deleted or revoked since a token was signed, or the link token is spent.
        IdentityConflict: the subject is another person, or the user has another subject at its issuer.
    """
    identity, issuer = join.identity, token.issuer
    app_id, subject = identity.app_id, identity.subject
    await users.lock_users(conn, app_id, [join.user_id, subject])
    user, bare, status = await users.read_statuses(
        conn,
        [
            AccountKey(app_id, join.user_id, ""),
            AccountKey(app_id, subject, ""),
            AccountKey(app_id, subject, "", issuer.identity_issuer, issuer.claims_ids),
        ],
    )
    if not user.exists or user.blocked:
        detail = "the user to join is unknown, disabled or deleted"
        if not join.link_id:
            raise TokenRevoked("the user with this address cannot be joined", TokenFault.REVOKED, detail)
        raise _dead(detail)
    if any(one.exists and is_revoked(token, one) for one in (bare, status)):
        detail = "the user of its subject is disabled, deleted or revoked"
        raise TokenRevoked("the access token has been revoked", TokenFault.REVOKED, detail)
    if status.user_id == join.user_id:
        return True
    if join.link_id and await identities.is_link_spent(conn, app_id, join.link_id):
        raise _dead("it was spent by another subject")
    if join.link_id and join.generation != user.generation:
        raise _dead("its user was revoked since it was signed")
    if status.user_id not in ("", subject):
        raise IdentityConflict("this subject is linked to another user")
    await _require_no_subject(conn, app_id, join.user_id, identity.issuer, join.home)
    if subject == join.user_id:
        return False  # the issuer has kept the user's id: there is no second person
    others = [one for one in await identities.identities_of(conn, app_id, subject) if one.issuer != identity.issuer]
    if others or await sessions.has_sessions(conn, app_id, subject):
        raise IdentityConflict("this subject is a user who has sessions or other identities")
    return False


async def write_join(conn: Connection, join: Join) -> bool:
    """Make the subject another name of the user, after `check_join`. Returns False if somebody else was first.

    A user without identities gets one of the home issuer, whose subject of that id it has been so far.
    """
    known = await identities.find_identity(conn, join.identity)
    app_id = join.identity.app_id
    if known is not None and known.user_id != join.identity.subject:
        return False  # linked since it was checked: nobody's row was there to be locked
    if not await identities.identities_of(conn, app_id, join.user_id) and join.home:
        home = Identity(app_id, join.home, join.user_id)
        await identities.insert_identity(conn, home, join.user_id, LinkedBy.HOME)
    if known is not None:
        await identities.move_identity(conn, join.identity, join.user_id, join.linked_by, join.link_id or None)
        return True
    return await identities.insert_identity(conn, join.identity, join.user_id, join.linked_by, join.link_id or None)


async def _require_no_subject(conn: Connection, app_id: str, user_id: str, issuer: str, home: str) -> None:
    known = [one.issuer for one in await identities.identities_of(conn, app_id, user_id)]
    # Without identities a user is the home issuer's subject of that id.
    if issuer in (known or [home]):
        raise IdentityConflict("this user has another subject at that issuer")


def _dead(detail: str) -> TokenRevoked:
    return TokenRevoked("the link is not good any more", TokenFault.LINK_TOKEN, detail)
