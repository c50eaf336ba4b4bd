"""`syncbeat.Session` against a real server over a real channel, its own clock moved by hand where time matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from syncbeat import Session, SessionTokens, SignedOut, SyncbeatClient
from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import directory_service_pb2
from syncbeat.v1.auth_service_pb2_grpc import AuthServiceServicer, add_AuthServiceServicer_to_server
from syncbeat_server.auth.tokens.verify import mint
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import START, FakeClock, settle, wait_until
from tests.support.rpc_server import KEY, Server, running_server

pytestmark = pytest.mark.rpc

HOUR = timedelta(hours=1)
DEVICES = directory_service_pb2.ListDevicesRequest()


class Vault:
    """Storage that can be slow or broken."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text
        self.saved: list[str | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False

    async def load(self) -> str | None:
        return self.text

    async def save(self, text: str | None) -> None:
        await self.gate.wait()
        if self.broken:
            raise OSError("no room")
        self.text = text
        self.saved.append(text)


class Issuer(AuthServiceServicer):
    """The server's part of a refresh, with its faults; `clock` is that of the session."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.asked: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self.fail: list[tuple[grpc.StatusCode, str]] = []
        self.lose = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def RefreshSession(self, request: pb.RefreshSessionRequest, context: Any) -> pb.RefreshSessionResponse:
        self.asked.append(request.refresh_token)
        self.metadata.append(dict(context.invocation_metadata()))
        await self.gate.wait()
        if self.lose:
            self.lose -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        if self.fail:
            code, reason = self.fail.pop(0)
            await refuse(context, code, reason)
        number = int(request.refresh_token.rpartition("-")[2]) + 1
        return answer(number, self.clock)


async def refuse(context: Any, code: grpc.StatusCode, reason: str) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="syncbeat"))
    status = status_pb2.Status(code=code.value[0], message="no", details=[detail])
    await context.abort(code, "no", (("grpc-status-details-bin", status.SerializeToString()),))


def answer(number: int, clock: FakeClock, life: timedelta = HOUR) -> pb.RefreshSessionResponse:
    made = pb.RefreshSessionResponse(session_id="s", access_token=f"access-{number}", refresh_token=f"refresh-{number}")
    made.access_expire_time.FromDatetime(clock.now() + life)
    made.refresh_expire_time.FromDatetime(clock.now() + 24 * HOUR)
    return made


@pytest.fixture
def clock() -> FakeClock:
    """No database here, so the clock is nobody else's."""
    return FakeClock()


@pytest.fixture
async def issuer(clock: FakeClock) -> AsyncIterator[tuple[Issuer, str]]:
    made = Issuer(clock)  # type: ignore[abstract]  # what it lacks answers UNIMPLEMENTED
    server = grpc.aio.server()
    add_AuthServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made, f"127.0.0.1:{port}"
    await server.stop(0)


class Desk:
    """A session with its client, its issuer and its storage."""

    def __init__(self, clock: FakeClock, issuer: Issuer, address: str, **options: Any) -> None:
        self.clock, self.issuer = clock, issuer
        self.vault = Vault()
        self.signed_out = 0
        self.again: SessionTokens | None = None
        tokens = SessionTokens.of(answer(0, clock))
        self.session = Session(tokens, storage=self.vault, on_signed_out=self._on_signed_out, clock=clock, **options)
        self.client = SyncbeatClient(address, token=self.session, tls=False)

    async def _on_signed_out(self) -> SessionTokens | None:
        self.signed_out += 1
        return self.again


@pytest.fixture
async def desk(clock: FakeClock, issuer: tuple[Issuer, str]) -> AsyncIterator[Desk]:
    made = Desk(clock, *issuer)
    yield made
    await made.session.close()
    await made.client.close()


async def test_session_token_is_immediate_and_refreshed_ahead_of_expiry(desk: Desk, clock: FakeClock) -> None:
    assert await desk.session.token() == "access-0"
    await clock.advance(3_600 - 361)
    assert not desk.issuer.asked
    await clock.advance(62)
    await wait_until(lambda: "refresh-1" in (desk.vault.text or ""))
    assert desk.issuer.asked == ["refresh-0"]
    assert "authorization" not in desk.issuer.metadata[0]
    assert await desk.session.token() == "access-1"
    assert SessionTokens.from_json(desk.vault.text or "").refresh_token == "refresh-1"


async def test_session_refresh_has_a_minute_of_jitter(clock: FakeClock) -> None:
    early = [Session(SessionTokens.of(answer(0, clock)), clock=clock)._early_s for _ in range(200)]
    assert 300 <= min(early) < 310
    assert 350 < max(early) <= 360
    short = SessionTokens.of(answer(0, clock, timedelta(minutes=2)))
    assert Session(short, clock=clock)._early_s == 60


async def test_session_refresh_is_shared_by_a_hundred_tasks(desk: Desk, clock: FakeClock) -> None:
    desk.issuer.gate.clear()
    await desk.session.token()
    clock._elapsed_s += 2 * 3_600  # the device slept: no timer noticed
    tasks = [asyncio.ensure_future(desk.session.token()) for _ in range(100)]
    await wait_until(lambda: desk.issuer.asked)
    tasks[0].cancel()
    desk.issuer.gate.set()
    assert set(await asyncio.gather(*tasks[1:])) == {"access-1"}
    assert desk.issuer.asked == ["refresh-0"]
    assert tasks[0].cancelled()


async def test_session_refresh_does_not_block_while_the_token_is_valid(desk: Desk, clock: FakeClock) -> None:
    desk.issuer.gate.clear()
    await desk.session.token()
    clock._elapsed_s += 3_600 - 200
    assert await desk.session.token() == "access-0"
    await wait_until(lambda: desk.issuer.asked)
    desk.issuer.gate.set()

    async def renewed() -> bool:
        return await desk.session.token() == "access-1"

    await wait_until(renewed)
    assert desk.issuer.asked == ["refresh-0"]


async def test_session_tokens_are_stored_before_use(desk: Desk, clock: FakeClock) -> None:
    await desk.session.token()
    desk.vault.gate.clear()
    clock._elapsed_s += 2 * 3_600
    waiting = asyncio.ensure_future(desk.session.token())
    await wait_until(lambda: desk.session._unsaved)
    await settle()
    assert not waiting.done()
    desk.vault.gate.set()
    assert await waiting == "access-1"
    assert SessionTokens.from_json(desk.vault.text or "").refresh_token == "refresh-1"


async def test_session_tokens_not_stored_are_kept_and_stored_later(desk: Desk, clock: FakeClock) -> None:
    await desk.session.token()
    desk.vault.broken = True
    clock._elapsed_s += 2 * 3_600
    with pytest.raises(OSError, match="no room"):
        await desk.session.token()
    desk.vault.broken = False
    assert await desk.session.token() == "access-1"
    assert SessionTokens.from_json(desk.vault.text or "").refresh_token == "refresh-1"
    assert desk.issuer.asked == ["refresh-0"]


async def test_session_refresh_retries_a_lost_response_with_the_same_token(desk: Desk, clock: FakeClock) -> None:
    await desk.session.token()
    desk.issuer.lose = 1
    clock._elapsed_s += 2 * 3_600
    with pytest.raises(grpc.aio.AioRpcError):
        await desk.session.token()
    assert await desk.session.token() == "access-1"
    assert desk.issuer.asked == ["refresh-0", "refresh-0"]
    assert desk.signed_out == 0


@pytest.mark.parametrize("reason", ["TOKEN_REVOKED", "TOKEN_INVALID", "TOKEN_EXPIRED"])
async def test_session_with_dead_refresh_token_signs_out_once(desk: Desk, clock: FakeClock, reason: str) -> None:
    await desk.session.token()
    desk.issuer.fail = [(grpc.StatusCode.UNAUTHENTICATED, reason)]
    clock._elapsed_s += 2 * 3_600
    results = await asyncio.gather(*(desk.session.token() for _ in range(10)), return_exceptions=True)
    assert {type(result) for result in results} == {SignedOut}
    assert (desk.signed_out, desk.vault.text, len(desk.issuer.asked)) == (1, None, 1)
    with pytest.raises(SignedOut):
        await desk.session.token()
    assert desk.signed_out == 1


async def test_session_continues_after_signing_in_again(desk: Desk, clock: FakeClock) -> None:
    await desk.session.token()
    desk.issuer.fail = [(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")]
    clock._elapsed_s += 2 * 3_600
    desk.again = SessionTokens.of(answer(70, clock))
    assert await desk.session.token() == "access-70"
    assert SessionTokens.from_json(desk.vault.text or "").refresh_token == "refresh-70"


async def test_session_is_restored_from_storage(clock: FakeClock, issuer: tuple[Issuer, str]) -> None:
    vault = Vault(SessionTokens.of(answer(3, clock)).to_json())
    async with Session(storage=vault, clock=clock) as session:
        assert await session.token() == "access-3"
    for text in (None, "", "{}", "[]", "null"):
        async with Session(storage=Vault(text), clock=clock) as session:
            with pytest.raises(SignedOut):
                await session.token()


async def test_session_repr_shows_no_token(desk: Desk) -> None:
    tokens = SessionTokens.of(answer(0, desk.clock))
    for text in (repr(tokens), str(tokens), repr(desk.session)):
        assert "access-0" not in text
        assert "refresh-0" not in text


# ------------------------------------------------------------------------------------------------ with the real server


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    async with running_server(database_urls, redis_url, JWT_LEEWAY_S="0") as running:
        yield running


async def signed_in(server: Server) -> SessionTokens:
    return SessionTokens.of(await server.backend(pb.CreateSessionRequest(user_id="ann")))


def counted(client: SyncbeatClient) -> list[pb.RefreshSessionRequest]:
    """The refreshes that a client makes from now on."""
    made: list[pb.RefreshSessionRequest] = []
    real = client.auth.RefreshSession

    def refresh(request: pb.RefreshSessionRequest, **options: Any) -> Any:
        made.append(request)
        return real(request, **options)

    client.auth.RefreshSession = refresh  # type: ignore[assignment]  # counted on its way
    return made


@asynccontextmanager
async def signed_in_client(server: Server, tokens: SessionTokens) -> AsyncIterator[SyncbeatClient]:
    """A client on a device whose clock is years behind: tokens that are over seem good."""
    session = Session(tokens, clock=FakeClock(START - timedelta(days=3_650)))
    async with SyncbeatClient(server.address, token=session, tls=False) as client, session:
        yield client


async def test_session_retries_an_expired_call_once_with_a_new_token(server: Server) -> None:
    tokens = await signed_in(server)
    async with signed_in_client(server, tokens) as client:
        refreshes = counted(client)
        await client.directory.ListDevices(DEVICES)
        assert not refreshes
    expired = mint(KEY, "ann", datetime.now(UTC) - HOUR, timedelta(minutes=30))
    async with signed_in_client(server, replace(tokens, access_token=expired)) as client:
        refreshes = counted(client)
        await asyncio.gather(*(client.directory.ListDevices(DEVICES) for _ in range(20)))
        assert len(refreshes) == 1


async def test_session_does_not_retry_a_revoked_call(server: Server) -> None:
    tokens = await signed_in(server)
    session = Session(tokens)
    async with SyncbeatClient(server.address, token=session, tls=False) as client, session:
        refreshes = counted(client)
        await server.backend(pb.RevokeUserRequest(user_id="ann"))
        with pytest.raises(grpc.aio.AioRpcError):
            await client.directory.ListDevices(DEVICES)
        assert not refreshes


async def test_session_sign_out_ends_it_on_the_server(server: Server) -> None:
    tokens, vault = await signed_in(server), Vault()
    session = Session(tokens, storage=vault)
    async with SyncbeatClient(server.address, token=session, tls=False) as client:
        await client.directory.ListDevices(DEVICES)
        assert vault.saved[-1:] == [tokens.to_json()]
        await session.sign_out()
        assert vault.saved[-1:] == [None]
        with pytest.raises(SignedOut):
            await client.directory.ListDevices(DEVICES)
    refusal = await server.bearer(tokens.access_token).refusal(DEVICES)
    assert refusal.told == ("UNAUTHENTICATED", "TOKEN_REVOKED")
