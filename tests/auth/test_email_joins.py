"""Joining by verified e-mail addresses over the wire, where the operator named the pair; nothing less joins."""

from __future__ import annotations

from typing import Any

import pytest

from syncbeat.v1 import directory_service_pb2
from syncbeat_server.auth.identities.email_digest import email_digest
from syncbeat_server.storage.postgres.database import Database
from tests.support.identities import (
    FIRST_ISSUER,
    NEW_ISSUER,
    OTHER_ISSUER,
    WHO_AM_I,
    identity_rows,
    linked,
    new_token,
    refused,
)
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

REVOKED = ("UNAUTHENTICATED", "TOKEN_REVOKED")
CONFLICT = ("FAILED_PRECONDITION", "IDENTITY_CONFLICT")
NOT_CONFIGURED = ("FAILED_PRECONDITION", "NOT_CONFIGURED")
NOT_FOUND = ("NOT_FOUND", "NOT_FOUND")
DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
EMAIL = "ann@example.com"


async def imported(database: Database, user_id: str, email: str = EMAIL, issuer: str = FIRST_ISSUER) -> None:
    """Make a user whose e-mail address the first issuer has verified, as an import does."""
    async with database.connection() as conn:
        await conn.execute(
            "INSERT INTO users (app_id, user_id, created_at) VALUES ('default', $1, now()) ON CONFLICT DO NOTHING",
            user_id,
        )
        await conn.execute(
            """INSERT INTO user_identities (app_id, issuer, subject, user_id, linked_by, email_digest, linked_at)
               VALUES ('default', $1, $2, $2, 'IMPORT', $3, now())""",
            issuer,
            user_id,
            email_digest("default", email),
        )


async def test_verified_email_joins_the_pair_that_is_named(joined: Server, database: Database) -> None:
    await imported(database, "ann")
    answer = await linked(joined, new_token("uuid-1", email=EMAIL, email_verified=True))
    assert (answer.user_id, answer.already_linked) == ("ann", False)
    assert (await linked(joined, new_token("uuid-1", email=EMAIL, email_verified=True))).already_linked
    assert (NEW_ISSUER, "uuid-1", "ann", "VERIFIED_EMAIL") in await identity_rows(database)
    await joined.register("ann", "phone")
    assert (await joined.bearer(new_token("uuid-1"))(WHO_AM_I)).devices  # whatever later tokens say of e-mail


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"email": EMAIL},
        {"email": EMAIL, "email_verified": False},
        {"email": EMAIL, "email_verified": 1},
        {"email": EMAIL, "email_verified": "true"},
        {"email": [EMAIL], "email_verified": True},
        {"email_verified": True},
        {"email": EMAIL, "user_metadata": {"email_verified": True}},
        {"user_metadata": {"email": EMAIL, "email_verified": True}},
    ],
    ids=str,
)
async def test_unverified_email_joins_nobody(joined: Server, database: Database, claims: dict[str, Any]) -> None:
    await imported(database, "ann")
    before = await identity_rows(database)
    assert await refused(joined, new_token("uuid-1", **claims)) == DENIED
    assert await identity_rows(database) == before


async def test_email_that_is_not_exactly_one_users_joins_nobody(joined: Server, database: Database) -> None:
    await imported(database, "ann")
    await imported(database, "twin", "twin@example.com")
    await imported(database, "twin2", "twin@example.com")
    await imported(database, "other", "other@example.com", OTHER_ISSUER)
    before = await identity_rows(database)
    for email in ("Ann@example.com", "ann@example.com ", "twin@example.com", "nobody@example.com", "other@example.com"):
        assert await refused(joined, new_token("uuid-1", email=email, email_verified=True)) == NOT_FOUND, email
    assert await refused(joined, new_token("u", OTHER_ISSUER, email=EMAIL, email_verified=True)) == NOT_CONFIGURED
    assert await identity_rows(database) == before
    await joined.backend(directory_service_pb2.DisableUserRequest(user_id="ann"))
    assert await refused(joined, new_token("uuid-1", email=EMAIL, email_verified=True)) == REVOKED
    await joined.backend(directory_service_pb2.DeleteUserRequest(user_id="ann"))
    assert await refused(joined, new_token("uuid-1", email=EMAIL, email_verified=True)) == NOT_FOUND


async def test_email_does_not_join_a_user_who_has_a_subject_there(joined: Server, database: Database) -> None:
    await imported(database, "ann")
    await linked(joined, new_token("uuid-1", email=EMAIL, email_verified=True))
    before = await identity_rows(database)
    assert await refused(joined, new_token("uuid-2", email=EMAIL, email_verified=True)) == CONFLICT
    assert await identity_rows(database) == before
