"""Sockets of the fake: binding, selection of the HTTP version, start and stop."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

from syncbeat_devtools.fake_fcm.endpoints.oauth import TokenEndpoint
from syncbeat_devtools.fake_fcm.fake import FakeFcm
from syncbeat_devtools.fake_fcm.router import Router
from syncbeat_devtools.fake_fcm.settings import FakeFcmSettings
from syncbeat_devtools.fake_fcm.wire.buffered_protocol import SharedBufferProtocol
from syncbeat_devtools.fake_fcm.wire.certificates import server_context
from syncbeat_devtools.fake_fcm.wire.http1 import Http1Connection
from syncbeat_devtools.fake_fcm.wire.http2 import PREFACE, Http2Connection

_BACKLOG = 4096


class _VersionSelector(asyncio.Protocol):
    """The first protocol of a connection, which replaces itself by that of the client's HTTP version."""

    _transport: asyncio.Transport

    def __init__(self, router: Router, *, http2: bool) -> None:
        self._router = router
        self._http2 = http2
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._router.connections.add(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._switch(http2=tls.selected_alpn_protocol() == "h2")
        elif not self._http2:
            self._switch(http2=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._router.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if len(self._seen) < len(PREFACE) and PREFACE.startswith(self._seen):
            return
        self._switch(http2=self._seen.startswith(PREFACE)).data_received(self._seen)

    def _switch(self, *, http2: bool) -> SharedBufferProtocol:
        connection = Http2Connection(self._router) if http2 else Http1Connection(self._router)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        return connection


@asynccontextmanager
async def running_fake_fcm(settings: FakeFcmSettings | None = None) -> AsyncIterator[FakeFcm]:
    """Run a fake FCM in the current event loop; on exit its connections are closed and its files deleted.

    Raises:
        OSError: the port is taken.
    """
    settings = settings or FakeFcmSettings()
    issuer = await asyncio.to_thread(TokenEndpoint, settings.project_id, settings.token_life_s)
    fake = FakeFcm(settings, issuer)
    router = Router(fake)
    context: ssl.SSLContext | None = None
    with ExitStack() as stack:
        if settings.tls:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fake-fcm-")))
            context, fake.ca_file = server_context(folder, settings.host, http2=settings.http2)
        server = await asyncio.get_running_loop().create_server(
            lambda: _VersionSelector(router, http2=settings.http2),
            settings.host,
            settings.port,
            ssl=context,
            backlog=_BACKLOG,
        )
        port = server.sockets[0].getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        fake.base_url = f"{'https' if settings.tls else 'http'}://{host}:{port}"
        try:
            yield fake
        finally:
            server.close()
            fake.injector.reset_all()
            await router.close()
            for transport in tuple(fake.connections):
                transport.abort()
            await server.wait_closed()


async def serve(settings: FakeFcmSettings, ready: Callable[[FakeFcm], None]) -> None:
    """Run a fake FCM until cancelled; `ready` is called once it accepts connections.

    Under uvloop it handles about twice as many requests a second as under asyncio's own loop.

    Raises:
        OSError: the port is taken.
    """
    async with running_fake_fcm(settings) as fake:
        ready(fake)
        await asyncio.get_running_loop().create_future()
