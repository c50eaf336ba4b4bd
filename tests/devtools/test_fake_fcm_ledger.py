"""Tests what the fake FCM keeps of the messages it accepted, and shows of them."""

from __future__ import annotations

import asyncio

import pytest

from syncbeat_devtools.fake_fcm import Effect, FakeFcmSettings
from tests.support.fake_clock import wait_until
from tests.support.fcm_client import FcmClient, signed_in

pytestmark = pytest.mark.http


def shown(tag: str | None, title: str = "T") -> dict[str, object]:
    return {"notification": {"title": title}, "android": {"notification": {"tag": tag}}}


async def test_collapse_by_android_tag_replaces_the_shown_notification() -> None:
    async with signed_in() as client:
        for tag, title in (("x", "1"), ("x", "2"), (None, "3"), (None, "4"), ("y", "5"), ("x", "6")):
            await client.send("a", **shown(tag, title))
        await client.send("b", **shown("x"))
        device = client.fake.device("a")
        assert (device.shown, device.replaced) == (4, 2)
        assert [record.message["notification"]["title"] for record in device.on_screen] == ["3", "4", "5", "6"]
        effects = [record.effect for record in client.fake.deliveries(token="a")]
        assert effects == [Effect.SHOWN, Effect.REPLACED, *[Effect.SHOWN] * 3, Effect.REPLACED]
        assert client.fake.device("b").shown == 1
        by_http = (await client.control("GET", "devices/a")).json
        assert [len(by_http["on_screen"]), by_http["shown"], by_http["replaced"]] == [4, 4, 2]


async def test_collapse_by_apns_id_and_web_tag_replaces_too() -> None:
    async with signed_in() as client:
        for _ in range(2):
            payload = {"aps": {"alert": "hello"}}
            await client.send("ios", apns={"headers": {"apns-collapse-id": "x"}, "payload": payload})
            await client.send("web", webpush={"notification": {"title": "T", "tag": "x"}})
            await client.send("odd", webpush={"notification": {"title": "T", "tag": 7}})
        assert [client.fake.device(token).replaced for token in ("ios", "web", "odd")] == [1, 1, 0]


async def test_data_messages_show_nothing_and_duplicates_are_counted() -> None:
    async with signed_in() as client:
        background = {"headers": {"apns-collapse-id": "1"}, "payload": {"aps": {"content-available": 1}}}
        for delivery_id in ("1", "2", "1"):
            await client.send("a", data={"delivery_id": delivery_id}, apns=background)
        await client.send("b", data={"delivery_id": "1"})
        await client.send("a", data={"delivery_id": "common"}, android={"data": {"delivery_id": "own"}})
        device = client.fake.device("a")
        assert (device.shown, device.on_screen, len(device.data_messages)) == (0, [], 4)
        assert device.data_by_delivery_id == {"1": 2, "2": 1, "own": 1}
        stats = client.fake.stats()
        assert (stats.data, stats.repeated_data, stats.shown) == (5, 1, 0)
        by_http = (await client.control("GET", "devices/a")).json
        assert [message["data"]["delivery_id"] for message in by_http["data_messages"]] == ["1", "2", "1", "own"]


async def test_topic_message_has_no_device() -> None:
    async with signed_in() as client:
        assert (await client.post(b'{"message":{"topic":"news","notification":{"title":"x"}}}')).status == 200
        [record] = client.fake.deliveries()
        assert (record.effect, record.target, client.fake.stats().shown) == (Effect.NO_DEVICE, "news", 0)


async def test_ledger_is_read_by_sequence_receiver_and_page() -> None:
    async with signed_in() as client:
        for number in range(6):
            await client.send("ab"[number % 2], data={"n": str(number)})
        found = (await client.control("GET", "deliveries?after=2&limit=2")).json
        assert [one["sequence"] for one in found["deliveries"]] == [3, 4]
        assert found["last_sequence"] == 6
        only = (await client.control("GET", "deliveries?token=b&after=2")).json["deliveries"]
        assert [(one["target"], one["message"]["data"]["n"], one["effect"]) for one in only] == [
            ("b", "3", "data"),
            ("b", "5", "data"),
        ]
        assert (await client.control("GET", "deliveries?after=99")).json["deliveries"] == []
        for bad in ("after=x", "after=-1", "limit=1.5", "after=" + "9" * 5000, "wait_ms=a", f"after={2**70}"):
            assert (await client.control("GET", f"deliveries?{bad}")).status == 400, bad


async def test_ledger_long_poll_waits_for_deliveries() -> None:
    async with signed_in() as client:
        for_two = asyncio.create_task(client.control("GET", "deliveries?wait_ms=9000&min_count=2"))
        for_b = asyncio.create_task(client.fake.wait_for_deliveries(token="b"))
        await wait_until(lambda: len(client.fake.ledger._waiters) == 2)
        await client.send("a")
        assert not for_two.done()
        await client.send("b")
        assert len((await for_two).json["deliveries"]) == 2
        assert [record.target for record in await for_b] == ["b"]
        assert await client.fake.wait_for_deliveries(5, timeout_s=0) == client.fake.deliveries()
        assert len(await client.fake.wait_for_deliveries(2)) == 2  # there already
        leaving = asyncio.create_task(client.control("GET", "deliveries?wait_ms=60000&min_count=9"))
        await wait_until(lambda: len(client.fake.ledger._waiters) == 1)
        leaving.cancel()
        await wait_until(lambda: client.fake.ledger._waiters == [])


async def fill(client: FcmClient, count: int) -> None:
    for number in range(count):
        await client.send(f"t{number}", **shown("x"), data={"delivery_id": "1"})


async def test_ledger_evicts_the_oldest_messages() -> None:
    async with signed_in(max_records=5) as client:
        ledger = client.fake.ledger
        await client.send("a", **shown("x", "first"))
        await client.send("a", data={"delivery_id": "1"})
        await client.send("a", **shown("y"))
        await fill(client, 4)
        device = client.fake.device("a")
        assert [record.content.slot for record in device.on_screen] == ["y"]
        assert device.data_by_delivery_id == {}
        await client.send("a", **shown("x", "again"))
        assert client.fake.deliveries()[-1].effect is Effect.SHOWN  # what it would replace is forgotten
        await fill(client, 30)
        stats = client.fake.stats()
        assert (stats.accepted, stats.kept, stats.last_sequence) == (38, 5, 38)
        assert (len(ledger._records), len(ledger._devices)) == (5, 5)
        assert [record.sequence for record in client.fake.deliveries(after=3)] == [34, 35, 36, 37, 38]


async def test_ledger_bytes_are_bounded() -> None:
    async with signed_in(max_bytes=10_000) as client:
        for _ in range(20):
            await client.send("a", data={"k": "x" * 2000})
        assert (client.fake.stats().kept, client.fake.ledger._bytes < 10_000) == (4, True)


async def test_ledger_reset_keeps_sequence_and_tokens() -> None:
    async with signed_in() as client:
        await fill(client, 3)
        await client.send("fault:500:1")
        assert (await client.control("POST", "reset")).status == 200
        stats = (await client.control("GET", "stats")).json
        assert {name for name, value in stats.items() if value} == {"last_sequence", "connections"}
        await client.send("a")
        assert [record.sequence for record in client.fake.deliveries(after=3)] == [4]
        assert client.fake.deliveries() == client.fake.deliveries(after=3)


async def test_unknown_paths_are_reported() -> None:
    async with signed_in() as client:
        assert (await client.control("GET", "nothing")).status == 404
        assert (await client.control("DELETE", "stats")).status == 404
        for method, path in (("GET", "/"), ("GET", "/token"), ("POST", "/v1/projects//messages:send"), ("PUT", "/x")):
            assert (await client.request(method, path)).status == 404


def test_settings_that_cannot_work_are_refused() -> None:
    for bad in (
        {"host": "0.0.0.0"},
        {"host": "example.com"},
        {"project_id": ""},
        {"project_id": "a/b"},
        {"latency_ms": -1},
        {"max_records": 0},
        {"token_life_s": -1},
        {"messages_per_minute": -1},
    ):
        with pytest.raises(ValueError, match=r"must|want|other machines"):
            FakeFcmSettings(**bad)
    assert FakeFcmSettings(host="0.0.0.0", allow_remote=True).host == "0.0.0.0"
