"""Sends to the fake FCM in tests: aiohttp for HTTP/1.1, the `h2` state machine for HTTP/2."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import h2.config
import h2.connection
import h2.events
import jwt
import orjson

from syncbeat_devtools.fake_fcm import FakeFcm, FakeFcmSettings, running_fake_fcm

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SEND_PATH = "/v1/projects/demo-project/messages:send"


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        content: dict[str, Any] = orjson.loads(self.body)
        return content

    @property
    def code(self) -> str:
        """FCM's own error code, '' when there is none."""
        details = self.json["error"].get("details", [])
        codes = [detail["errorCode"] for detail in details if detail["@type"].endswith("fcm.v1.FcmError")]
        return codes[0] if codes else ""

    @property
    def bad_fields(self) -> list[str]:
        """The fields that a BadRequest names."""
        details = self.json["error"].get("details", [])
        return [violation.get("field", "") for d in details for violation in d.get("fieldViolations", ())]


class FcmClient:
    """A client of one fake, over HTTP/1.1."""

    def __init__(self, fake: FakeFcm, session: aiohttp.ClientSession) -> None:
        self.fake = fake
        self.session = session
        self.access_token = ""

    async def request(self, method: str, path: str, **arguments: Any) -> Reply:
        """Any request."""
        async with self.session.request(method, self.fake.base_url + path, **arguments) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, headers, await answer.read())

    async def control(self, method: str, path: str, content: object = None) -> Reply:
        """A request to the control endpoint."""
        return await self.request(method, f"/control/{path}", data=orjson.dumps(content) if content else None)

    async def grant(self, assertion: str, **form: str) -> Reply:
        """A request for an access token."""
        return await self.request("POST", "/token", data={"grant_type": GRANT_TYPE, "assertion": assertion} | form)

    async def sign_in(self) -> None:
        """Get an access token for the sends to come."""
        reply = await self.grant(assertion(self.fake.service_account))
        assert reply.status == 200, reply.body
        self.access_token = reply.json["access_token"]

    async def post(self, body: bytes, *, path: str = SEND_PATH, authorization: str | None = None) -> Reply:
        """A send of these bytes."""
        headers = {"authorization": authorization or f"Bearer {self.access_token}"}
        return await self.request("POST", path, data=body, headers=headers)

    async def send(self, token: str = "phone-1", **fields: Any) -> Reply:
        """A send to a device."""
        return await self.post(orjson.dumps({"message": {"token": token, **fields}}))


@asynccontextmanager
async def signed_in(**settings: Any) -> AsyncIterator[FcmClient]:
    """A running fake and a client with an access token."""
    async with running_fake_fcm(FakeFcmSettings(**settings)) as fake:
        connector = aiohttp.TCPConnector(ssl=trust(fake) or True)
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            client = FcmClient(fake, session)
            await client.sign_in()
            yield client


def trust(fake: FakeFcm) -> ssl.SSLContext | None:
    """A context that trusts the fake's CA and nothing else."""
    return ssl.create_default_context(cafile=fake.ca_file) if fake.ca_file else None


def claims(account: dict[str, str], **changes: Any) -> dict[str, Any]:
    """The claims of a good assertion, with changes; None takes a claim away."""
    now = int(time.time())
    good = {
        "iss": account["client_email"],
        "aud": account["token_uri"],
        "scope": SCOPE,
        "iat": now,
        "exp": now + 3600,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def assertion(account: dict[str, str], key: str = "", key_id: str = "", **changes: Any) -> str:
    """A signed assertion."""
    headers = {"kid": key_id or account["private_key_id"]}
    return jwt.encode(claims(account, **changes), key or account["private_key"], "RS256", headers)


class H2Client:
    """One HTTP/2 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.events: list[h2.events.Event] = []
        self.acknowledge = True

    def start(self, settings: dict[int, int] | None = None) -> None:
        """Send the preface and the settings."""
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)
        self.flush()

    def request(
        self,
        headers: list[tuple[str, str]],
        body: bytes = b"",
        *,
        path: str = SEND_PATH,
        method: str = "POST",
        ends: bool = True,
    ) -> int:
        """Queue a request; returns its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost")]
        self.h2.send_headers(stream_id, pseudo + headers, end_stream=ends and not body)
        if body:
            self.h2.send_data(stream_id, body, end_stream=ends)
        return stream_id

    def flush(self) -> None:
        """Write what is queued."""
        self.writer.write(self.h2.data_to_send())

    async def read(self) -> bool:
        """Take what came; False at the end of the connection."""
        self.flush()
        data = await self._reader.read(65536)
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.flush()
        return True

    async def until(self, kind: type[h2.events.Event], stream_id: int | None = None) -> Any:
        """Read until such an event came."""
        async with asyncio.timeout(10):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                        return event
                assert await self.read(), f"the connection ended before a {kind.__name__}"

    async def reply(self, stream_id: int) -> Reply:
        """The answer on one stream."""
        await self.until(h2.events.StreamEnded, stream_id)
        own: list[Any] = [event for event in self.events if getattr(event, "stream_id", None) == stream_id]
        fields: dict[Any, Any] = next(dict(e.headers) for e in own if isinstance(e, h2.events.ResponseReceived))
        body = b"".join(event.data for event in own if isinstance(event, h2.events.DataReceived))
        return Reply(int(fields.pop(":status")), fields, body)


@asynccontextmanager
async def h2_connection(fake: FakeFcm) -> AsyncIterator[H2Client]:
    """A connection that speaks HTTP/2: by ALPN over TLS, by prior knowledge without; not started yet."""
    context = trust(fake)
    if context is not None:
        context.set_alpn_protocols(["h2"])
    port = int(fake.base_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield H2Client(reader, writer)
    finally:
        writer.transport.abort()
        try:
            await writer.wait_closed()
        except OSError:
            writer.transport.abort()  # the fake broke it already
