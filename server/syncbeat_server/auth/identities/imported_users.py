"""Writes imported users and their identities in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from syncbeat_server.auth.identities.email_digest import email_digest
from syncbeat_server.auth.model import AccountKey
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


async def write_users(conn: Connection, app_id: str, issuer: str, emails: Mapping[str, str]) -> WrittenUsers:
    """Insert an issuer's subjects as users of their own ids, each with its verified e-mail address, or an empty text.

    Users and identities that are there stay as they are, but for the address, of which a digest is kept.
    """
    ids = sorted(emails)
    await users.lock_users(conn, app_id, ids)
    taken = await identities.taken_ids(conn, app_id, issuer, ids)
    wanted = [one for one in ids if one not in taken]
    known = dict(
        zip(wanted, await users.read_statuses(conn, [AccountKey(app_id, one, "") for one in wanted]), strict=True)
    )
    await users.insert_users(conn, [(app_id, one) for one in wanted])
    # A first sign-in at another issuer may have taken an id just before it was inserted.
    taken |= await identities.taken_ids(conn, app_id, issuer, wanted)
    digests = {one: email_digest(app_id, emails[one]) if emails[one] else None for one in wanted if one not in taken}
    inserted, updated = await identities.import_identities(conn, app_id, issuer, digests)
    return WrittenUsers(
        users=sum(not status.exists for one, status in known.items() if one not in taken),
        identities=inserted,
        emails=updated,
        taken=frozenset(taken),
        blocked=frozenset(one for one, status in known.items() if status.blocked),
    )
