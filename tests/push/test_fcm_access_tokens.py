"""Access tokens of FCM, from a token endpoint that refuses, hangs and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from syncbeat_devtools.fake_fcm import FakeFcm, FakeFcmSettings, Fault, FaultKind, running_fake_fcm
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.providers import HttpRule
from syncbeat_server.push.providers.fcm import AccessTokens, FcmProvider
from syncbeat_server.push.providers.fcm.credentials import NoAccessToken
from tests.push.test_fcm_provider import DELIVERY, to
from tests.push.test_fcm_responses import answer, answering
from tests.support.fake_clock import ahead, wait_until

pytestmark = pytest.mark.http

REFUSED = Fault(FaultKind.BAD_PAYLOAD)


class Later(SystemClock):
    """Tells the machine's time of day; what is measured goes on as far as the test says, and no further."""

    by_s = 0.0

    def monotonic(self) -> float:
        """So many seconds since the test began."""
        return self.by_s


@pytest.fixture
async def fake() -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm(FakeFcmSettings(token_life_s=3600)) as running:
        yield running


@pytest.fixture
def clock() -> Later:
    return Later()


@pytest.fixture
def tokens(fake: FakeFcm, tmp_path: Path, clock: Later) -> AccessTokens:
    fake.write_service_account(tmp_path / "account.json")
    return AccessTokens(tmp_path / "account.json", clock)


@pytest.fixture
async def provider(fake: FakeFcm, tokens: AccessTokens, clock: Later) -> AsyncIterator[FcmProvider]:
    opened = FcmProvider(tokens, fake.base_url, HttpRule(50), clock)
    yield opened
    await opened.close()


def no_token(held_s: float | None = None) -> Outcome:
    return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, retry_after_s=held_s, blame=Blame.ACCESS)


async def test_access_token_is_renewed_beside_the_sends_before_it_ends(
    fake: FakeFcm, tokens: AccessTokens, clock: Later
) -> None:
    first = await tokens.current()
    clock.by_s = 54 * 60
    assert await tokens.current() == first
    clock.by_s = 56 * 60
    assert await tokens.current() == first, "nobody waits for the next one"

    async def renewed() -> bool:
        return await tokens.current() != first

    await wait_until(renewed)
    assert fake.stats().token_calls == 2


async def test_access_token_with_life_left_is_used_when_its_renewal_fails(
    fake: FakeFcm, provider: FcmProvider, tokens: AccessTokens, clock: Later, caplog: pytest.LogCaptureFixture
) -> None:
    first = await tokens.current()
    clock.by_s = 56 * 60
    fake.script("/token", Fault(FaultKind.BAD_PAYLOAD, times=3))

    def is_told(count: int) -> bool:
        return caplog.text.count("no new access token") == count

    for count in (1, 2, 3):
        assert (await provider.send(DELIVERY)).verdict is Verdict.SENT
        # It is told when it is over, and holds off the next.
        await wait_until(partial(is_told, count))
        clock.by_s += 10.0  # longer than the next is held off
    assert fake.stats().faults == {"bad-payload": 3}
    fake.script("/token", Fault(FaultKind.HANG))
    assert await tokens.current() == first
    await wait_until(lambda: fake.stats().hanging == 1)
    assert (await provider.send(DELIVERY)).verdict is Verdict.SENT, "nor is one that hangs waited for"
    fake.release("/token")


async def test_access_token_that_ended_is_not_used(fake: FakeFcm, tokens: AccessTokens, clock: Later) -> None:
    first = await tokens.current()
    clock.by_s = 3600.1
    fake.script("/token", REFUSED)
    with pytest.raises(NoAccessToken):
        await tokens.current()
    assert await tokens.current() != first


async def test_access_token_that_was_refused_is_not_given_again(fake: FakeFcm, tokens: AccessTokens) -> None:
    first = await tokens.current()
    fake.script("/token", REFUSED)
    with pytest.raises(NoAccessToken):
        await tokens.current(refused=first)
    assert await tokens.current() == first, "who knows of no refusal may try it"
    assert await tokens.current(refused=first) != first


async def test_token_endpoint_refusing_once_is_asked_once_and_pauses_nobody(
    fake: FakeFcm, provider: FcmProvider
) -> None:
    fake.script("/token", REFUSED)
    outcomes = await asyncio.gather(*(provider.send(to(f"p{n}")) for n in range(30)))
    assert set(outcomes) == {no_token()}
    assert fake.stats().requests == 0
    assert (await provider.send(DELIVERY)).verdict is Verdict.SENT
    assert fake.stats().token_calls == 1


async def test_token_endpoint_backoff_is_ten_seconds_while_refusing(
    fake: FakeFcm, provider: FcmProvider, clock: Later
) -> None:
    fake.script("/token", Fault(FaultKind.BAD_PAYLOAD, times=None))
    holds = []
    for _ in range(8):
        held_s = (await provider.send(DELIVERY)).retry_after_s or 0.0
        holds.append(held_s)
        if held_s:
            assert (await provider.send(DELIVERY)).blame is Blame.ACCESS, "not asked meanwhile"
        clock.by_s += held_s
    assert holds == [0, 1, 2, 4, 8, 10, 10, 10]
    assert fake.stats().faults["bad-payload"] == 8
    fake.clear_faults("/token")
    assert (await provider.send(DELIVERY)).verdict is Verdict.SENT


async def test_token_endpoint_timeout_is_ten_seconds(fake: FakeFcm, provider: FcmProvider) -> None:
    fake.script("/token", Fault(FaultKind.HANG))
    sending = [asyncio.create_task(provider.send(DELIVERY)) for _ in range(2)]
    await wait_until(lambda: fake.stats().hanging == 1)  # one for both
    with ahead(10.1):
        assert await asyncio.gather(*sending) == [no_token()] * 2
    assert (await provider.send(DELIVERY)).verdict is Verdict.SENT, "the next one is asked anew"
    assert fake.stats().token_calls == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"expires_in":3600}',
        b'{"access_token":"","expires_in":3600}',
        b'{"access_token":7,"expires_in":3600}',
        b'{"access_token":"a\\r\\nb","expires_in":3600}',
        b'{"access_token":"a b","expires_in":3600}',
        b'{"access_token":"t"}',
        b'{"access_token":"t","expires_in":0}',
        b'{"access_token":"t","expires_in":-1}',
        b'{"access_token":"t","expires_in":true}',
        b'{"access_token":"t","expires_in":"3600"}',
    ],
)
async def test_token_endpoint_answer_without_a_token_gives_none(body: bytes, fake: FakeFcm, tmp_path: Path) -> None:
    assert await minted(answer("200 OK", body), fake, tmp_path) is None


@pytest.mark.parametrize("head", ["302 Found\r\nLocation: /", "403 Forbidden", "503 Busy", "201 Created"])
async def test_token_endpoint_is_believed_by_its_status(head: str, fake: FakeFcm, tmp_path: Path) -> None:
    assert await minted(answer(head, b'{"access_token":"t","expires_in":3600}'), fake, tmp_path) is None


@pytest.mark.parametrize("life", [b"3600", b"3599.5", b"1e300"])
async def test_token_endpoint_may_name_any_life(life: bytes, fake: FakeFcm, tmp_path: Path) -> None:
    body = b'{"access_token":"t","expires_in":' + life + b"}"
    assert await minted(answer("200 OK", body), fake, tmp_path) == "t"


async def minted(whole: bytes, fake: FakeFcm, folder: Path) -> str | None:
    """The token that comes of an answer, if any."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(whole)
        await writer.drain()

    async with answering(write) as url:
        account = folder / "account.json"
        fake.write_service_account(account)
        account.write_text(account.read_text().replace(fake.base_url + "/token", url + "/token"))
        try:
            return await AccessTokens(account, SystemClock()).current()
        except NoAccessToken:
            return None
