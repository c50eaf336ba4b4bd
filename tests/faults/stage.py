"""Runs the service as processes, and each of its dependencies behind a relay of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
import orjson
from aiohttp import web

from syncbeat_devtools.demo.processes import Identity, Process, start_process
from syncbeat_devtools.fake_fcm import FakeFcm, running_fake_fcm
from syncbeat_devtools.fake_fcm.ledger import Effect
from syncbeat_server.auth.model import KeyRow
from syncbeat_server.auth.tokens.verify import mint
from tests.faults.matrix import Dependency
from tests.support import jwks_publisher
from tests.support.databases import DatabaseUrls, socket_of, url_at
from tests.support.http_sites import sites
from tests.support.rpc_server import Caller
from tests.support.tcp_relays import Relay, relayed

POLLING_USERS = 400
WEBHOOK_APP = "relayed"
_READY_S = 120.0  # with a dozen processes on a busy machine
_SECRET = "a-key-of-the-relayed-app-which-nobody-signs-with"
# A connection of the caller's own to each server, and no retries: what the server says is what is judged.
_CHANNEL = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


@dataclass
class Shown:
    """Records what FCM and the relay were given: when each title came first, and under which ids."""

    at_s: dict[str, float] = field(default_factory=dict)
    ids: dict[str, set[str]] = field(default_factory=dict)
    fcm_sequence: int = 0
    """The last message of the fake FCM that is recorded."""

    def record(self, title: str, shown_as: str, at_s: float) -> None:
        """Record one arrival; `shown_as` names what the device shows, "" where that was there before."""
        self.at_s.setdefault(title, at_s)
        self.ids.setdefault(title, set()).update({shown_as} - {""})


@dataclass
class Issuer:
    """Publishes keys over HTTP, and signs with the newest."""

    publisher: jwks_publisher.Publisher
    row: KeyRow
    kids: list[str] = field(default_factory=lambda: ["k1"])

    def rotate(self) -> None:
        """Publish one more key, which nobody has fetched."""
        self.kids.append(f"k{len(self.kids) + 1}")
        self.publisher.body = jwks_publisher.document(*self.kids)

    def token(self, user_id: str, kid: str = "") -> str:
        """Return an access token by the newest key, or by this one."""
        row = KeyRow(self.row.issuer, kid or self.kids[-1], "ES256", jwks_publisher.KEY)
        return mint(row, user_id, datetime.now(UTC), timedelta(hours=1))


@dataclass(frozen=True)
class FaultStage:
    """The running service and what it depends on."""

    relays: Mapping[Dependency, Relay]
    servers: tuple[Process, ...]
    channels: tuple[grpc.aio.Channel, ...]
    identity: Identity
    issuer: Issuer
    fake: FakeFcm
    shown: Shown
    urls: DatabaseUrls

    def caller(self, token: str, server: int) -> Caller:
        """Return a caller of one of the servers."""
        channel = self.channels[server % len(self.channels)]
        return Caller(channel, (("authorization", f"Bearer {token}"),))

    def backend(self, server: int = 0) -> Caller:
        """Return the app's own backend, at one of the servers."""
        return self.caller(self.identity.service_token, server)

    def look_at_fcm(self) -> None:
        """Record what the fake FCM has accepted; one that took the place of another counts as that one."""
        offset_s = time.monotonic() - time.time()
        while found := self.fake.ledger.list_after(self.shown.fcm_sequence):
            for one in found:
                title = one.message.get("notification", {}).get("title", "")
                shown_as = str(one.sequence) if one.effect is Effect.SHOWN else ""
                self.shown.record(title, shown_as, one.accepted_at + offset_s)
            self.shown.fcm_sequence = found[-1].sequence


@asynccontextmanager
async def fault_stage(
    urls: DatabaseUrls, redis_url: str, folder: Path, starting: asyncio.Lock, **variables: str
) -> AsyncIterator[FaultStage]:
    """Start two servers and a worker for the block; `variables` are more settings.

    Of stages that share `starting` one starts after the other: a dozen processes at once would be late on two cores.
    """
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(running_fake_fcm())
        identity, shown = Identity.new(), Shown()
        publisher = jwks_publisher.Publisher()
        issuer = Issuer(publisher, identity.key)
        web_address = await stack.enter_async_context(_web(publisher, shown))
        targets = {
            Dependency.POSTGRES: socket_of(urls.app_url),
            Dependency.REDIS: urlsplit(redis_url).path,
            Dependency.FCM: urlsplit(fake.base_url).netloc,
            Dependency.JWKS: web_address,
            Dependency.WEBHOOK: web_address,
        }
        relays = {one: await stack.enter_async_context(relayed(target)) for one, target in targets.items()}
        settings = {
            **identity.settings(),
            **_settings(urls, redis_url, {one: relay.address for one, relay in relays.items()}, fake, folder),
            **{f"SYNCBEAT_{name}": value for name, value in variables.items()},
        }
        servers: list[Process] = []
        stack.push_async_callback(_stop, servers)
        async with starting:
            for number, (command, role) in enumerate((("serve", "rpc"), ("serve", "rpc"), ("worker", "worker"))):
                own = {**settings, "SYNCBEAT_ROLE": role}
                servers.append(await start_process([command], own, folder / f"process-{number}.log", ready_s=_READY_S))
        channels = tuple(
            [
                await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=_CHANNEL))
                for server in servers[:2]
            ]
        )
        yield FaultStage(relays, tuple(servers), channels, identity, issuer, fake, shown, urls)


async def _stop(processes: list[Process]) -> None:
    await asyncio.gather(*(process.stop() for process in processes))


def _settings(
    urls: DatabaseUrls, redis_url: str, relays: Mapping[Dependency, str], fake: FakeFcm, folder: Path
) -> dict[str, str]:
    fcm = f"http://{relays[Dependency.FCM]}"
    credentials, apps = folder / "service-account.json", folder / "apps.toml"
    fake.write_service_account(credentials)
    account = orjson.loads(credentials.read_bytes())
    credentials.write_bytes(orjson.dumps({**account, "token_uri": f"{fcm}/token"}))
    apps.write_text(
        f"""[apps.{WEBHOOK_APP}]
jwt_issuer = "https://{WEBHOOK_APP}.example"
jwt_secrets = {{ k = "{_SECRET}" }}
webhook_url = "http://{relays[Dependency.WEBHOOK]}/push"
webhook_private = true
"""
    )
    database = parse_qs(urlsplit(redis_url).query).get("db", ["0"])[0]
    return {
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_DATABASE_URL": url_at(urls.app_url, relays[Dependency.POSTGRES]),
        "SYNCBEAT_REDIS_URL": f"redis://{relays[Dependency.REDIS]}/{database}",
        "SYNCBEAT_JWKS_URL": f"http://{relays[Dependency.JWKS]}/jwks.json",
        "SYNCBEAT_FCM_CREDENTIALS": str(credentials),
        "SYNCBEAT_FCM_BASE_URL": fcm,
        "SYNCBEAT_APPS_FILE": str(apps),
        "SYNCBEAT_PUSH_PROXY": "direct",
        "SYNCBEAT_PUSH_RAMP_S": "0",
        "SYNCBEAT_DELIVERY_TIMEOUT_S": "10",
        "SYNCBEAT_REFRESHES_PER_MINUTE": "10000",
        "SYNCBEAT_DRAIN_S": "1",
        "SYNCBEAT_LOG_LEVEL": "WARNING",
    }


@asynccontextmanager
async def _web(publisher: jwks_publisher.Publisher, shown: Shown) -> AsyncIterator[str]:
    """Serve the issuer's keys, and take what is pushed to the webhook."""

    async def take(request: web.Request) -> web.Response:
        told = orjson.loads(await request.read())
        shown.record(told["content"]["title"], told["delivery_id"], time.monotonic())
        return web.Response(status=204)

    async with sites(web.get("/jwks.json", publisher.handle), web.post("/push", take)) as address:
        yield address
