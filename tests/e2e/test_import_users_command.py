"""`syncbeat-server import-users`, as an operator runs it beside the servers of a deployment."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from syncbeat.v1 import directory_service_pb2
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.verify import mint
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.firebase_users import PASSWORD_HASH, export_of, firebase_user
from tests.support.identities import anybody, apps_file, link_request, link_token, new_token
from tests.support.operator_commands import run_command
from tests.support.rpc_server import KID, METHODS, SECRET, Caller, Server, running_server

pytestmark = pytest.mark.process

PROJECT = "our-shop"
ISSUER = f"https://securetoken.google.com/{PROJECT}"
REVOKED = ("UNAUTHENTICATED", "TOKEN_REVOKED")
WHO_AM_I = directory_service_pb2.ListDevicesRequest()
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def file(tmp_path: Path) -> str:
    return apps_file(tmp_path, new=f'email_joins = "{ISSUER}"')


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str, file: str) -> AsyncIterator[Server]:
    """A server at which tokens of the project are known."""
    async with running_server(database_urls, redis_url, APPS_FILE=file, JWT_ISSUER=ISSUER) as running:
        yield running


@pytest.fixture
def run(database_urls: DatabaseUrls, redis_url: str, file: str) -> Run:
    """Runs `syncbeat-server import-users` with the settings of the deployment."""
    settings = {
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_APPS_FILE": file,
        "SYNCBEAT_JWT_ISSUER": ISSUER,
        "SYNCBEAT_JWT_SUBJECTS": "any",
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command("import-users", *arguments, settings=settings)

    return command


def old(server: Server, user_id: str) -> Caller:
    """Return a user by a token of the project."""
    return server.bearer(token_of_project(user_id))


def token_of_project(user_id: str) -> str:
    """Return an access token of the project."""
    row = KeyRow(Issuer("default", ISSUER, uuid_subjects=False), KID, "HS256", SECRET)
    return mint(row, user_id, datetime.now(UTC), timedelta(hours=1))


async def test_import_users_command_lets_imported_users_move(run: Run, server: Server, tmp_path: Path) -> None:
    export = tmp_path / "users.json"
    export.write_bytes(
        export_of(
            firebase_user("ann", emailVerified=True),
            firebase_user("bob"),
            firebase_user("carl", disabled=True),
            {"email": "nobody@example.com"},
        )
    )
    for user_id in ("ann", "bob", "carl"):
        await server.register(user_id, f"phone-of-{user_id}")
        await old(server, user_id)(WHO_AM_I)
    dry = await asyncio.to_thread(run, str(export), "--project", PROJECT, "--dry-run")
    assert dry.returncode == 3, dry.stderr
    assert "would import into app 'default'" in dry.stdout
    assert "no localId  (first: user 4 of the file)" in dry.stdout
    await old(server, "carl")(WHO_AM_I)
    done = await asyncio.to_thread(run, str(export), "--project", PROJECT)
    assert (done.returncode, "1 users are left out" in done.stdout) == (3, True), done.stderr
    assert "of 4 users 0 new ones, 3 identities, 1 disabled" in done.stdout
    assert PASSWORD_HASH not in done.stdout + done.stderr
    assert "example.com" not in done.stdout + done.stderr

    async def is_shut_out() -> bool:
        outcome = await old(server, "carl").outcome(METHODS["ListDevicesRequest"], b"")
        return outcome is not None and outcome.told == REVOKED

    await wait_until(is_shut_out, timeout_s=20.0)  # told over Redis, and not by the cache's end
    by_email = new_token("uuid-of-ann", email="ann@example.com", email_verified=True)
    assert (await anybody(server)(link_request(by_email))).user_id == "ann"
    link = link_request(new_token("uuid-of-bob"), await link_token(server, "bob"))
    assert (await anybody(server)(link)).user_id == "bob"
    for user_id in ("ann", "bob"):
        for caller in (old(server, user_id), server.bearer(new_token(f"uuid-of-{user_id}"))):
            assert [one.device_id for one in (await caller(WHO_AM_I)).devices] == [f"phone-of-{user_id}"]
    again = await asyncio.to_thread(run, str(export), "--project", PROJECT)
    assert "of 4 users 0 new ones, 0 identities, 0 disabled" in again.stdout
    export.write_bytes(export_of(firebase_user("ann", emailVerified=True), firebase_user("bob")))
    whole = await asyncio.to_thread(run, str(export), "--project", PROJECT)
    assert whole.returncode == 0, whole.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("missing.json", "--project", PROJECT), "No such file"),
        (("users.json", "--project", "Our Shop"), "want a project's id"),
        (("users.json",), "--project"),
        (("users.json", "--project", PROJECT, "--app", "none"), "'none' is not configured"),
        (("users.json", "--project", PROJECT), "the export has no users"),
    ],
)
async def test_import_users_command_refuses(run: Run, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    (tmp_path / "users.json").write_text("{}")
    name, *options = arguments
    refused = await asyncio.to_thread(run, str(tmp_path / name), *options)
    assert refused.returncode in (1, 2)
    assert told in refused.stderr
