"""Inserts users who are not known yet, at the first use of a token of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.auth.model import AccountKey, AccountStatus, Identity
from syncbeat_server.auth.store import identities, users
from syncbeat_server.storage.postgres.database import Connection


async def insert_unknown(conn: Connection, found: Sequence[tuple[AccountKey, AccountStatus]]) -> list[AccountKey]:
    """Insert the users of keys that were read without one. Returns the keys to read again.

    A subject that is another's, by an identity, stays nobody. One that has to claim its id becomes a user in the same
    statement as its identity, so that of two issuers with one subject only the first gets the id.
    """
    named = [(key, status.user_id) for key, status in found if status.user_id]
    claiming = [key for key, status in found if not status.user_id and key.claims_id]
    if named:
        await users.insert_users(conn, [(key.app_id, user_id) for key, user_id in named])
    if claiming:
        await identities.claim_ids(conn, [Identity(key.app_id, key.issuer, key.subject) for key in claiming])
    return [key for key, _ in named] + claiming
