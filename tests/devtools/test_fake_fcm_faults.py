"""Tests what can be made to go wrong with the fake FCM."""

from __future__ import annotations

import asyncio
import errno
import time
from email.utils import parsedate_to_datetime

import aiohttp
import pytest

from syncbeat_devtools.fake_fcm import Fault, FaultKind
from tests.support.fake_clock import wait_until
from tests.support.fcm_client import FcmClient, signed_in

pytestmark = pytest.mark.http

# Each fault that has an answer: HTTP status, google.rpc status, FCM's own code, and whether the message went through.
ANSWERS = {
    FaultKind.UNREGISTERED: (404, "NOT_FOUND", "UNREGISTERED", False),
    FaultKind.SENDER_ID_MISMATCH: (403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", False),
    FaultKind.BAD_TOKEN: (400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", False),
    FaultKind.BAD_TOKEN_FIELD: (400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", False),
    FaultKind.BAD_PAYLOAD: (400, "INVALID_ARGUMENT", "", False),
    FaultKind.QUOTA_EXCEEDED: (429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", False),
    FaultKind.THIRD_PARTY_AUTH: (401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", False),
    FaultKind.UNAUTHENTICATED: (401, "UNAUTHENTICATED", "", False),
    FaultKind.INTERNAL: (500, "INTERNAL", "INTERNAL", False),
    FaultKind.UNAVAILABLE: (503, "UNAVAILABLE", "UNAVAILABLE", False),
    FaultKind.ACCEPTED_THEN_503: (503, "UNAVAILABLE", "UNAVAILABLE", True),
}
NOT_JSON = {
    FaultKind.NOT_FOUND: (404, False),
    FaultKind.BAD_GATEWAY: (502, False),
    FaultKind.NOT_JSON: (200, True),
}
BROKEN = {FaultKind.RESET: False, FaultKind.ACCEPTED_THEN_RESET: True}
LATE = {FaultKind.SLOW, FaultKind.HANG}


async def broken(client: FcmClient, token: str) -> bool:
    try:
        await client.send(token)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
        return True
    return False


def test_fault_kinds_are_all_tested() -> None:
    assert {*ANSWERS, *NOT_JSON, *BROKEN, *LATE} == set(FaultKind)


async def test_fault_by_token_text_answers_as_google_and_then_clears() -> None:
    async with signed_in() as client:
        for kind, (status, name, code, delivered) in ANSWERS.items():
            token = f"fault:{kind}:2:phone"
            for _ in range(2):
                reply = await client.send(token)
                assert (reply.status, reply.json["error"]["status"], reply.code) == (status, name, code), kind
                assert reply.json["error"]["code"] == status
            assert (await client.send(token)).status == 200
            assert len(client.fake.deliveries(token=token)) == (3 if delivered else 1), kind
        for kind, (status, delivered) in NOT_JSON.items():
            reply = await client.send(f"fault:{kind}:1")
            assert (reply.status, reply.headers["content-type"]) == (status, "text/html; charset=UTF-8")
            assert len(client.fake.deliveries(token=f"fault:{kind}:1")) == delivered
        stats = client.fake.stats()
        assert stats.faults["unregistered"] == 2
        assert stats.statuses[503] == 4
        assert sum(stats.statuses.values()) == stats.requests


async def test_fault_reset_is_an_rst_before_or_after_acceptance() -> None:
    async with signed_in() as client:
        for kind, delivered in BROKEN.items():
            token = f"fault:{kind}:1"
            with pytest.raises(aiohttp.ClientOSError) as caught:
                await client.send(token)
            assert caught.value.errno == errno.ECONNRESET
            assert len(client.fake.deliveries(token=token)) == delivered
            assert (await client.send(token)).status == 200
        assert client.fake.stats().resets == 2


async def test_fault_retry_after_is_seconds_or_a_date() -> None:
    async with signed_in() as client:
        seconds = await client.send("fault:quota+30:1")
        assert (seconds.status, seconds.headers["retry-after"]) == (429, "30")
        before = time.time()
        date = await client.send("fault:503+120d:1")
        moment = parsedate_to_datetime(date.headers["retry-after"]).timestamp()
        assert date.headers["retry-after"].endswith(" GMT")
        assert before + 119 <= moment <= time.time() + 120
        assert "retry-after" not in (await client.send("fault:quota:1")).headers
        await client.control("POST", "faults", {"token": "p", "kind": "quota", "retry_after_s": 7})
        await client.control(
            "POST", "faults", {"token": "p", "kind": "quota", "retry_after_s": 7, "retry_after_as_date": True}
        )
        assert (await client.send("p")).headers["retry-after"] == "7"
        assert (await client.send("p")).headers["retry-after"].endswith("GMT")


async def test_fault_with_star_is_permanent_and_names_tokens() -> None:
    async with signed_in() as client:
        assert [(await client.send("fault:500:*:a")).status for _ in range(5)] == [500] * 5
        for name in ("a", "b"):
            assert [(await client.send(f"fault:503:1:{name}")).status for _ in range(2)] == [503, 200]
        client.fake.reset()
        assert (await client.send("fault:503:1:a")).status == 503  # the counts begin anew


async def test_fault_text_unreadable_is_a_bad_token() -> None:
    async with signed_in() as client:
        for token in ("fault:", "fault:what:1", "fault:503", "fault:503:x", "fault:503:0", "fault:slow+9999999:1"):
            reply = await client.send(token)
            assert (reply.status, reply.code) == (400, "INVALID_ARGUMENT"), token
            assert "fake-fcm" in reply.json["error"]["message"]


async def test_fault_slow_send_is_accepted_though_the_client_left() -> None:
    async with signed_in() as client:
        started = asyncio.get_running_loop().time()
        assert (await client.send("fault:slow+60:*:a")).status == 200
        assert asyncio.get_running_loop().time() - started >= 0.059
        leaving = asyncio.create_task(client.send("fault:slow+60:*:b"))
        await wait_until(lambda: client.fake.stats().requests == 2)
        leaving.cancel()
        assert [record.target for record in await client.fake.wait_for_deliveries(2)] == [
            "fault:slow+60:*:a",
            "fault:slow+60:*:b",
        ]
        assert client.fake.stats().statuses == {200: 2}


async def test_reset_of_the_fake_drops_held_sends() -> None:
    async with signed_in() as client:
        held = [asyncio.create_task(broken(client, token)) for token in ("fault:slow+600000:1", "fault:hang:1")]
        await wait_until(lambda: client.fake.stats().requests == 2)
        assert client.fake.stats().hanging == 1
        client.fake.reset()
        assert await asyncio.gather(*held) == [True, True]
        assert client.fake.stats().hanging == 0
        assert client.fake.release() == 0
        assert client.fake.deliveries() == []


async def test_fault_hang_succeeds_on_release_and_never_without_its_client() -> None:
    async with signed_in() as client:
        sends = {name: asyncio.create_task(client.send(f"fault:hang:*:{name}")) for name in ("a", "b", "c")}
        await wait_until(lambda: client.fake.stats().hanging == 3)
        assert client.fake.deliveries() == []
        sends["c"].cancel()
        await wait_until(lambda: client.fake.stats().hanging == 2)
        assert (await client.control("POST", "release?token=fault:hang:*:a")).json == {"released": 1}
        assert (await sends["a"]).status == 200
        assert client.fake.release() == 1
        assert (await sends["b"]).status == 200
        assert [record.target for record in client.fake.deliveries()] == ["fault:hang:*:a", "fault:hang:*:b"]


async def test_fault_script_runs_before_token_text_and_global_faults() -> None:
    async with signed_in() as client:
        fake = client.fake
        fake.script("*", Fault(FaultKind.SENDER_ID_MISMATCH, times=2))
        fake.script("fault:500:1", Fault(FaultKind.UNAVAILABLE, times=2))
        fake.script("fault:500:1", Fault(FaultKind.UNREGISTERED))
        statuses = [(await client.send("fault:500:1")).status for _ in range(7)]
        assert statuses == [503, 503, 404, 500, 403, 403, 200]


async def test_fault_share_of_sends_is_deterministic() -> None:
    async with signed_in() as client:
        runs = []
        for _ in range(2):
            asked = {"token": "*", "kind": "503", "times": None, "share": 0.3, "seed": 7}
            assert (await client.control("POST", "faults", asked)).status == 200
            runs.append([(await client.send(f"t{n}")).status for n in range(100)])
            assert (await client.control("DELETE", "faults?token=*")).status == 200
        assert runs[0] == runs[1]
        assert 15 <= runs[0].count(503) <= 45
        assert (await client.send()).status == 200


async def test_faults_can_be_cleared_one_by_one_or_all() -> None:
    async with signed_in() as client:
        faults = [{"token": token, "kind": "500", "times": None} for token in ("a", "b", "*")]
        assert (await client.control("POST", "faults", faults)).json == {"scripted": 3}
        assert (await client.control("DELETE", "faults?token=a")).status == 200
        client.fake.clear_faults("*")
        assert [(await client.send(token)).status for token in "abc"] == [200, 500, 200]
        await client.control("DELETE", "faults")
        assert (await client.send("b")).status == 200


async def test_fault_script_invalid_is_refused_whole() -> None:
    async with signed_in() as client:
        for bad in (
            {"token": "a", "kind": "what"},
            {"token": "a"},
            {"kind": "503"},
            {"token": "", "kind": "503"},
            {"token": "a", "kind": "503", "times": 0},
            {"token": "a", "kind": "503", "times": "2"},
            {"token": "a", "kind": "503", "retry_after_s": 10**12},
            {"token": "a", "kind": "503", "retry_after_s": -1},
            {"token": "a", "kind": "slow", "delay_ms": 10**9},
            {"token": "a", "kind": "503", "share": 0.5},
            {"token": "*", "kind": "503", "share": 2},
            {"token": "*", "kind": "503", "share": "x"},
            {"token": "a", "kind": "503", "retry_after_as_date": 1},
            {"token": "a", "kind": "503", "colour": "red"},
            [{"token": "a", "kind": "503"}, {"token": "a", "kind": "what"}],
            "x",
        ):
            reply = await client.control("POST", "faults", bad)
            assert (reply.status, list(reply.json)) == (400, ["error"]), bad
        assert (await client.request("POST", "/control/faults", data=b"{")).status == 400
        assert (await client.send("a")).status == 200


async def test_faults_are_bounded() -> None:
    async with signed_in() as client:
        for number in range(10_000):
            client.fake.script(f"t{number}", Fault(FaultKind.INTERNAL))
        with pytest.raises(ValueError, match="10000 receivers"):
            client.fake.script("one more", Fault(FaultKind.INTERNAL))


async def test_latency_delays_answers_not_deliveries() -> None:
    async with signed_in(latency_ms=60) as client:
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(client.send(f"t{n}") for n in range(100)))
        took = asyncio.get_running_loop().time() - started
        assert 0.059 <= took < 100 * 0.06  # side by side
        assert (await client.control("POST", "latency", {"latency_ms": 0})).status == 200
        assert (await client.control("POST", "latency", {"latency_ms": -1})).status == 400
        assert (await client.control("POST", "latency", {"latency_ms": "x"})).status == 400
        assert client.fake.send_endpoint.latency_s == 0


async def test_quota_answers_429_with_retry_after() -> None:
    async with signed_in(messages_per_minute=3) as client:
        replies = [await client.send() for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        assert replies[-1].code == "QUOTA_EXCEEDED"
        client.fake.reset()
        assert (await client.send()).status == 200
