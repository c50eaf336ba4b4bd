"""Ten thousand users keep their sessions fresh through an afternoon of fake time; nobody is ever sent away."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

import asyncpg
import grpc
import pytest

from syncbeat import Session, SessionTokens
from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1.auth_service_pb2_grpc import AuthServiceStub
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.accounts.cluster_token_cache import ClusterTokenCache
from syncbeat_server.auth.model import Issuer, KeyRow, Principal
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshRateLimit
from syncbeat_server.auth.sessions.refresh_token_codec import RefreshKeys
from syncbeat_server.auth.sessions.rotation_and_reuse import SessionRule
from syncbeat_server.auth.sessions.service import SessionRequest, SessionService
from syncbeat_server.auth.sessions.signing import SigningKeys
from syncbeat_server.auth.tokens.bearer import parse_bearer
from syncbeat_server.auth.tokens.keys import key_table, new_signing_key, parse_signing_keys
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.events.identities.links import IdentityLinks
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.rpc.connection_limits import ConnectionAge
from syncbeat_server.rpc.pipeline.handler_pipeline import HandlerPipeline
from syncbeat_server.rpc.pipeline.load_shedding import Admission
from syncbeat_server.rpc.server import Listener, RpcServer
from syncbeat_server.rpc.servicers.auth import AuthServicer
from tests.support.build import make_authenticator, make_caller_caches, make_sessions
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import START
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.prove

USERS = 10_000
STEP_S = 5.0
HOURS = 3
STEPS_AN_HOUR = int(3_600 / STEP_S)
CYCLE, BURST = int(600 / STEP_S), 12  # every ten minutes the app is opened, and calls twelve times within a minute
ISSUER = Issuer("default", "syncbeat:default", own_sessions=True, uuid_subjects=False)


class SteppedClock:
    """A clock that goes in steps; all who are due wake together, which is what makes it fast."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return self.elapsed_s

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.elapsed_s + seconds, next(self._order), future))
        await future

    def step(self) -> None:
        self.elapsed_s += STEP_S
        while self._sleepers and self._sleepers[0][0] <= self.elapsed_s:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


class World:
    """The server with its stores, on the stepped clock; refreshes go over a real channel."""

    def __init__(
        self,
        clock: SteppedClock,
        door: Authenticator,
        caches: CallerCaches,
        sessions: SessionService,
        channel: grpc.aio.Channel,
    ):
        self.caches = caches
        self.clock, self.door, self.sessions = clock, door, sessions
        self.stub = AuthServiceStub(channel)
        self.refreshed_at: list[float] = []
        self.outcomes: Counter[str] = Counter()

    async def sign_in(self, number: int) -> Session:
        creation = SessionRequest("default", f"user-{number}", "", {}, "service:backend", "", b"")
        made = await self.sessions.create(creation)
        tokens = SessionTokens(
            made.session_id, made.access_token, made.access_expires_at, made.refresh_token, made.refresh_expires_at
        )
        session = Session(tokens, clock=self.clock)
        session.bind(self)  # type: ignore[arg-type]  # counts what goes over the stub
        return session

    async def RefreshSession(self, request: pb.RefreshSessionRequest, timeout: float) -> pb.RefreshSessionResponse:
        self.refreshed_at.append(self.clock.elapsed_s)
        return await self.stub.RefreshSession(request, timeout=timeout)

    async def call(self, session: Session) -> None:
        shown = parse_bearer([f"Bearer {await session.token()}"])
        try:
            if self.door.cached(shown) is None and not isinstance(found := self.door.try_sync(shown), Principal):
                await self.door.authenticate(shown, found)
            self.outcomes["OK"] += 1
        except SyncbeatError as error:
            self.outcomes[error.reason] += 1


@pytest.fixture
async def world(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[World]:
    clock = SteppedClock()
    (signer,) = parse_signing_keys(new_signing_key("s1").decode(), ISSUER)
    table = key_table([KeyRow(ISSUER, signer.kid, signer.algorithm, signer.key.public_key())])
    async with (
        open_database(database_urls.app_url, size=8, name="world") as database,
        open_redis(redis_url, clock) as bus,
    ):
        caches = make_caller_caches(database, clock, 2 * USERS, 2 * USERS)
        door = make_authenticator(Credentials(table, {}, {}, {}), caches, clock)
        signing = SigningKeys({"default": signer}, RefreshKeys({"k": b"s" * 32}))
        sessions = make_sessions(
            database, clock, signing, SessionRule(), forged_per_minute=30, revoked=caches.invalidate_user
        )
        limits = RefreshRateLimit(clock, 60, 30)
        links = IdentityLinks(database, door, sessions.signer_of, clock, caches.invalidate_user, limits)
        servicer = AuthServicer(sessions, links, ClusterTokenCache(caches, lambda: (), bus, "world", lambda *_: None))
        admission = Admission(USERS, lambda: 0.0, lambda: 1.0, random.random, lambda _rank: None)
        pipeline = HandlerPipeline(door, Metrics().rpc, clock, admission)
        server = RpcServer(
            pipeline, {"AuthService": servicer}, reflection=False, share_port=False, age=ConnectionAge(1_800, 1_800)
        )
        (port,) = await server.start([Listener("", "127.0.0.1:0")])
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield World(clock, door, caches, sessions, channel)
        await server.stop(0)


@pytest.mark.timeout(900)
async def test_session_refresh_of_ten_thousand_users_stays_on_schedule(
    world: World, database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    dice = random.Random(7)
    arrivals: dict[int, list[int]] = {}
    for number in range(USERS):
        arrivals.setdefault(dice.randrange(STEPS_AN_HOUR), []).append(number)
    users: list[tuple[int, Session]] = []
    conn = await asyncpg.connect(database_urls.owner_url)
    for step in range(HOURS * STEPS_AN_HOUR):
        world.clock.step()
        await conn.execute("UPDATE test_clock SET at = $1", world.clock.now())
        here = await asyncio.gather(*(world.sign_in(number) for number in arrivals.get(step, ())))
        users += [(step, session) for session in here]
        await asyncio.gather(*(world.call(session) for at, session in users if (step - at) % CYCLE < BURST))
        # A refresh takes no time on this clock.
        while under_way := [s._refreshing for _, s in users if s._refreshing is not None and not s._refreshing.done()]:
            await asyncio.wait(under_way)
    await asyncio.gather(*(session.close() for _, session in users))
    await conn.close()

    minutes = Counter(int(at // 60) for at in world.refreshed_at if at >= 2 * 3_600)
    mean = sum(minutes.values()) / 60
    stats = world.caches.tokens.stats()
    figures = {
        "users": USERS,
        "hours": HOURS,
        "calls": dict(world.outcomes),
        "refreshes": len(world.refreshed_at),
        "refreshes_a_minute": {"mean": round(mean, 1), "peak": max(minutes.values())},
        "peak_over_mean": round(max(minutes.values()) / mean, 2),
        "token_cache_hit_rate": round(stats.hits / (stats.hits + stats.misses), 4),
    }
    record("sessions", figures)
    assert world.outcomes.keys() == {"OK"}, world.outcomes
    assert world.outcomes["OK"] > USERS * HOURS * 50
    assert len(world.refreshed_at) > USERS * (HOURS - 2)
    assert max(minutes.values()) / mean <= 2.0
    assert stats.hits / (stats.hits + stats.misses) >= 0.9
