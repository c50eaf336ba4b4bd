"""Two issuers of one app: the first, whose subjects are the app's user ids, and a new one that users move to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import directory_service_pb2
from syncbeat_server.auth.identities.link_tokens import sign_link_token
from syncbeat_server.auth.model import Issuer, KeyRow, LinkGrant
from syncbeat_server.auth.tokens.keys import parse_signing_keys
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.storage.postgres.database import Database
from tests.support.rpc_server import SESSION_KEYS, Caller, Server

NEW_ISSUER, OTHER_ISSUER = "https://new.example", "https://other.example"
_SECRETS = {NEW_ISSUER: "new-0123456789abcdef0123456789abcdef", OTHER_ISSUER: "oth-0123456789abcdef0123456789abcdef"}
WHO_AM_I = directory_service_pb2.ListDevicesRequest()
FIRST_ISSUER = "syncbeat"
"""The first issuer of the tests' server."""
HOUR = timedelta(hours=1)
(SIGNER,) = parse_signing_keys(
    SESSION_KEYS, Issuer("default", "syncbeat:default", own_sessions=True, uuid_subjects=False)
)


def apps_file(folder: Path, new: str = "", other: str = "") -> str:
    """Write the apps file with both further issuers of the app `default`; the texts are lines of their tables."""
    tables = [
        "\n".join(
            (
                "[[apps.default.issuers]]",
                f'jwt_issuer = "{name}"',
                f'jwt_secrets = "k={_SECRETS[name]}"',
                'jwt_subjects = "any"',
                more,
            )
        )
        for name, more in ((NEW_ISSUER, new), (OTHER_ISSUER, other))
    ]
    path = folder / "apps.toml"
    path.write_text("\n".join(tables))
    return str(path)


def new_token(
    subject: str, issuer: str = NEW_ISSUER, life: timedelta = HOUR, age: timedelta = HOUR, **claims: Any
) -> str:
    """Return an access token of one of the further issuers, issued `age` ago and good for `life` from now."""
    row = KeyRow(Issuer("default", issuer, uuid_subjects=False), "k", "HS256", _SECRETS[issuer])
    return mint(row, subject, datetime.now(UTC) - age, age + life, claims=claims)


async def link_token(server: Server, user_id: str, issuer: str = NEW_ISSUER, **fields: Any) -> str:
    """Have the backend make a link token."""
    made = await server.backend(pb.CreateLinkTokenRequest(user_id=user_id, issuer=issuer, **fields))
    return str(made.link_token)


def anybody(server: Server) -> Caller:
    """Return a caller without credentials."""
    return Caller(server.channel, ())


def link_request(access_token: str, link: str = "") -> pb.LinkIdentityRequest:
    """Return the request that joins the subject of an access token."""
    return pb.LinkIdentityRequest(access_token=access_token, link_token=link)


def signed_grant(signer: KeyRow = SIGNER, **changed: Any) -> str:
    """Return a link token for ann that the server has signed but not made, with these fields of its grant changed."""
    expires_at = changed.pop("expires_at", datetime.now(UTC) + timedelta(minutes=10))
    grant = LinkGrant("default", "ann", NEW_ISSUER, "id-1", 0, expires_at)._replace(**changed)
    return sign_link_token(signer, grant, datetime.now(UTC))


async def sign_in(caller: Caller) -> None:
    """Call, as an app does first."""
    await caller(WHO_AM_I)


async def linked(server: Server, access_token: str, link: str = "") -> Any:
    """Return the answer to LinkIdentity."""
    return await anybody(server)(link_request(access_token, link))


async def refused(server: Server, access_token: str, link: str = "") -> tuple[str, str]:
    """Return how LinkIdentity is refused."""
    return (await anybody(server).refusal(link_request(access_token, link))).told


async def identity_rows(database: Database) -> list[tuple[str, str, str, str]]:
    """Return issuer, subject, user and origin of each identity."""
    async with database.connection() as conn:
        rows = await conn.fetch("SELECT issuer, subject, user_id, linked_by FROM user_identities ORDER BY 1, 2")
    return [tuple(row.values()) for row in rows]
