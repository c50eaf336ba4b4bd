"""SQL of the `user_identities` table: the subjects of issuers under which users are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from syncbeat_server.auth.model import Identity, LinkedBy
from syncbeat_server.storage.postgres.database import Connection


class KnownIdentity(NamedTuple):
    """A subject of an issuer, the user whom it names, and the link token that was spent on it, if one was."""

    issuer: str
    subject: str
    user_id: str
    link_id: str | None


class ImportState(NamedTuple):
    """Says what is known of an id as a subject of an issuer.

    Attributes:
        taken: It is no such subject: only other identities name the user, or the subject names another user.
        known: The subject has an identity.
        named: An identity names a user of this id.
    """

    taken: bool
    known: bool
    named: bool
    email_digest: bytes | None


async def claim_ids(conn: Connection, subjects: Sequence[Identity]) -> None:
    """Make each subject a user of its own id, in one statement with its identity, if nobody is known by that id."""
    await conn.execute(
        """WITH fresh AS (
               INSERT INTO users (app_id, user_id, created_at)
               SELECT DISTINCT app_id, subject, syncbeat_now()
               FROM unnest($1::text[], $3::text[]) AS k (app_id, subject)
               ORDER BY app_id, subject
               ON CONFLICT DO NOTHING
               RETURNING app_id, user_id)
           INSERT INTO user_identities (app_id, issuer, subject, user_id, linked_by, linked_at)
           SELECT DISTINCT ON (k.app_id, k.subject) k.app_id, k.issuer, k.subject, k.subject, $4, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, issuer, subject)
           JOIN fresh ON (fresh.app_id, fresh.user_id) = (k.app_id, k.subject)
           ORDER BY k.app_id, k.subject, k.issuer
           ON CONFLICT DO NOTHING""",
        [one.app_id for one in subjects],
        [one.issuer for one in subjects],
        [one.subject for one in subjects],
        LinkedBy.FIRST_SIGN_IN.value,
    )


async def find_identity(conn: Connection, identity: Identity) -> KnownIdentity | None:
    """Return the identity of a subject, locked; None if it has none."""
    row = await conn.fetchrow(
        """SELECT issuer, subject, user_id, link_id FROM user_identities
           WHERE app_id = $1 AND issuer = $2 AND subject = $3 FOR UPDATE""",
        *identity,
    )
    return None if row is None else KnownIdentity(*row.values())


async def identities_of(conn: Connection, app_id: str, user_id: str) -> list[KnownIdentity]:
    """Return the identities of a user, in the order of their issuers."""
    rows = await conn.fetch(
        """SELECT issuer, subject, user_id, link_id FROM user_identities
           WHERE app_id = $1 AND user_id = $2 ORDER BY issuer""",
        app_id,
        user_id,
    )
    return [KnownIdentity(*row.values()) for row in rows]


async def find_aliased(conn: Connection, app_id: str, subject: str) -> str | None:
    """Return a user whom a subject of any issuer names by another id than the user's; None if no subject does.

    Also None if there is a user of that id who has an identity: then the id means that user.
    """
    found: str | None = await conn.fetchval(
        """SELECT user_id FROM user_identities a
           WHERE app_id = $1 AND subject = $2 AND user_id <> subject
             AND NOT EXISTS (SELECT FROM user_identities o WHERE (o.app_id, o.user_id) = ($1, $2))
           ORDER BY user_id LIMIT 1""",
        app_id,
        subject,
    )
    return found


async def is_link_spent(conn: Connection, app_id: str, link_id: str) -> bool:
    """Tell if a link token was spent."""
    return bool(
        await conn.fetchval(
            "SELECT EXISTS (SELECT FROM user_identities WHERE app_id = $1 AND link_id = $2)", app_id, link_id
        )
    )


async def users_by_email(conn: Connection, app_id: str, issuer: str, digest: bytes) -> list[str]:
    """Return up to two users whose e-mail address of this digest the issuer had verified."""
    rows = await conn.fetch(
        """SELECT user_id FROM user_identities
           WHERE app_id = $1 AND issuer = $2 AND email_digest = $3 ORDER BY user_id LIMIT 2""",
        app_id,
        issuer,
        digest,
    )
    return [row["user_id"] for row in rows]


async def insert_identity(
    conn: Connection, identity: Identity, user_id: str, linked_by: LinkedBy, link_id: str | None = None
) -> bool:
    """Insert the identity of a user; False if the subject or the user has one at that issuer, or the token is spent."""
    row = await conn.fetchrow(
        """INSERT INTO user_identities (app_id, issuer, subject, user_id, linked_by, link_id, linked_at)
           VALUES ($1, $2, $3, $4, $5, $6, syncbeat_now())
           ON CONFLICT DO NOTHING RETURNING 1 AS inserted""",
        *identity,
        user_id,
        linked_by.value,
        link_id,
    )
    return row is not None


async def move_identity(
    conn: Connection, identity: Identity, user_id: str, linked_by: LinkedBy, link_id: str | None
) -> None:
    """Make a subject that is known name another user."""
    await conn.execute(
        """UPDATE user_identities
           SET user_id = $4, linked_by = $5, link_id = $6, email_digest = NULL, linked_at = syncbeat_now()
           WHERE app_id = $1 AND issuer = $2 AND subject = $3""",
        *identity,
        user_id,
        linked_by.value,
        link_id,
    )


async def forget_emails(conn: Connection, app_id: str, user_id: str) -> None:
    """Delete the digests of a user's e-mail addresses. The identities stay, by which a deleted user is refused."""
    await conn.execute(
        """UPDATE user_identities SET email_digest = NULL
           WHERE app_id = $1 AND user_id = $2 AND email_digest IS NOT NULL""",
        app_id,
        user_id,
    )


async def import_states(conn: Connection, app_id: str, issuer: str, user_ids: Sequence[str]) -> dict[str, ImportState]:
    """Return what is known of each id as a subject of an issuer. By index alone, however many identities there are."""
    rows = await conn.fetch(
        """SELECT k.user_id,
                  CASE WHEN mine.user_id IS NULL THEN other.found IS NOT NULL
                       ELSE mine.user_id <> k.user_id END AS taken,
                  mine.user_id IS NOT NULL AS known, other.found IS NOT NULL AS named, mine.email_digest
           FROM unnest($3::text[]) AS k (user_id)
           LEFT JOIN LATERAL (SELECT a.user_id, a.email_digest FROM user_identities a
                              WHERE a.app_id = $1 AND a.issuer = $2 AND a.subject = k.user_id LIMIT 1) mine ON true
           LEFT JOIN LATERAL (SELECT 1 AS found FROM user_identities o
                              WHERE o.app_id = $1 AND o.user_id = k.user_id LIMIT 1) other ON true""",
        app_id,
        issuer,
        list(user_ids),
    )
    return {row["user_id"]: ImportState(row["taken"], row["known"], row["named"], row["email_digest"]) for row in rows}


async def import_identities(
    conn: Connection, app_id: str, issuer: str, emails: Mapping[str, bytes | None]
) -> tuple[int, int]:
    """Write the identities of users who are an issuer's subjects by their own ids, with the digests of their e-mails.

    Returns:
        How many are new, and of how many known ones the digest changed.
    """
    rows = await conn.fetch(
        """INSERT INTO user_identities AS a (app_id, issuer, subject, user_id, linked_by, email_digest, linked_at)
           SELECT $1, $2, k.user_id, k.user_id, $5, k.digest, syncbeat_now()
           FROM unnest($3::text[], $4::bytea[]) AS k (user_id, digest)
           ORDER BY k.user_id
           ON CONFLICT (app_id, issuer, subject) DO UPDATE SET email_digest = excluded.email_digest
           WHERE a.user_id = excluded.user_id AND a.email_digest IS DISTINCT FROM excluded.email_digest
           RETURNING xmax = 0 AS inserted""",
        app_id,
        issuer,
        list(emails),
        list(emails.values()),
        LinkedBy.IMPORT.value,
    )
    inserted = sum(row["inserted"] for row in rows)
    return inserted, len(rows) - inserted
