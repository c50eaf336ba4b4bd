"""TLS for everybody, and services that are known by their certificate: real handshakes over real channels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import directory_service_pb2
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.health_probe import probe
from syncbeat_server.rpc.tls import TlsFiles, server_credentials
from tests.support.certificates import Authority, Pair, replace
from tests.support.databases import DatabaseUrls
from tests.support.file_damage import NOT_PEM, remove
from tests.support.ports import free_port
from tests.support.rpc_server import Caller, Server, running_server

pytestmark = pytest.mark.rpc

CA, OTHER_CA, CLIENT_CA = Authority("servers"), Authority("strangers"), Authority("clients")
BACKEND_URI = "spiffe://example.org/backend"
DEVICES = directory_service_pb2.ListDevicesRequest(user_id="ann")
STATS = pb.GetTokenCacheStatsRequest()


@dataclass(frozen=True)
class Secured:
    """A server with TLS, the address where it wants client certificates, and its files."""

    server: Server
    mtls: str
    folder: Path

    @asynccontextmanager
    async def caller(
        self, client: Pair | None = None, *, mtls: bool = False, ca: bytes = CA.certificate
    ) -> AsyncIterator[Caller]:
        """Return a caller who connects like this, by a connection of its own."""
        chain = (client.key, client.certificate) if client is not None else (None, None)
        credentials = grpc.ssl_channel_credentials(ca, *chain)
        options = [("grpc.use_local_subchannel_pool", 1)]
        address = self.mtls if mtls else self.server.address
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            yield Caller(channel, ())


@pytest.fixture
async def secured(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> AsyncIterator[Secured]:
    certificate, key = CA.sign("localhost", "127.0.0.1").write(tmp_path, "server")
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(CLIENT_CA.certificate)
    mtls = f"127.0.0.1:{free_port()}"
    entries = f"backend:*:*:{BACKEND_URI},narrow:GetTokenCacheStats:*:narrow.example.org"
    async with running_server(
        database_urls,
        redis_url,
        TLS_CERTIFICATE=str(certificate),
        TLS_KEY=str(key),
        MTLS_LISTEN=mtls,
        MTLS_CLIENT_CA=str(client_ca),
        SERVICE_CERTIFICATES=entries,
    ) as server:
        yield Secured(server, mtls, tmp_path)


async def status(caller: Caller) -> str:
    """Return how a call ends: OK, the reason of the server, or the status that the channel gives by itself."""
    try:
        await caller(STATS)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return "UNAVAILABLE"
        return (await caller.refusal(STATS)).reason
    return "OK"


async def test_tls_users_authenticate_by_token(secured: Secured) -> None:
    bearer = secured.server.user("ann").metadata
    async with secured.caller() as caller:
        await Caller(caller.channel, bearer)(directory_service_pb2.ListDevicesRequest())
        assert await status(caller) == "TOKEN_INVALID"
    async with secured.caller(ca=OTHER_CA.certificate) as caller:
        assert await status(caller) == "UNAVAILABLE"
    assert await status(Caller(secured.server.channel, bearer)) == "UNAVAILABLE"  # in the clear


async def test_tls_client_certificate_authenticates_a_service_with_its_allow_list(secured: Secured) -> None:
    async with secured.caller(CLIENT_CA.sign(BACKEND_URI), mtls=True) as caller:
        await caller(DEVICES)
    async with secured.caller(CLIENT_CA.sign("x.example.org", "narrow.example.org"), mtls=True) as caller:
        assert await status(caller) == "OK"
        assert (await caller.refusal(DEVICES)).told == ("PERMISSION_DENIED", "ACCESS_DENIED")
    async with secured.caller(CLIENT_CA.sign("x.example.org"), mtls=True) as caller:
        # A token works there too, and is what counts.
        user = Caller(caller.channel, secured.server.user("ann").metadata)
        await user(directory_service_pb2.ListDevicesRequest())


@pytest.mark.parametrize(
    ("client", "ends"),
    [
        (None, "UNAVAILABLE"),
        (OTHER_CA.sign(BACKEND_URI), "UNAVAILABLE"),
        (CLIENT_CA.sign(BACKEND_URI, ended_days=1), "UNAVAILABLE"),
        (CA.sign(BACKEND_URI), "UNAVAILABLE"),
        (CLIENT_CA.sign(), "TOKEN_INVALID"),
        (CLIENT_CA.sign(common_name=BACKEND_URI), "TOKEN_INVALID"),
        (CLIENT_CA.sign(common_name="narrow.example.org"), "TOKEN_INVALID"),
        (CLIENT_CA.sign("other.example.org", f"{BACKEND_URI}/more"), "TOKEN_INVALID"),
        (CLIENT_CA.sign("127.0.0.1"), "TOKEN_INVALID"),
        (CLIENT_CA.sign(BACKEND_URI, "narrow.example.org"), "TOKEN_INVALID"),
    ],
    ids=["none", "stranger", "over", "servers", "no name", "CN", "CN 2", "others", "address", "two services"],
)
async def test_tls_client_certificate_of_others_is_refused(secured: Secured, client: Pair | None, ends: str) -> None:
    async with secured.caller(client, mtls=True) as caller:
        assert await status(caller) == ends


async def test_tls_health_probe_trusts_the_own_certificate(secured: Secured) -> None:
    own = (secured.folder / "server.pem").read_bytes()
    assert await asyncio.to_thread(probe, secured.server.address, 5.0, own) == "SERVING"
    for other in (None, CA.sign("localhost").certificate):
        assert await asyncio.to_thread(probe, secured.server.address, 5.0, other) == "UNAVAILABLE"


async def test_tls_client_certificate_counts_only_where_requested(secured: Secured) -> None:
    async with secured.caller(CLIENT_CA.sign(BACKEND_URI)) as caller:
        assert await status(caller) == "TOKEN_INVALID"


async def test_tls_certificate_reload_without_a_restart(secured: Secured) -> None:
    token = secured.server.backend.metadata
    async with secured.caller() as old:
        await Caller(old.channel, token)(STATS)
        OTHER_CA.sign("localhost", "127.0.0.1").write(secured.folder, "server")
        async with secured.caller(ca=OTHER_CA.certificate) as caller:
            assert await status(Caller(caller.channel, token)) == "OK"
        async with secured.caller() as caller:
            assert await status(Caller(caller.channel, token)) == "UNAVAILABLE"
        # Who was connected stays so.
        await Caller(old.channel, token)(STATS)


async def test_tls_certificate_reload_of_a_broken_rotation_keeps_the_old(secured: Secured) -> None:
    token = secured.server.backend.metadata
    new = OTHER_CA.sign("localhost", "127.0.0.1")
    for content in (new.key, b"", b"-----BEGIN PRIVATE KEY-----\n"):
        replace(secured.folder / "server.key", content)
        async with secured.caller() as caller:
            assert await status(Caller(caller.channel, token)) == "OK"
    os.remove(secured.folder / "server.key")
    async with secured.caller() as caller:
        assert await status(Caller(caller.channel, token)) == "OK"
    new.write(secured.folder, "server")
    async with secured.caller(ca=OTHER_CA.certificate) as caller:
        assert await status(Caller(caller.channel, token)) == "OK"


@pytest.mark.parametrize("name", ["server.pem", "server.key", "clients.pem"])
async def test_tls_reload_error_keeps_the_old_files_and_is_logged_once(
    secured: Secured, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = secured.folder / name
    good = path.read_bytes()
    client = CLIENT_CA.sign(BACKEND_URI)

    async def handshake() -> str:
        async with secured.caller(client, mtls=True) as caller:
            return await status(caller)

    for shape, damage in NOT_PEM.items():
        caplog.clear()
        remove(path)
        damage(path)
        assert [await handshake() for _ in range(3)] == ["OK"] * 3, shape
        remove(path)
        path.write_bytes(good)
        assert await handshake() == "OK", shape
        told = [record.message for record in caplog.records if record.name == "syncbeat_server.rpc.tls"]
        assert told == [
            "the new certificate cannot be used, the old one stays",
            "the certificate can be used again",
        ], shape
    # Nobody came to the other listener meanwhile.
    listeners = {record.__dict__["listener"] for record in caplog.records if hasattr(record, "listener")}
    assert listeners == {"SYNCBEAT_MTLS_LISTEN"}


async def test_tls_certificate_reload_within_a_clock_tick(secured: Secured) -> None:
    token = secured.server.backend.metadata
    path = secured.folder / "server.pem"
    for authority in (OTHER_CA, CA, OTHER_CA):
        found = path.stat()
        pair = authority.sign("localhost", "127.0.0.1")
        pair.write(secured.folder, "server")
        for one in (path, path.with_suffix(".key")):
            os.utime(one, ns=(found.st_atime_ns, found.st_mtime_ns))
        async with secured.caller(ca=authority.certificate) as caller:
            assert await status(Caller(caller.channel, token)) == "OK"


async def test_tls_client_ca_reload_without_a_restart(secured: Secured) -> None:
    replace(secured.folder / "clients.pem", OTHER_CA.certificate)
    async with secured.caller(OTHER_CA.sign(BACKEND_URI), mtls=True) as caller:
        assert await status(caller) == "OK"
    async with secured.caller(CLIENT_CA.sign(BACKEND_URI), mtls=True) as caller:
        assert await status(caller) == "UNAVAILABLE"


async def test_tls_certificate_reload_is_atomic_under_handshakes(secured: Secured) -> None:
    token = secured.server.backend.metadata

    async def connect() -> str:
        async with secured.caller(ca=CA.certificate + OTHER_CA.certificate) as caller:
            return await status(Caller(caller.channel, token))

    connecting = [asyncio.ensure_future(connect()) for _ in range(20)]
    OTHER_CA.sign("localhost", "127.0.0.1").write(secured.folder, "server")
    assert set(await asyncio.gather(*connecting)) == {"OK"}


@pytest.mark.parametrize("wrong", ["key", "certificate", "ca"])
def test_tls_files_unusable_stop_the_start(tmp_path: Path, wrong: str) -> None:
    certificate, key = CA.sign("localhost").write(tmp_path, "server")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(CLIENT_CA.certificate)
    files = TlsFiles(certificate, key, ca)
    server_credentials(files)
    broken = {"key": key, "certificate": certificate, "ca": ca}[wrong]
    for content in (b"", b"text", CA.sign("localhost").key):
        broken.write_bytes(content)
        with pytest.raises(ConfigurationError, match="SYNCBEAT_TLS_CERTIFICATE") as raised:
            server_credentials(files)
        assert "PRIVATE" not in raised.value.message
