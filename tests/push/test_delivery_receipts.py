"""From acceptance to the receipt of a device, over the wire and through the fake FCM: what callers can see and undo."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import redis
from google.protobuf.duration_pb2 import Duration

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.fake_fcm import FakeFcm, Fault, FaultKind, running_fake_fcm
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.process_rules import DEADLINE_S, PATIENT
from tests.support.rpc_server import METHODS, Caller, Server, path_of, running_server

pytestmark = pytest.mark.rpc

RECEIVED, OPENED = push_service_pb2.ACKNOWLEDGE_KIND_RECEIVED, push_service_pb2.ACKNOWLEDGE_KIND_OPENED
TEMPLATES = """
[apps.default.templates.note]
default = { title = "{who} wrote", body = "{text}" }
de = { title = "{who} schrieb", body = "{text}" }
"""


def state_of(delivery: push_service_pb2.Delivery) -> str:
    return push_service_pb2.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")


@pytest.fixture
async def fake() -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm() as running:
        yield running


@pytest.fixture
async def apps_file(tmp_path: Path) -> Path:
    path = tmp_path / "apps.toml"
    path.write_text(TEMPLATES)
    return path


@pytest.fixture
async def server(
    database_urls: DatabaseUrls, redis_url: str, fake: FakeFcm, tmp_path: Path, apps_file: Path
) -> AsyncIterator[Server]:
    """A server that delivers too."""
    account = tmp_path / "account.json"
    fake.write_service_account(account)
    variables = {"FCM_CREDENTIALS": str(account), "FCM_BASE_URL": fake.base_url, "DELIVERY_RETRY_S": "0.05"}
    variables |= {"APPS_FILE": str(apps_file)}
    async with running_server(database_urls, redis_url, Role.ALL, PATIENT, **variables) as running:
        await running.register("ann", "phone", "anns-token")
        yield running


def send(*users: str, **fields: Any) -> push_service_pb2.SendNotificationRequest:
    shown = {"notification": core_pb2.Notification(title="t"), **fields}
    return push_service_pb2.SendNotificationRequest(user_ids=core_pb2.UserIds(ids=users or ("ann",)), **shown)


async def deliveries(server: Server, **wanted: Any) -> list[push_service_pb2.Delivery]:
    request = push_service_pb2.ListDeliveriesRequest(filter=push_service_pb2.DeliveryFilter(**wanted), page_size=1000)
    return list((await server.backend(request)).deliveries)


async def until_states(server: Server, notification_id: str, *expected: str) -> None:
    async def reached() -> bool:
        found = await deliveries(server, notification_id=notification_id)
        return sorted(map(state_of, found)) == sorted(expected)

    await wait_until(reached, what=f"{expected}")


class Watching:
    """WatchDeliveries, as it goes on."""

    def __init__(self, caller: Caller, **wanted: Any) -> None:
        request = push_service_pb2.WatchDeliveriesRequest(**wanted)
        open_stream: Any = caller.channel.unary_stream(path_of(METHODS["WatchDeliveriesRequest"]))
        self._call = open_stream(request.SerializeToString(), metadata=caller.metadata, timeout=60)

    async def until(self, *expected: str) -> list[str]:
        """Return what was told until the last told state of each delivery is as expected."""
        latest: dict[str, str] = {}
        told: list[str] = []
        async with asyncio.timeout(DEADLINE_S):
            while sorted(latest.values()) != sorted(expected):
                message = await self._call.read()
                assert message is not grpc.aio.EOF, told
                delivery = push_service_pb2.WatchDeliveriesResponse.FromString(message).delivery
                latest[delivery.delivery_id] = state_of(delivery)
                told.append(latest[delivery.delivery_id])
        return told

    async def ended(self) -> bool:
        """Return whether it ends by itself."""
        async with asyncio.timeout(DEADLINE_S):
            while (await self._call.read()) is not grpc.aio.EOF:
                pass
        return bool(await self._call.code() is grpc.StatusCode.OK)


async def test_ack_without_an_access_token(server: Server, fake: FakeFcm) -> None:
    notification_id = (await server.backend(send())).notification_id
    await until_states(server, notification_id, "SENT")
    token = fake.deliveries()[0].message["data"]["ack_token"]
    nobody = Caller(server.channel, ())
    answers = [
        await nobody(push_service_pb2.AcknowledgeDeliveryRequest(ack_token=token, kind=kind))
        for kind in (RECEIVED, RECEIVED, OPENED, RECEIVED)
    ]
    names = [push_service_pb2.DeliveryState.Name(answer.state).removeprefix("DELIVERY_STATE_") for answer in answers]
    assert names == ["RECEIVED", "RECEIVED", "OPENED", "OPENED"]
    (found,) = await deliveries(server, notification_id=notification_id)
    assert found.HasField("receive_time")
    assert found.HasField("open_time")
    for forged in (token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), token.replace("default", "other"), "x", "."):
        refusal = await nobody.refusal(push_service_pb2.AcknowledgeDeliveryRequest(ack_token=forged, kind=OPENED))
        assert refusal.told == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_watch_deliveries_streams_each_change(server: Server, fake: FakeFcm) -> None:
    await server.register("bob", "phone", "bobs-token")
    fake.script("bobs-token", Fault(FaultKind.UNREGISTERED))
    later = await server.backend(send("ann", "bob"))
    by_notification = Watching(server.backend, notification_id=later.notification_id)
    by_user = Watching(server.backend, user_id="ann")
    await by_notification.until("SENT", "DEAD")
    await by_user.until("SENT")
    token = next(d.message["data"]["ack_token"] for d in fake.deliveries())
    await server.backend(push_service_pb2.AcknowledgeDeliveryRequest(ack_token=token, kind=OPENED))
    assert (await by_user.until("OPENED"))[-1] == "OPENED"
    server.stop.set()
    assert await by_notification.ended(), "a server that drains ends it"


async def test_watch_deliveries_of_nothing_is_refused(server: Server) -> None:
    nothing = push_service_pb2.WatchDeliveriesRequest(notification_id="0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a10")
    assert (await server.backend.refusal(nothing)).told == ("NOT_FOUND", "NOT_FOUND")
    odd = push_service_pb2.WatchDeliveriesRequest(notification_id="x")
    assert (await server.backend.refusal(odd)).fields == ("notification_id",)


async def test_cancel_in_time_is_never_sent(server: Server, fake: FakeFcm) -> None:
    later = send()
    later.schedule_time.GetCurrentTime()
    later.schedule_time.seconds += 3600
    notification_id = (await server.backend(later)).notification_id
    cancel = push_service_pb2.CancelNotificationRequest(notification_id=notification_id)
    assert [(await server.backend(cancel)).cancelled_count for _ in range(2)] == [1, 0]
    await until_states(server, notification_id, "CANCELLED")
    gone = push_service_pb2.CancelNotificationRequest(notification_id="0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a10")
    assert (await server.backend.refusal(gone)).told == ("NOT_FOUND", "NOT_FOUND")
    assert fake.stats().requests == 0


async def test_redrive_by_an_operator(server: Server, fake: FakeFcm) -> None:
    fake.script("anns-token", Fault(FaultKind.BAD_PAYLOAD, times=2))
    ids = [(await server.backend(send())).notification_id for _ in range(2)]
    for notification_id in ids:
        await until_states(server, notification_id, "DEAD")
    chosen = push_service_pb2.DeliveryFilter(notification_id=ids[0])
    redrive = push_service_pb2.RedriveDeliveriesRequest(request_id="r", filter=chosen)
    first, again = await server.operator(redrive), await server.operator(redrive)
    assert [(a.redriven_count, a.replayed) for a in (first, again)] == [(1, False), (1, True)]
    await until_states(server, ids[0], "SENT")
    await until_states(server, ids[1], "DEAD")
    redrive.filter.user_id = "ann"
    assert (await server.operator.refusal(redrive)).told == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    sent = push_service_pb2.DELIVERY_STATE_SENT
    for wrong, field in ((push_service_pb2.DeliveryFilter(state=sent), "filter.state"), (None, "filter")):
        odd = push_service_pb2.RedriveDeliveriesRequest(filter=wrong or push_service_pb2.DeliveryFilter())
        assert (await server.operator.refusal(odd)).fields == (field,)
    assert (await server.backend.refusal(redrive)).told == ("PERMISSION_DENIED", "ACCESS_DENIED")


async def test_preferences_are_per_user(server: Server) -> None:
    ann, bob = server.user("ann"), server.user("bob")
    quiet = directory_service_pb2.QuietHours(start_minute=1320, end_minute=420, time_zone="Europe/Berlin")
    wanted = directory_service_pb2.SetPreferencesRequest(quiet_hours=quiet, max_per_day=0, muted_types=["ads", "ads"])
    kept = (await ann(wanted)).preferences
    assert (kept.quiet_hours, kept.max_per_day, kept.muted_types) == (quiet, 0, ["ads"])
    assert (await ann(directory_service_pb2.GetPreferencesRequest())).preferences == kept
    default = (await bob(directory_service_pb2.GetPreferencesRequest())).preferences
    assert default == directory_service_pb2.Preferences()
    assert (await server.backend(directory_service_pb2.GetPreferencesRequest(user_id="ann"))).preferences == kept
    wanted.quiet_hours.time_zone = "Atlantis/Center"
    assert (await ann.refusal(wanted)).fields == ("quiet_hours.time_zone",)
    cleared = (await ann(directory_service_pb2.SetPreferencesRequest())).preferences
    assert (cleared.HasField("quiet_hours"), cleared.HasField("max_per_day"), cleared.muted_types) == (False, False, [])


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


def note(**fields: Any) -> core_pb2.Notification:
    return core_pb2.Notification(**{"template": "note", "variables": {"who": "Eve", "text": "hi"}, **fields})


async def test_template_is_validated_at_accept_and_rendered_by_locale(
    server: Server, fake: FakeFcm, apps_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await server.backend(
        directory_service_pb2.RegisterDeviceRequest(
            user_id="ann",
            device_id="phone",
            platform=directory_service_pb2.PLATFORM_ANDROID,
            registration_token="anns-token",
            locale="de-AT",
        )
    )
    wrong = [
        (note(template="other"), ("notification.template",)),
        (note(variables={"who": "Eve"}), ('notification.variables["text"]',)),
        (note(title="t"), ("notification.template",)),
        (
            note(variables={"who": "Eve", "text": "x" * 2000, "more": "y" * 100}, data={"k": "x" * 2000}),
            ("notification",),
        ),
        (core_pb2.Notification(title="t", variables={"a": "b"}), ("notification.variables",)),
    ]
    for given, fields in wrong:
        assert (await server.backend.refusal(send(notification=given))).fields == fields
    accepted = await server.backend(send(notification=note()))
    await until_states(server, accepted.notification_id, "SENT")
    assert fake.deliveries()[0].message["notification"] == {"title": "Eve schrieb", "body": "hi"}
    told = await server.backend(push_service_pb2.GetNotificationRequest(notification_id=accepted.notification_id))
    assert told.notification == note()

    rewrite(apps_file, TEMPLATES.replace("schrieb", "hat geschrieben"))
    seen = []

    async def changed() -> bool:
        sent = await server.backend(send(notification=note()))
        await until_states(server, sent.notification_id, "SENT")
        seen.append(fake.deliveries()[-1].message["notification"]["title"])
        return bool(seen[-1] == "Eve hat geschrieben")

    await wait_until(changed)
    rewrite(apps_file, "[apps.default.templates.note]\ndefault = { title = '{' }")
    await wait_until(lambda: "the apps file cannot be used now" in caplog.text)
    assert await changed(), "what cannot be used is left alone"


async def test_fcm_credentials_rotate_without_a_restart(server: Server, fake: FakeFcm, tmp_path: Path) -> None:
    first = await server.backend(send())
    await until_states(server, first.notification_id, "SENT")
    assert fake.stats().token_calls == 1
    fake.write_service_account(tmp_path / "account.json")

    async def taken_up() -> bool:
        sent = await server.backend(send())
        await until_states(server, sent.notification_id, "SENT")
        return fake.stats().token_calls == 2

    await wait_until(taken_up)


async def test_idempotency_of_a_hundred_duplicates_on_two_processes(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with (
        running_server(database_urls, redis_url) as one,
        running_server(database_urls, redis_url) as other,
    ):
        await one.register("ann", "phone", "anns-token")
        request = send(request_id="twin")
        calls = [server.backend(request) for _ in range(50) for server in (one, other)]
        answers = await asyncio.gather(*calls)
        assert len({answer.notification_id for answer in answers}) == 1
        assert Counter(answer.replayed for answer in answers) == {True: 99, False: 1}
        assert len((await one.rows())["notifications"]) == len((await one.rows())["deliveries"]) == 1


async def test_idempotency_cache_answers_a_repeat_without_postgres(server: Server, redis_url: str) -> None:
    request = send(request_id="again")
    first = await server.backend(request)
    with redis.Redis.from_url(redis_url) as client:
        await wait_until(lambda: client.keys("syncbeat:*:answer:*"), what="the answer is kept")
    await until_states(server, first.notification_id, "SENT")
    before = await server.rows()
    # The record in PostgreSQL is made to say something else: who answers with the first answer did not look there.
    await server_sql(server, 'UPDATE request_records SET answer = \'{"notification_id": "x"}\'')
    answer = await server.backend(request)
    assert (answer.notification_id, answer.replayed) == (first.notification_id, True)
    assert (await server.rows())["deliveries"] == before["deliveries"]
    other = send(request_id="again", ttl=Duration(seconds=60))
    assert (await server.backend.refusal(other)).told == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


async def server_sql(server: Server, statement: str) -> None:
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        await conn.execute(statement)
    finally:
        await conn.close()


async def test_dedupe_of_ten_thousand_triggers_is_one_push_and_one_trailing(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with running_server(database_urls, redis_url) as one, running_server(database_urls, redis_url) as other:
        await one.add("s", "ann", "bob")
        for user in ("ann", "bob"):
            await one.register(user, "phone", f"token-of-{user}")
        loop = asyncio.get_running_loop()

        async def publish(server: Server, number: int) -> None:
            change = core_pb2.NewChange(scope="s", key=f"k{number % 7}", merge_patch_json=str(number))
            await server.backend(publishing(change))

        started = loop.time()
        for start in range(0, 10_000, 500):
            numbers = range(start, start + 500)
            await asyncio.gather(*(publish((one, other)[number % 2], number) for number in numbers))
        assert loop.time() - started < 280, "they were all within the window of five minutes"
        rows = await one.rows()
        assert len(rows["notifications"]) == 10_000
        counts = Counter(reason_of(row) for row in rows["deliveries"])
    assert counts == {("PENDING", ""): 2, ("SCHEDULED", "TRAILING"): 2, ("SUPPRESSED", "MERGED"): 19_996}


def publishing(change: core_pb2.NewChange) -> Any:
    trigger = core_pb2.SyncTrigger(type="t", dedupe_window=Duration(seconds=300))
    return sync_service_pb2.PublishChangesRequest(changes=[change], trigger=trigger)


def reason_of(row: str) -> tuple[str, str]:
    states = ("PENDING", "SCHEDULED", "SUPPRESSED", "HELD", "IN_FLIGHT")
    state = next(state for state in states if f",{state}," in row)
    return state, next((reason for reason in ("TRAILING", "MERGED", "DUPLICATE") if f",{reason}," in row), "")
