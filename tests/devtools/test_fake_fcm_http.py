"""The fake FCM on the wire: HTTP/1.1 and HTTP/2, with TLS and without, on both event loops."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import h2.errors
import h2.events
import h2.settings
import pytest
import uvloop

from syncbeat_devtools.fake_fcm import FakeFcm
from tests.support.fake_clock import wait_until
from tests.support.fcm_client import SEND_PATH, FcmClient, H2Client, Reply, h2_connection, signed_in, trust

pytestmark = pytest.mark.http

BODY = b'{"message":{"token":"a"}}'


def authorized(client: FcmClient) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {client.access_token}"), ("content-type", "application/json")]


def raw(client: FcmClient, body: bytes = BODY, headers: str = "") -> bytes:
    """A send as HTTP/1.1 text."""
    head = f"POST {SEND_PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.access_token}\r\n{headers}"
    if "chunked" not in headers:
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


@asynccontextmanager
async def opened(fake: FakeFcm) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare TCP connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(fake.base_url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.transport.abort()


async def statuses(reader: asyncio.StreamReader, count: int) -> list[int]:
    """The statuses of so many answers."""
    found = []
    for _ in range(count):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        found.append(int(head.split()[1]))
        if found[-1] != 100:
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
    return found


async def test_http1_pipelined_chunked_and_expect_requests_are_served_in_order() -> None:
    async with signed_in() as client, opened(client.fake) as (reader, writer):
        bad = raw(client, b"{}")
        chunked = raw(
            client, b"a\r\n" + BODY[:10] + b"\r\nf\r\n" + BODY[10:] + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n"
        )
        held = raw(client, b'{"message":{"token":"fault:hang:1"}}')
        writer.write(raw(client) * 200 + bad + chunked + held + raw(client))
        assert await statuses(reader, 202) == [*[200] * 200, 400, 200]
        assert client.fake.stats().accepted == 201  # the last one waits behind the one that hangs
        assert client.fake.release() == 1
        assert await statuses(reader, 2) == [200, 200]
        expecting = raw(client, headers="Expect: 100-continue\r\n")
        writer.write(expecting[: -len(BODY)])
        assert await statuses(reader, 1) == [100]
        for byte in BODY:
            writer.write(bytes((byte,)))
            await writer.drain()
        assert await statuses(reader, 1) == [200]


async def test_http1_upgrade_request_is_ignored() -> None:
    async with signed_in() as client, opened(client.fake) as (reader, writer):
        wish = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
        chunked = raw(client, b"19\r\n" + BODY + b"\r\n0\r\n\r\n", wish + "Transfer-Encoding: chunked\r\n")
        writer.write(raw(client, headers=wish) * 3 + chunked + raw(client))
        assert await statuses(reader, 5) == [200] * 5
        writer.write(b"GET /control/stats HTTP/1.1\r\n" + wish.encode() + b"\r\n")
        assert await statuses(reader, 1) == [200]
        writer.write(b"CONNECT x:1 HTTP/1.1\r\n\r\n")
        assert await statuses(reader, 1) == [400]


async def test_http1_malformed_or_oversized_request_ends_the_connection() -> None:
    async with signed_in() as client:
        huge = (
            f"POST {SEND_PATH} HTTP/1.1\r\nContent-Length: {2 << 20}\r\n\r\n".encode()
            + b"x" * (1 << 20)
            + b"x" * 70_000
        )
        endless = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 180_000
        for sent, status in (
            (b"\x00\x01\x02\r\n\r\n", 400),
            (b"PRI * HTTP/2.0\r\n\r\nXX", 400),
            (huge, 413),
            (endless, 413),
        ):
            async with opened(client.fake) as (reader, writer):
                writer.write(sent)
                assert await statuses(reader, 1) == [status]
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    assert status == 413  # it did not read to the end
        await wait_until(lambda: client.fake.stats().connections <= 1)


async def test_http1_response_can_close_the_connection() -> None:
    async with signed_in() as client, opened(client.fake) as (reader, writer):
        writer.write(raw(client, headers="Connection: close\r\n"))
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in answer


@pytest.mark.parametrize("tls", [False, True])
async def test_http2_serves_many_streams_side_by_side(tls: bool) -> None:
    async with signed_in(tls=tls) as client, h2_connection(client.fake) as connection:
        connection.start()
        held = connection.request(authorized(client), b'{"message":{"token":"fault:hang:1"}}')
        ids = [connection.request(authorized(client), b'{"message":{"token":"t%d"}}' % n) for n in range(60)]
        replies = [await connection.reply(stream_id) for stream_id in ids]
        assert {reply.status for reply in replies} == {200}
        assert {reply.headers["content-type"] for reply in replies} == {"application/json; charset=UTF-8"}
        assert {record.target for record in client.fake.deliveries()} == {f"t{n}" for n in range(60)}
        limited = connection.request(authorized(client), b'{"message":{"token":"fault:quota+9:1"}}')
        reply = await connection.reply(limited)
        assert (reply.status, reply.headers["retry-after"], reply.code) == (429, "9", "QUOTA_EXCEEDED")
        assert (await connection.reply(connection.request([], BODY))).status == 401
        assert (await connection.reply(connection.request([], path="/x", method="GET"))).status == 404
        assert client.fake.release() == 1
        assert (await connection.reply(held)).status == 200


async def test_http2_headers_may_be_large_change_and_come_in_pieces() -> None:
    async with signed_in() as client, h2_connection(client.fake) as connection:
        connection.start()
        for n in range(40):  # entries of the header table come, are used again, and go
            extra = [("x-filler", f"{n}" * 3000), ("x-more", "y" * 30_000 if n % 10 == 0 else "")]
            first = connection.request(authorized(client) + extra, BODY)
            again = connection.request(authorized(client) + extra, BODY)
            assert [(await connection.reply(first)).status, (await connection.reply(again)).status] == [200, 200]
        wrong = connection.request([("authorization", "Bearer x")], BODY)
        assert (await connection.reply(wrong)).status == 401
        trailing = connection.request(authorized(client), BODY, ends=False)
        connection.h2.send_headers(trailing, [("x-checksum", "1")], end_stream=True)
        assert (await connection.reply(trailing)).status == 200


async def test_http2_waits_for_the_clients_windows() -> None:
    async with signed_in() as client, h2_connection(client.fake) as connection:
        for n in range(50):
            await client.send(f"t{n}", data={"k": "x" * 3000})
        connection.acknowledge = False
        connection.start(
            {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0, h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0}
        )
        asked = connection.request([], path="/control/deliveries", method="GET")
        other = connection.request([], path="/control/stats", method="GET")
        await connection.until(h2.events.ResponseReceived, asked)
        await connection.until(h2.events.ResponseReceived, other)
        assert not [event for event in connection.events if isinstance(event, h2.events.DataReceived)]
        connection.h2.increment_flow_control_window(1000, other)
        assert (await connection.reply(other)).json["accepted"] == 50
        connection.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
        connection.h2.increment_flow_control_window(1 << 20)
        assert len((await connection.reply(asked)).json["deliveries"]) == 50


async def test_http2_lets_go_of_streams_that_the_client_resets() -> None:
    async with signed_in() as client, h2_connection(client.fake) as connection:
        connection.start()
        hang = b'{"message":{"token":"fault:hang:*"}}'
        for _ in range(300):  # more than may be open at once
            stream_id = connection.request(authorized(client), hang)
            connection.h2.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        waiting = connection.request([], path="/control/deliveries?wait_ms=60000", method="GET")
        connection.h2.reset_stream(waiting)
        assert (await connection.reply(connection.request(authorized(client), BODY))).status == 200
        assert client.fake.stats().hanging == 0
        assert client.fake.ledger._waiters == []
        ids = [connection.request(authorized(client), hang) for _ in range(100)]
        await until_hanging(client, connection, 100)
        assert client.fake.stats().hanging == len(ids)
    await wait_until(lambda: client.fake.stats().hanging == 0)  # the connection is gone


async def until_hanging(client: FcmClient, connection: H2Client, count: int) -> None:
    connection.flush()
    await wait_until(lambda: client.fake.stats().hanging == count)


async def test_http2_refuses_streams_above_its_limit_and_bodies_above_theirs() -> None:
    async with signed_in() as client, h2_connection(client.fake) as connection:
        connection.start()
        await connection.until(h2.events.RemoteSettingsChanged)
        assert connection.h2.remote_settings.max_concurrent_streams == 100
        connection.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
        connection.h2.remote_settings.acknowledge()
        hang = b'{"message":{"token":"fault:hang:*"}}'
        ids = [connection.request(authorized(client), hang) for _ in range(101)]
        refused = await connection.until(h2.events.StreamReset, ids[-1])
        assert refused.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
        assert client.fake.release() == 100
        large = connection.request(authorized(client), b"x", ends=False)
        for _ in range(64):
            connection.h2.send_data(large, b"x" * 16_384)
        reset = await connection.until(h2.events.StreamReset, large)
        assert reset.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        assert (await connection.reply(connection.request(authorized(client), BODY))).status == 200


async def test_http2_opens_the_connections_window_again_and_again() -> None:
    async with signed_in() as client, h2_connection(client.fake) as connection:
        connection.start()
        await connection.until(h2.events.WindowUpdated)
        for _ in range(120):  # of 1 MB each: more than the first window
            stream_id = connection.request(authorized(client), ends=False)
            for _ in range(64):
                connection.h2.send_data(stream_id, b" " * 16_384)
            connection.h2.end_stream(stream_id)
            connection.flush()
            await connection.writer.drain()
            assert (await connection.reply(stream_id)).status == 400
        assert client.fake.stats().statuses == {400: 120}


async def test_http2_answers_pings_and_ends_what_breaks_its_rules() -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    breaches = {
        h2.errors.ErrorCodes.FRAME_SIZE_ERROR: [
            b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
            b"\x00\x00\x01\x04\x00\x00\x00\x00\x00x",
            b"\x00\x00\x01\x06\x00\x00\x00\x00\x00x",
            b"\x00\x00\x01\x08\x00\x00\x00\x00\x00x",
        ],
        h2.errors.ErrorCodes.PROTOCOL_ERROR: [
            b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x",  # DATA on stream 0
            b"\x00\x00\x00\x05\x04\x00\x00\x00\x01",  # PUSH_PROMISE
            b"\x00\x00\x01\x01\x05\x00\x00\x00\x02\x82",  # HEADERS on an even stream
            b"\x00\x00\x01\x01\x0d\x00\x00\x00\x01\xff",  # more padding than frame
            b"\x00\x00\x01\x09\x04\x00\x00\x00\x01\x82",  # CONTINUATION of nothing
            b"\x00\x00\x01\x01\x01\x00\x00\x00\x01\x82" + settings,  # HEADERS, then not CONTINUATION
        ],
        h2.errors.ErrorCodes.COMPRESSION_ERROR: [
            b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\xbf",  # an entry that is not there
            b"\x00\x00\x02\x01\x05\x00\x00\x00\x01\x00\x7f",  # a string that is not there
        ],
        h2.errors.ErrorCodes.ENHANCE_YOUR_CALM: [
            b"\x00\x00\x01\x01\x01\x00\x00\x00\x01\x82" + b"\x00\x00\x00\x09\x00\x00\x00\x00\x01" * 9,
            b"\x00\x00\x01\x01\x01\x00\x00\x00\x01\x82"
            + (b"\x00\x40\x00\x09\x00\x00\x00\x00\x01" + b"\x82" * 16384) * 5,
        ],
    }
    async with signed_in() as client:
        for code, all_sent in breaches.items():
            for sent in all_sent:
                async with opened(client.fake) as (reader, writer):
                    writer.write(preface + settings + sent)
                    goaway = await reader.read()
                    assert goaway.endswith(int(code).to_bytes(4, "big")), (code, sent)
                    assert goaway[-17:-13] == b"\x00\x00\x08\x07", (code, sent)
        async with h2_connection(client.fake) as connection:
            connection.start()
            connection.h2.ping(b"12345678")
            assert (await connection.until(h2.events.PingAckReceived)).ping_data == b"12345678"


async def test_http2_reset_fault_breaks_the_whole_connection() -> None:
    async with signed_in() as client, h2_connection(client.fake) as connection:
        connection.start()
        await connection.until(h2.events.RemoteSettingsChanged)
        connection.request(authorized(client), b'{"message":{"token":"fault:reset:1"}}')
        with pytest.raises(ConnectionResetError):
            await connection.until(h2.events.ResponseReceived)


async def test_curl_speaks_http2_without_tls() -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")  # it is the user's tool, and none of ours
    async with signed_in() as client:
        for option in ("--http2-prior-knowledge", "--http2", "--http1.1"):
            process = await asyncio.create_subprocess_exec(
                curl,
                "-s",
                option,
                "-d",
                BODY,
                "-w",
                "\n%{http_code} %{http_version}",
                "-H",
                f"authorization: Bearer {client.access_token}",
                client.fake.base_url + SEND_PATH,
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await asyncio.wait_for(process.communicate(), 20)
            version = "2" if "prior" in option else "1.1"
            assert output.decode().splitlines()[-1] == f"200 {version}", option


async def test_tls_negotiates_http1_or_http2_by_alpn() -> None:
    async with signed_in(tls=True) as client:
        assert client.fake.base_url.startswith("https://")
        assert client.fake.service_account["token_uri"].startswith("https://")
        assert (await client.send()).status == 200
        for offered, chosen in ((["h2"], "h2"), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "h2")):
            assert await negotiated(client.fake, offered) == chosen
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            async with aiohttp.request("GET", client.fake.base_url):
                raise AssertionError("the system does not know this CA")
        ca_file = client.fake.ca_file
    assert ca_file is not None
    assert not ca_file.parent.exists()
    async with signed_in(tls=True, http2=False) as client:
        assert await negotiated(client.fake, ["h2", "http/1.1"]) == "http/1.1"


async def negotiated(fake: FakeFcm, offered: list[str]) -> str | None:
    context = trust(fake)
    assert context is not None
    context.set_alpn_protocols(offered)
    port = int(fake.base_url.rpartition(":")[2])
    chosen = set()
    for name in ("localhost", "127.0.0.1", "fcm.googleapis.com"):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        chosen.add(tls.selected_alpn_protocol())
        writer.transport.abort()
    assert len(chosen) == 1
    return chosen.pop()


async def test_http2_can_be_disabled() -> None:
    async with signed_in(http2=False) as client:
        assert (await client.send()).status == 200
        async with opened(client.fake) as (reader, writer):
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert await statuses(reader, 1) == [400]


@pytest.mark.parametrize("tls", [False, True])
def test_fake_fcm_behaves_alike_under_uvloop(tls: bool) -> None:
    async def play() -> list[int]:
        async with signed_in(tls=tls) as client:
            found = [(await client.send(token)).status for token in ("a", "fault:503:1", "fault:slow+20:1")]
            try:
                await client.send("fault:reset:1")
            except aiohttp.ClientOSError as error:
                found.append(error.errno or 0)
            async with h2_connection(client.fake) as connection:
                connection.start()
                reply: Reply = await connection.reply(connection.request(authorized(client), BODY))
                found.append(reply.status)
            return found

    assert uvloop.run(play()) == [200, 503, 200, 104, 200]
