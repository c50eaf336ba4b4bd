"""Writes imported users and their identities in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from syncbeat_server.auth.identities.email_digest import email_digest
from syncbeat_server.auth.store import identities, users
from syncbeat_server.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class WrittenUsers:
    """Counts what an import wrote, and names who is not what the export says.

    Attributes:
        users: Users who were unknown.
        identities: Identities that were unknown.
        emails: Known identities whose e-mail address is another now, or is not kept any more.
        taken: Ids of another issuer's users, or whose subject is linked to another user: nothing was written of them.
        blocked: Users who were disabled or deleted here before, and stay so.
    """

    users: int
    identities: int
    emails: int
    taken: frozenset[str]
    blocked: frozenset[str]


async def write_users(conn: Connection, app_id: str, issuer: str, home: str, emails: Mapping[str, str]) -> WrittenUsers:
    """Insert an issuer's subjects as users of their own ids, each with its verified e-mail address, or an empty text.

    Users and identities that are there stay as they are, but for the address, of which a digest is kept; none of
    a deleted user, whose erasure it would undo. A known user without identities is a subject of the issuer `home`
    (empty: of none), and so taken for any other.
    """
    ids = sorted(emails)
    known = await users.lock_known(conn, app_id, ids)
    states = await identities.import_states(conn, app_id, issuer, ids)
    unknown = [one for one in ids if one not in known and not states[one].taken]
    inserted = set[str]()
    if unknown:
        inserted = {user_id for _, user_id in await users.insert_users(conn, [(app_id, one) for one in unknown])}
        # A first sign-in may have taken an id just before it was inserted.
        known |= await users.lock_known(conn, app_id, [one for one in unknown if one not in inserted])
        states |= await identities.import_states(conn, app_id, issuer, unknown)
    elsewhere = home not in ("", issuer)
    ours = [one for one in ids if not states[one].taken and not (elsewhere and one in known and not states[one].named)]
    deleted = {one for one, user in known.items() if user.deleted}
    digests = {one: email_digest(app_id, emails[one]) if emails[one] and one not in deleted else None for one in ours}
    wanted = {
        one: made for one, made in digests.items() if (True, made) != (states[one].known, states[one].email_digest)
    }
    added, updated = await identities.import_identities(conn, app_id, issuer, wanted) if wanted else (0, 0)
    return WrittenUsers(
        users=len(inserted & digests.keys()),
        identities=added,
        emails=updated,
        taken=frozenset(ids) - digests.keys(),
        blocked=frozenset(one for one in digests if one in known and any(known[one])),
    )
