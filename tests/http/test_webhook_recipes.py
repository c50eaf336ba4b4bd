"""The recipes of deploy/webhooks, run: signed by their vendors' libraries, through a real server, into real stores."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from syncbeat.v1 import event_service_pb2 as pb
from syncbeat.v1.directory_service_pb2 import DisableUserRequest
from syncbeat_server.app import find_config_faults
from syncbeat_server.app.app_configuration import CredentialsFile
from syncbeat_server.app.webhooks.sources import make_sources
from syncbeat_server.defaults import SignatureScheme
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.load import load_settings, load_with_faults
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import SECRET, Server, running_server
from tests.support.webhooks import made_secret, sign

pytestmark = pytest.mark.rpc

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "webhooks"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.toml"))
UUID = "6f1c7b0e-0f5c-4f0a-9c55-0d7b8f0d4b11"
USERS = (
    "SELECT user_id || CASE WHEN deleted_at IS NOT NULL THEN ' deleted' WHEN disabled_at IS NOT NULL THEN ' disabled'"
    " ELSE '' END FROM users"
)
TIERS = "SELECT user_id || ' ' || tier FROM user_tiers"
# What each sample answers, and what stands in the database after it.
EXPECTED: dict[str, tuple[str, list[tuple[str, list[str]]]]] = {
    "stripe": (TIERS, [("ACCEPTED", ["ann pro"]), ("ACCEPTED", []), ("ACCEPTED", [])]),
    "clerk": (
        USERS,
        [
            ("ACCEPTED", ["user_1"]),
            ("ACCEPTED", ["user_1 disabled"]),
            ("IGNORED", ["user_1 disabled"]),
            ("ACCEPTED", ["user_1 deleted"]),
        ],
    ),
    "auth0": (
        USERS,
        [
            ("ACCEPTED", ["auth0|507f1f77bcf86cd799439020"]),
            ("ACCEPTED", ["auth0|507f1f77bcf86cd799439020 disabled"]),
            ("ACCEPTED", ["auth0|507f1f77bcf86cd799439020 deleted"]),
        ],
    ),
    "supabase": (
        USERS,
        [
            ("ACCEPTED", [UUID]),
            ("ACCEPTED", [f"{UUID} disabled"]),
            ("ACCEPTED", [UUID]),
            ("ACCEPTED", [f"{UUID} deleted"]),
        ],
    ),
    "github": (
        "SELECT scope || ' ' || key FROM changes",
        [
            ("ACCEPTED", ["repository-42 pull-request-7"]),
            ("ACCEPTED", ["repository-42 pull-request-7"]),
            ("IGNORED", ["repository-42 pull-request-7"]),
        ],
    ),
}


class Sender:
    """A sender of webhooks to one source of a server."""

    def __init__(self, server: Server, port: int, name: str, scheme: SignatureScheme) -> None:
        self.server, self.scheme = server, scheme
        self.url = f"http://127.0.0.1:{port}/v1/webhooks/shop/{name}"
        self.secret = made_secret(scheme)

    async def send(self, body: bytes, name: str = "msg_1", secret: str | None = None) -> tuple[int, str]:
        """Send a body signed now; the status and the state or reason of the answer."""
        headers = sign(self.scheme, secret or self.secret, body, datetime.now(UTC), name)
        async with aiohttp.ClientSession() as http, http.post(self.url, data=body, headers=headers) as answer:
            told = json.loads(await answer.text())
            return answer.status, told.get("state") or told["reason"]

    async def stands(self, query: str) -> list[str]:
        """Return what stands in the database."""
        conn = await asyncpg.connect(self.server.urls.admin_url)
        try:
            return [row[0] for row in await conn.fetch(f"{query} ORDER BY 1")]
        finally:
            await conn.close()


def recipe(name: str) -> dict[str, Any]:
    """Return the source of a recipe."""
    source: dict[str, Any] = tomllib.loads((FOLDER / f"{name}.toml").read_text())["apps"]["shop"]["sources"][name]
    return source


def samples(name: str) -> list[bytes]:
    """Return the samples of a recipe; GitHub's happen now, since deliveries from before three days are refused."""
    now = datetime.now(UTC).replace(microsecond=0)
    texts = recipe(name)["samples"]
    moved = [
        text.replace("2026-01-01T00:00:00Z", (now - timedelta(minutes=9)).isoformat()).replace(
            "2026-01-01T00:05:00Z", (now - timedelta(minutes=4)).isoformat()
        )
        for text in texts
    ]
    return [text.encode() for text in (moved if name == "github" else texts)]


@asynccontextmanager
async def sending(urls: DatabaseUrls, redis_url: str, name: str, file: Path | None = None) -> AsyncIterator[Sender]:
    port = free_port()
    rules = replace(PATIENT, files_every_s=0.05)
    variables = {"APPS_FILE": str(file or FOLDER / f"{name}.toml"), "EVENTS_LISTEN": f"127.0.0.1:{port}"}
    async with running_server(urls, redis_url, Role.RPC, rules, **variables) as server:
        yield Sender(server, port, name, SignatureScheme(recipe(name)["scheme"]))


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RECIPES:
        for variable in recipe(name)["secret_variables"]:
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(recipe(name)["secret_variables"][0], made_secret(SignatureScheme(recipe(name)["scheme"])))


def test_each_recipe_is_expected() -> None:
    assert set(RECIPES) == set(EXPECTED)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("name", RECIPES)
async def test_recipe_passes_the_check_of_a_start(name: str) -> None:
    settings = load_settings(
        {"SYNCBEAT_APPS_FILE": str(FOLDER / f"{name}.toml"), "SYNCBEAT_JWT_SECRETS": f"k1={SECRET}"}, env_file=None
    )
    assert not await find_config_faults(settings, Role.RPC)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("name", RECIPES)
async def test_samples_of_a_recipe_have_their_effects(database_urls: DatabaseUrls, redis_url: str, name: str) -> None:
    query, expected = EXPECTED[name]
    bodies = samples(name)
    async with sending(database_urls, redis_url, name) as sender:
        for number, (body, (state, stands)) in enumerate(zip(bodies, expected, strict=True)):
            assert await sender.send(body, f"msg_{number}") == (200, state)
            assert await sender.stands(query) == stands
        assert await sender.send(bodies[0], "msg_0") == (200, "DUPLICATE")
        assert await sender.stands(query) == expected[-1][1]


@pytest.mark.usefixtures("secrets")
async def test_late_update_of_a_deleted_user_is_stale(database_urls: DatabaseUrls, redis_url: str) -> None:
    created, updated, _, deleted = samples("clerk")
    async with sending(database_urls, redis_url, "clerk") as sender:
        assert await sender.send(deleted, "msg_3") == (200, "ACCEPTED")
        assert await sender.send(updated, "msg_2") == (200, "STALE")
        assert await sender.send(created, "msg_1") == (200, "STALE")
        assert await sender.stands(USERS) == ["user_1 deleted"]


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("name", ["clerk", "auth0", "supabase"])
async def test_update_without_a_ban_leaves_a_user_disabled_whom_an_operator_disabled(
    database_urls: DatabaseUrls, redis_url: str, name: str
) -> None:
    created, banned = samples(name)[:2]
    async with sending(database_urls, redis_url, name) as sender:
        assert await sender.send(created, "msg_0") == (200, "ACCEPTED")
        (user,) = await sender.stands(USERS)
        await sender.server.backend(DisableUserRequest(app_id="shop", user_id=user))
        assert await sender.send(banned.replace(b"true", b"false"), "msg_1") == (200, "IGNORED")
        assert await sender.stands(USERS) == [f"{user} disabled"]


@pytest.mark.usefixtures("secrets")
async def test_entries_of_the_audit_log_have_the_sender_and_its_address(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    created, banned = samples("clerk")[:2]
    async with sending(database_urls, redis_url, "clerk") as sender:
        assert await sender.send(created, "msg_0") == (200, "ACCEPTED")
        assert await sender.send(banned, "msg_1") == (200, "ACCEPTED")
        entries = "SELECT concat_ws(' ', action, actor, address, details::json ->> 'event_id') FROM audit_entries"
        told = await sender.stands(f"{entries} WHERE app_id = 'shop' AND subject LIKE 'user:%'")
    assert told == ["USER_DISABLED service:webhook:clerk 127.0.0.1 msg_1"]


@pytest.mark.usefixtures("secrets")
async def test_stripe_event_that_comes_again_with_other_counts_is_a_duplicate(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    paid = samples("stripe")[0]
    async with sending(database_urls, redis_url, "stripe") as sender:
        assert await sender.send(paid) == (200, "ACCEPTED")
        assert await sender.send(paid.replace(b'"pending_webhooks": 1', b'"pending_webhooks": 0')) == (200, "DUPLICATE")
        other = paid.replace(b'"type": "invoice.paid"', b'"type": "invoice.payment_failed"')
        assert await sender.send(other) == (200, "REFUSED"), "the id of another event"


@pytest.mark.usefixtures("secrets")
async def test_github_delivery_under_another_id_is_a_duplicate(database_urls: DatabaseUrls, redis_url: str) -> None:
    opened = samples("github")[0]
    async with sending(database_urls, redis_url, "github") as sender:
        assert await sender.send(opened, "delivery-1") == (200, "ACCEPTED")
        assert await sender.send(opened, "delivery-2") == (200, "DUPLICATE")
        old = opened.replace(json.loads(opened)["pull_request"]["updated_at"].encode(), b"2026-01-01T00:00:00Z")
        assert await sender.send(old, "delivery-3") == (422, "INVALID_FIELD"), "older than GitHub sends anything again"


@pytest.mark.usefixtures("secrets")
async def test_event_of_a_webhook_is_shown_by_the_rpcs(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with sending(database_urls, redis_url, "supabase") as sender:
        body = samples("supabase")[0]
        await sender.send(body, "msg_7")
        found = await sender.server.backend(pb.GetEventRequest(app_id="shop", source="supabase", event_id="msg_7"))
    assert (found.event.type, found.event.subject, found.event.payload_json) == ("user.created", UUID, body.decode())


def test_default_app_has_sources_in_the_apps_file_too(tmp_path: Path) -> None:
    file = tmp_path / "apps.toml"
    text = (FOLDER / "github.toml").read_text()
    file.write_text(
        text.replace('[apps.shop]\njwt_issuer = "https://auth.shop.example"\n', "").replace("shop.", "default.")
    )
    settings = load_settings({"SYNCBEAT_APPS_FILE": str(file), "SYNCBEAT_JWT_SECRETS": f"k1={SECRET}"}, env_file=None)
    assert list(settings.all_apps()["default"].sources) == ["github"]


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    ("text", "instead", "fault"),
    [
        ("GITHUB_WEBHOOK_SECRET", "NO_SUCH_VARIABLE", "none of them is set"),
        ('secret_variables = ["', 'secrets = ["short", "', "shorter than 16 bytes"),
        ('["GITHUB_WEBHOOK_SECRET"', '["a", "b", "c", "d"', "want 1 to 4 secrets"),
        ("secret_variables", "secret_files", "there is no file"),
        ('allow = ["PublishChanges"]', "", "want PublishChanges on the caller's allow-list"),
        ('allow = ["PublishChanges"]', 'allow = ["PublishChange"]', "did you mean PublishChanges?"),
        ('allow = ["PublishChanges"]', 'allow = ["GetHint"]', "no effect stands for GetHint"),
        ("pull_request = ", "push = ", "no sample has effects"),
        ("body.pull_request.updated_at", "body.pull_request.node_id", "sample 1: occurred: no ISO 8601 time"),
        ("body.pull_request.updated_at", "body.pull_request.no", "sample 1: occurred: the payload has none"),
        ('occurred = "body.pull_request.updated_at"', "", "it tells an event's age"),
        ("type = ", "max_age_s = 2592000\ntype = ", "can come again for 2592300 s, and is a new one after 30 days"),
        ("{scope: ", "{scoop: ", "sample 1: effects.changes[0]: not a field, or not a value, of the contract"),
        ('scheme = "github"', 'scheme = "paypal"', "sources.github.scheme: want one of standard-webhooks, svix"),
        ("occurred = ", "occured = ", "want scheme, secrets, secret_files"),
        ('subject = "', 'subject = "no_such(', "subject: no"),
    ],
)
async def test_fault_of_a_source_is_named(tmp_path: Path, text: str, instead: str, fault: str) -> None:
    file = tmp_path / "apps.toml"
    file.write_text((FOLDER / "github.toml").read_text().replace(text, instead))
    environment = {"SYNCBEAT_APPS_FILE": str(file), "SYNCBEAT_JWT_SECRETS": f"k1={SECRET}"}
    loaded = load_with_faults(environment, env_file=None)
    found = [*loaded.faults, *(await find_config_faults(loaded.settings, Role.RPC) if loaded.settings else ())]
    assert any(fault in one for one in found), found
    assert not any("short" in one.replace("shorter", "") for one in found), "no secret is repeated"


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(("recipe", "least"), [("github", 4), ("stripe", 3)])
def test_events_are_kept_for_as_long_as_they_can_come_again(recipe: str, least: int) -> None:
    environment = {"SYNCBEAT_APPS_FILE": str(FOLDER / f"{recipe}.toml"), "SYNCBEAT_JWT_SECRETS": f"k1={SECRET}"}
    settings = load_settings(environment, env_file=None)
    assert make_sources(settings.all_apps(), CredentialsFile.read, least)
    with pytest.raises(ConfigurationError, match="SYNCBEAT_KEEP_EVENTS_DAYS higher"):
        make_sources(settings.all_apps(), CredentialsFile.read, least - 1)


# ---------------------------------------------------------------------------------------------------- without a restart


def files_recipe(tmp_path: Path, *secrets: str, change: Callable[[str], str] = str) -> Path:
    """Write the recipe of Stripe with its secrets in files."""
    paths = []
    for number, secret in enumerate(secrets):
        path = tmp_path / f"secret{number}.txt"
        path.write_text(secret + "\n")
        paths.append(str(path))
    text = (FOLDER / "stripe.toml").read_text()
    line = next(one for one in text.splitlines() if one.startswith("secret_variables"))
    file = tmp_path / "apps.toml"
    written = tmp_path / "apps.new"
    written.write_text(change(text.replace(line, f"secret_files = {json.dumps(paths)}")))
    written.rename(file)
    return file


async def test_secret_is_rotated_without_a_restart(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    old, new = made_secret(SignatureScheme.STRIPE, 1), made_secret(SignatureScheme.STRIPE, 2)
    file = files_recipe(tmp_path, old)
    paid = samples("stripe")[0]
    async with sending(database_urls, redis_url, "stripe", file) as sender:
        assert (await sender.send(paid, secret=old))[0] == 200
        assert (await sender.send(paid, secret=new))[0] == 403
        files_recipe(tmp_path, old, new)

        async def answers(secret: str, status: int) -> bool:
            return (await sender.send(paid, secret=secret))[0] == status

        await wait_until(lambda: answers(new, 200))
        assert await answers(old, 200), "both are good while they are rotated"
        (tmp_path / "secret0.txt").write_text(new)
        await wait_until(lambda: answers(old, 403))
        assert await answers(new, 200)
        (tmp_path / "secret0.txt").write_text("short")
        await asyncio.sleep(0)
        assert await answers(new, 200), "what cannot be used changes nothing"


async def test_mapping_is_changed_without_a_restart(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    secret = made_secret(SignatureScheme.STRIPE)
    file = files_recipe(
        tmp_path,
        secret,
        change=lambda text: (
            text.replace('allow = ["SetUserTier"]', 'allow = ["DeleteUser"]')
            .replace("tiers: [{user_id", "users: [{action: 'USER_ACTION_DELETE', user_id")
            .replace(", tier: 'pro'", "")
            .replace(", tier: ''", "")
        ),
    )
    paid = samples("stripe")[0]
    async with sending(database_urls, redis_url, "stripe", file) as sender:
        assert await sender.send(paid) == (200, "ACCEPTED")
        files_recipe(tmp_path, secret)

        async def grants() -> bool:
            body = paid.replace(b"evt_1", f"evt_{datetime.now(UTC).timestamp()}".encode()).replace(b"ann", b"bob")
            await sender.send(body)
            return await sender.stands(TIERS) == ["bob pro"]

        await wait_until(grants)


# -------------------------------------------------------------------------------------------- the trigger of Supabase

STAND_INS = """
CREATE SCHEMA vault; CREATE SCHEMA net; CREATE SCHEMA auth;
CREATE TABLE vault.decrypted_secrets (name text, decrypted_secret text);
CREATE TABLE auth.users (id uuid PRIMARY KEY, email text, banned_until timestamptz);
CREATE TABLE net.sent (number bigserial, url text, body text, headers jsonb);
CREATE FUNCTION net.http_post(url text, body jsonb, headers jsonb) RETURNS bigint LANGUAGE sql AS
  $$ INSERT INTO net.sent (url, body, headers) VALUES (url, body::text, headers) RETURNING number $$;
"""


@pytest.mark.usefixtures("secrets")
async def test_supabase_trigger_signs_what_the_door_takes(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with sending(database_urls, redis_url, "supabase") as sender:
        conn = await asyncpg.connect(database_urls.admin_url)
        try:
            await conn.execute(STAND_INS)
            await conn.execute(
                "INSERT INTO vault.decrypted_secrets VALUES ('syncbeat_webhook_secret', $1)", sender.secret
            )
            await conn.execute("INSERT INTO vault.decrypted_secrets VALUES ('syncbeat_webhook_url', 'https://x')")
            await conn.execute((FOLDER / "supabase.sql").read_text())
            await conn.execute("INSERT INTO auth.users VALUES ($1)", UUID)
            await conn.execute("UPDATE auth.users SET banned_until = now() + interval '1 day'")
            await conn.execute("UPDATE auth.users SET banned_until = banned_until, email = 'a@b.example'")
            await conn.execute("UPDATE auth.users SET banned_until = NULL")
            await conn.execute("UPDATE auth.users SET banned_until = NULL, email = 'b@b.example'")
            await conn.execute("DELETE FROM auth.users")
            sent = await conn.fetch("SELECT body, headers FROM net.sent ORDER BY number")
        finally:
            await conn.close()
        seen = []
        for row in sent:
            headers = json.loads(row["headers"])
            url = sender.url
            async with aiohttp.ClientSession() as http, http.post(url, data=row["body"], headers=headers) as answer:
                assert answer.status == 200, await answer.text()
            seen += await sender.stands(USERS)
    assert seen == [UUID, f"{UUID} disabled", f"{UUID} disabled", UUID, UUID, f"{UUID} deleted"]
