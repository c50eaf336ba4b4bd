"""Sends, access tokens and webhooks go through one proxy: a real one, which tells what it was asked for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from syncbeat_devtools.fake_fcm import FakeFcm, FakeFcmSettings, running_fake_fcm
from syncbeat_server.app.push.providers import providers
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.push.model import Blame, Content, Outcome, Reason, Verdict
from syncbeat_server.push.providers import Message
from syncbeat_server.push.providers.outgoing_proxy import NoProxy, proxy_for
from tests.support.claimed_delivery import MESSAGE

pytestmark = pytest.mark.http

NAMES = [f"{name}_proxy" for name in ("http", "https", "all", "no")]
SENT = Message(MESSAGE, Content(title="Anna"), "default.ack")


@dataclass
class Proxy:
    """Passes on what it is asked for, unless it refuses with a status."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    credentials: set[str] = field(default_factory=set)
    refuses: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(" ", 2)
            for line in head.split("\r\n"):
                if line.lower().startswith("proxy-authorization: basic "):
                    self.credentials.add(base64.b64decode(line.split(" ", 2)[2]).decode())
            self.asked.append(f"{method} {target}")
            if self.refuses:
                writer.write(f"HTTP/1.1 {self.refuses}\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
                return
            tunnel = method == "CONNECT"
            host, _, port = (target if tunnel else target.split("/")[2]).rpartition(":")
            there, away = await asyncio.open_connection(host, int(port))
            if tunnel:
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                away.write(head.replace(target, "/" + target.split("/", 3)[3], 1).encode())
            await asyncio.gather(pass_on(reader, away), pass_on(there, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    made = Proxy()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made


@pytest.fixture(params=["http", "https"])
async def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm(FakeFcmSettings(tls=request.param == "https")) as running:
        if running.ca_file is not None:
            monkeypatch.setenv("SSL_CERT_FILE", str(running.ca_file))
        yield running


async def outcome(fake: FakeFcm, folder: Path, **settings: str) -> Outcome:
    """Of one send, by what an operator set."""
    account = folder / "account.json"
    fake.write_service_account(account)
    given = {"FCM_CREDENTIALS": str(account), "FCM_BASE_URL": fake.base_url, **settings}
    async with provided({f"SYNCBEAT_{name}": value for name, value in given.items()}) as told:
        return told


@asynccontextmanager
async def provided(given: dict[str, str]) -> AsyncIterator[Outcome]:
    settings = load_settings(given, env_file=None)
    provider, _, _ = providers(settings, settings, SystemClock())
    try:
        yield await provider.send(SENT)
    finally:
        await provider.close()


def asked_for(fake: FakeFcm) -> list[str]:
    if fake.base_url.startswith("https"):
        return [f"CONNECT {fake.base_url.removeprefix('https://')}"] * 2
    return [f"POST {fake.base_url}/token", f"POST {fake.base_url}/v1/projects/demo-project/messages:send"]


@pytest.mark.parametrize("name", ["{scheme}_PROXY", "ALL_PROXY", "PUSH_PROXY"])
async def test_proxy_carries_access_tokens_and_sends(
    fake: FakeFcm, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    name = name.format(scheme=fake.base_url.partition(":")[0].upper())
    settings = {"PUSH_PROXY": proxy.url} if name == "PUSH_PROXY" else {}
    if not settings:
        monkeypatch.setenv(name, proxy.url)
    assert (await outcome(fake, tmp_path, **settings)).verdict is Verdict.SENT
    assert proxy.asked == asked_for(fake)
    assert fake.stats().accepted == 1


async def test_proxy_setting_wins_over_the_environment(
    fake: FakeFcm, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed_port}")
    with_password = proxy.url.replace("://", "://ann:se%40cret@")
    assert (await outcome(fake, tmp_path, PUSH_PROXY=with_password)).verdict is Verdict.SENT
    assert (proxy.asked, proxy.credentials) == (asked_for(fake), {"ann:se@cret"})
    assert (await outcome(fake, tmp_path, PUSH_PROXY="direct")).verdict is Verdict.SENT
    assert len(proxy.asked) == 2


async def test_proxy_honours_no_proxy(
    fake: FakeFcm, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org,127.0.0.1")
    assert (await outcome(fake, tmp_path, PUSH_PROXY=proxy.url)).verdict is Verdict.SENT
    assert proxy.asked == []


async def test_proxy_refusal_is_unsent(fake: FakeFcm, proxy: Proxy, tmp_path: Path, closed_port: int) -> None:
    no_token = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.ACCESS)
    proxy.refuses = "407 Proxy Authentication Required"
    assert await outcome(fake, tmp_path, PUSH_PROXY=proxy.url) == no_token
    assert await outcome(fake, tmp_path, PUSH_PROXY=f"http://127.0.0.1:{closed_port}") == no_token
    given = {"SYNCBEAT_WEBHOOK_URL": "https://relay.example.org/push", "SYNCBEAT_PUSH_PROXY": proxy.url}
    async with provided(given) as told:
        assert told == Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
    assert proxy.asked[-1] == "CONNECT relay.example.org:443", "webhooks go by it too"


@pytest.mark.parametrize(
    ("url", "environment", "setting", "proxy"),
    [
        ("https://a.example.org/x", {}, "", None),
        ("https://a.example.org/x", {"https_proxy": "http://p:1"}, "", "http://p:1"),
        ("https://a.example.org/x", {"HTTPS_PROXY": "p:1"}, "", "http://p:1"),
        ("https://a.example.org/x", {"HTTP_PROXY": "http://p:1"}, "", None),
        ("http://127.0.0.1/x", {"HTTP_PROXY": "http://p:1"}, "", "http://p:1"),
        ("https://a.example.org/x", {"HTTPS_PROXY": "http://p:1"}, "direct", None),
        ("https://a.example.org/x", {"HTTPS_PROXY": "http://p:1"}, "https://q:2", "https://q:2"),
        ("https://a.example.org/x", {"NO_PROXY": ".example.org"}, "http://q:2", None),
        ("https://a.example.org:8443/x", {"NO_PROXY": "a.example.org:8443"}, "http://q:2", None),
        ("https://a.example.org/x", {"NO_PROXY": "*"}, "http://q:2", None),
        ("https://a.example.org/x", {"NO_PROXY": "b.example.org"}, "http://q:2", "http://q:2"),
    ],
)
def test_proxy_is_chosen_by_url(
    url: str, environment: dict[str, str], setting: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url, setting) == proxy


@pytest.mark.parametrize("wrong", ["socks5://p:1", "http://:1", "ftp://p:1", "http://p:99999", "http://[::1", "/p"])
async def test_proxy_invalid_is_refused_without_repeating_it(
    wrong: str, fake: FakeFcm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoProxy) as caught:
        proxy_for("https://example.org", wrong)
    assert wrong not in str(caught.value)
    monkeypatch.setenv("ALL_PROXY", wrong)
    with pytest.raises(ConfigurationError, match="ALL_PROXY, or SYNCBEAT_PUSH_PROXY: want http://host:port"):
        await outcome(fake, tmp_path)
