"""Secrets of services, sessions, stores and webhooks that change while calls go on: none of them is refused."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import grpc
import pytest
from aiohttp import web

from syncbeat.v1 import auth_service_pb2, core_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.auth.tokens.keys import new_signing_key
from syncbeat_server.auth.tokens.verify import parse_token
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import TEST_APP_LOGIN, DatabaseUrls, logins_of, run_sql
from tests.support.fake_clock import wait_until
from tests.support.file_damage import put
from tests.support.http_sites import sites
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import BACKEND, SECRET, SESSION_KEYS, entry, refusal_of, running_server
from tests.support.valkeys import PASSWORD, running_valkey

pytestmark = pytest.mark.rpc

OFTEN = replace(PATIENT, files_every_s=0.05)
OLD, NEW = BACKEND, "the-next-token-of-the-service"
HINT = pb.GetHintRequest(user_id="bob", device_id="phone")
NEXT_LOGIN = "syncbeat_next"


@dataclass
class Load:
    """Calls that never pause, their number, and what they were refused with."""

    calls: int = 0
    refused: list[object] = field(default_factory=list)

    @asynccontextmanager
    async def of(self, *calls: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
        """Make these calls over and over for the block, and require that none is refused."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(self._repeat(call, over))
            try:
                yield
                await self.go_on()
            finally:
                over.set()
        assert self.refused == []

    async def go_on(self) -> None:
        """Return when some more calls were made."""
        seen = self.calls
        await wait_until(lambda: self.calls > seen + 20)

    async def _repeat(self, call: Callable[[], Awaitable[object]], over: asyncio.Event) -> None:
        while not over.is_set():
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                self.refused.append(refusal_of(error))
            self.calls += 1


class Rereadings:
    """Waits until the server has read its secrets anew."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="syncbeat_server")
        self._caplog = caplog
        self._seen = 0

    async def next(self) -> None:
        """Return when they were read once more."""
        self._seen += 1
        await wait_until(lambda: self._count() >= self._seen)

    def _count(self) -> int:
        return sum(one.getMessage() == "secrets were read anew" for one in self._caplog.records)


@pytest.fixture
def reread(caplog: pytest.LogCaptureFixture) -> Rereadings:
    return Rereadings(caplog)


async def test_service_tokens_rotate_under_load_without_a_refusal(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, reread: Rereadings
) -> None:
    file, token = tmp_path / "tokens", OLD
    put(file, entry("backend", OLD))
    given = {"SERVICE_TOKENS": "", "SERVICE_TOKENS_FILE": str(file)}
    async with running_server(database_urls, redis_url, Role.RPC, OFTEN, **given) as server:
        await server.register("bob", "phone")
        load = Load()
        async with load.of(lambda: server.bearer(token)(HINT), lambda: server.user("bob")(HINT)):
            put(file, f"{entry('backend', OLD)},{entry('backend', NEW)}")
            await reread.next()
            token = NEW
            await load.go_on()
            put(file, entry("backend", NEW))
            await reread.next()
        assert (await server.bearer(OLD).refusal(HINT)).told == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_session_keys_and_secrets_rotate_under_load_without_a_refusal(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, reread: Rereadings
) -> None:
    keys, secrets = tmp_path / "keys", tmp_path / "secrets"
    (old,), (new,) = (json.loads(text)["keys"] for text in (SESSION_KEYS, new_signing_key("s2")))
    lines = {"k1": f"k1={SECRET}", "k2": f"k2={SECRET[::-1]}"}

    def write(signing: list[object], *names: str) -> None:
        put(keys, json.dumps({"keys": signing}))
        put(secrets, ",".join(lines[name] for name in names))

    write([old], "k1")
    given = {"SESSION_KEYS": "", "SESSION_SECRETS": "", "REFRESHES_PER_MINUTE": "100000"}
    files = {"SESSION_KEYS_FILE": str(keys), "SESSION_SECRETS_FILE": str(secrets)}
    async with running_server(database_urls, redis_url, Role.RPC, OFTEN, **given, **files) as server:
        await server.register("bob", "phone")
        session = await server.backend(auth_service_pb2.CreateSessionRequest(user_id="bob"))

        async def refresh_and_poll() -> None:
            nonlocal session
            session = await server.bearer("")(
                auth_service_pb2.RefreshSessionRequest(refresh_token=session.refresh_token)
            )
            await server.bearer(session.access_token)(pb.GetHintRequest(device_id="phone"))

        def signed_by_new() -> bool:
            return parse_token(session.access_token).header.kid == "s2"

        load = Load()
        async with load.of(refresh_and_poll):
            write([old, new], "k1", "k2")
            await reread.next()
            await load.go_on()
            assert not signed_by_new()
            write([new, old], "k2", "k1")
            await reread.next()
            await wait_until(signed_by_new)
            await load.go_on()
            write([new], "k2")
            await reread.next()


async def test_logins_of_stores_rotate_under_load_without_a_refusal(
    database_urls: DatabaseUrls, tmp_path: Path, reread: Rereadings
) -> None:
    urls, database, redis = database_urls, tmp_path / "database", tmp_path / "redis"
    await run_sql(
        urls.admin_url,
        f"CREATE ROLE {NEXT_LOGIN} LOGIN",
        f"GRANT syncbeat_service, syncbeat_user TO {NEXT_LOGIN}",
        f"GRANT CONNECT ON DATABASE {urls.name} TO {NEXT_LOGIN}",
    )
    try:
        with running_valkey(tmp_path, "--requirepass", PASSWORD) as valkey:
            redis_url = f"redis://:{PASSWORD}@127.0.0.1:{valkey.port}/0"
            put(database, urls.app_url)
            put(redis, redis_url)
            given = {
                "DATABASE_URL_FILE": str(database),
                "REDIS_URL_FILE": str(redis),
                "DATABASE_CONNECTION_LIFE_S": "1",
            }
            async with running_server(urls, redis_url, Role.RPC, OFTEN, **given) as server:
                await server.register("bob", "phone")
                await server.add("s", "bob")
                load = Load()
                async with load.of(lambda: server.user("bob")(HINT), lambda: server.publish("s")):
                    with valkey.client(PASSWORD) as client:
                        client.execute_command("ACL", "SETUSER", "default", f">{NEW}")
                    put(database, urls.app_url.replace(TEST_APP_LOGIN, NEXT_LOGIN))
                    put(redis, redis_url.replace(PASSWORD, NEW))
                    await reread.next()
                    await run_sql(urls.admin_url, f"REVOKE CONNECT ON DATABASE {urls.name} FROM {TEST_APP_LOGIN}")
                    with valkey.client(NEW) as client:
                        client.execute_command("ACL", "SETUSER", "default", f"<{PASSWORD}")
                        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                        await wait_until(lambda: any(int(one["sub"]) for one in client.client_list()))

                    async def all_moved() -> bool:
                        return await logins_of(urls) == [NEXT_LOGIN]

                    await wait_until(all_moved)
    finally:
        await run_sql(
            urls.admin_url,
            f"GRANT CONNECT ON DATABASE {urls.name} TO {TEST_APP_LOGIN}",
            f"REVOKE CONNECT ON DATABASE {urls.name} FROM {NEXT_LOGIN}",
            f"DROP ROLE {NEXT_LOGIN}",
        )


async def test_webhook_token_rotates_under_load_without_a_refusal(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    file, accepted, shown, refused = tmp_path / "apps.toml", {OLD, NEW}, list[str](), list[str]()

    async def take(request: web.Request) -> web.Response:
        token = request.headers["authorization"].removeprefix("Bearer ")
        shown.append(token)
        if token not in accepted:
            refused.append(token)
        return web.Response(status=204 if token in accepted else 401)

    async with sites(web.post("/push", take)) as address:

        def write(token: str) -> None:
            put(
                file,
                f'[apps.shop]\njwt_issuer = "https://shop.example"\njwt_secrets = {{ k = "{SECRET}" }}\n'
                f'webhook_url = "http://{address}/push"\nwebhook_private = true\nwebhook_token = "{token}"\n',
            )

        write(OLD)
        given = {"APPS_FILE": str(file)}
        async with running_server(database_urls, redis_url, Role.ALL, OFTEN, **given) as server:
            await server.register("bob", "phone", "bobs-token", app_id="shop")
            numbers = count()

            async def notify() -> None:
                await server.backend(
                    push_service_pb2.SendNotificationRequest(
                        app_id="shop",
                        user_ids=core_pb2.UserIds(ids=["bob"]),
                        notification=core_pb2.Notification(title="t"),
                        request_id=f"r{next(numbers)}",
                    )
                )

            async with Load().of(notify):
                await wait_until(lambda: len(shown) > 5)
                write(NEW)
                await wait_until(lambda: len(shown) > 10 and set(shown[-5:]) == {NEW})
                accepted.remove(OLD)
                seen = len(shown)
                await wait_until(lambda: len(shown) > seen + 20)
            assert refused == []
