"""`SmartSync` of the Python client: asks when it was told to, loses nothing and applies nothing twice."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from syncbeat import SmartSync, SyncBatch
from syncbeat.v1 import push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.client_servers import WAIT_S, Refusal
from tests.support.phones import at, page, phone, polled, reported

pytestmark = pytest.mark.rpc

BROKEN = Refusal(grpc.StatusCode.INTERNAL, "INTERNAL")
"""Passes, and is not repeated by the channel."""


def wake_up(sequence: int, scope: str = "s", epoch: str = "e") -> dict[str, str]:
    return {
        "syncbeat": "sync",
        "type": "message",
        "scope": scope,
        "epoch": epoch,
        "sequence": str(sequence),
        "ack_token": f"ack-{scope}-{sequence}",
    }


async def test_smart_sync_lists_what_is_behind_and_polls_on_schedule() -> None:
    async with phone(reported(30, at(3), at(0, "empty"), at(7, "known")), cursors=[at(7, "known")]) as device:
        device.script.prepare("ListChanges", page(1, 2, more=True), page(3))
        async with device.sync:
            await device.clock.quiet()
            assert device.sequences == [1, 2, 3]
            assert [batch.cursor for batch in device.applied] == [at(2), at(3)]
            assert sorted(device.sync.cursors, key=str) == sorted([at(7, "known"), at(0, "empty"), at(3)], key=str)
            asked = [attempt.request for attempt in device.script.attempts["ListChanges"]]
            assert [request.cursor.HasField("sequence") for request in asked] == [False, True]
            assert {request.device_id for request in asked} == {"phone"}
            device.script.prepare("GetHint", polled(300, at(4), at(0, "empty"), at(7, "known")))
            device.script.prepare("ListChanges", page(4))
            await device.clock.travel(29.9)
            assert device.count("GetHint") == 0
            await device.clock.travel(0.2)
            assert device.count("GetHint") == 1
            assert list(device.last("GetHint").cursors) == [at(7, "known"), at(0, "empty"), at(3)]
            assert device.last("GetHint").activity.idle_duration.seconds == 30
            assert device.last("ListChanges").cursor == at(3)
            assert device.sequences == [1, 2, 3, 4]
            await device.clock.travel(299)
            assert device.count("GetHint") == 1
    assert device.count("ReportActivity") == 1


async def test_smart_sync_cursor_moves_only_when_its_batch_was_applied() -> None:
    async with phone(reported(300, at(3))) as device:
        device.script.prepare("ListChanges", page(1, 2, 3))
        device.broken = 3
        async with device.sync:
            await device.clock.quiet()
            assert (device.given, device.sync.cursors) == (1, [])
            await device.clock.travel(20)
            assert device.given == 4
            assert device.sequences == [1, 2, 3]
            assert device.sync.cursors == [at(3)]


async def test_smart_sync_redelivers_an_interrupted_batch() -> None:
    started = asyncio.Event()

    async def stuck(batch: SyncBatch) -> None:
        started.set()
        await asyncio.Event().wait()

    async with phone(reported(300, at(2)), reported(300, at(2))) as device:
        device.script.prepare("ListChanges", page(1, 2), page(1, 2))
        async with SmartSync(device.client, "phone", on_changes=stuck, clock=device.clock) as cut:
            await asyncio.wait_for(started.wait(), WAIT_S)
        assert cut.cursors == []
        async with device.sync:
            await device.clock.quiet()
        assert device.sequences == [1, 2]


async def test_smart_sync_iteration_acknowledges_on_the_next_step() -> None:
    async with phone(reported(300, at(3), at(1, "t"))) as device:
        device.script.prepare("ListChanges", page(1, 2, more=True), page(3), page(1, scope="t"))
        found: list[tuple[str, list[int]]] = []
        async with SmartSync(device.client, "phone", clock=device.clock) as sync, asyncio.timeout(WAIT_S):
            async for batch in sync:
                found.append((batch.scope, [change.sequence for change in batch.changes]))
                if batch.scope == "t":
                    break
            assert sync.cursors == [at(3)]
        with pytest.raises(StopAsyncIteration):
            await anext(sync)
        assert found == [("s", [1, 2]), ("s", [3]), ("t", [1])]


async def test_smart_sync_reset_drops_the_scope_first() -> None:
    async with phone(reported(300, at(2, epoch="new")), cursors=[at(9)]) as device:
        device.script.prepare("ListChanges", page(1, epoch="new", reset=True, more=True), page(2, epoch="new"))
        async with device.sync:
            await device.clock.quiet()
        assert [batch.drop for batch in device.applied] == [True, False]
        assert device.sync.cursors == [at(2, epoch="new")]


async def test_smart_sync_drops_left_scopes_at_once() -> None:
    gone = Refusal(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED", {"scope": "a"})
    cursors = [at(1, "a"), at(1, "b"), at(1, "c"), at(1)]
    async with phone(reported(30, *cursors[1:]), cursors=cursors) as device, device.sync:
        await device.clock.quiet()
        assert [(batch.scope, batch.drop, batch.cursor) for batch in device.applied] == [("a", True, None)]
        refused = Refusal(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED", {"scope": "b"})
        device.script.prepare("GetHint", refused, polled(30, at(1)))
        await device.clock.travel(31)
        assert {batch.scope for batch in device.applied} == {"a", "b", "c"}
        assert [len(attempt.request.cursors) for attempt in device.script.attempts["GetHint"]] == [3, 0]
        assert device.sync.cursors == [at(1)]
        device.script.prepare("ListChanges", gone)
        device.sync.woken(wake_up(5, "a"))
        await device.clock.quiet()
        assert device.applied[-1] == SyncBatch("a", (), None, drop=True)


async def test_smart_sync_backoff_while_the_server_is_away() -> None:
    async with phone(reported(20, valid_s=100)) as device:
        device.script.prepare("GetHint", *[BROKEN] * 50)
        asked: list[float] = []
        async with device.sync:
            await device.clock.quiet()
            for _ in range(1_500):
                seen = device.count("GetHint")
                await device.clock.travel(1.0)
                asked += [device.clock.true_s] * (device.count("GetHint") - seen)
        gaps = [later - earlier for earlier, later in zip([0.0, *asked], asked, strict=False)]
        assert min(gaps) >= 20
        assert gaps[0] <= 21
        assert all(gap >= 299 for gap, start in zip(gaps, [0.0, *asked], strict=False) if start > 101)
        assert len(asked) >= 5


async def test_smart_sync_honours_retry_after() -> None:
    async with phone(reported(10)) as device:
        device.script.prepare("GetHint", Refusal(grpc.StatusCode.INTERNAL, "OVERLOADED", retry_after_s=200))
        device.script.prepare("ReportActivity", reported(10))
        async with device.sync:
            await device.clock.travel(11)
            device.sync.foreground()
            device.sync.woken(wake_up(1))
            await device.clock.travel(198)
            assert (device.count("GetHint"), device.count("ReportActivity"), device.count("ListChanges")) == (1, 1, 0)
            device.script.prepare("ListChanges", page(1))
            device.script.prepare("AcknowledgeDelivery", push_service_pb2.AcknowledgeDeliveryResponse())
            await device.clock.travel(3)
            assert (device.count("ReportActivity"), device.sequences) == (2, [1])


async def test_smart_sync_polls_soon_after_suspension() -> None:
    async with phone(reported(300)) as device:
        device.script.prepare("GetHint", polled(300), polled(300))
        async with device.sync:
            await device.clock.travel(5)
            device.clock.suspended_s += 3_600
            await device.clock.travel(14)
            assert device.count("GetHint") == 1
            device.clock.suspended_s += 120
            await device.clock.travel(60)
            assert device.count("GetHint") == 1


async def test_smart_sync_is_immune_to_a_clock_set_back() -> None:
    async with phone(reported(60)) as device:
        device.script.prepare("GetHint", polled(60))
        async with device.sync:
            await device.clock.travel(5)
            device.clock.back_s += 86_400
            await device.clock.travel(54)
            assert device.count("GetHint") == 0
            await device.clock.travel(12)
            assert device.count("GetHint") == 1


async def test_smart_sync_fetches_and_acknowledges_a_push_once() -> None:
    async with phone(reported(300, at(4)), cursors=[at(4)]) as device:
        done = push_service_pb2.AcknowledgeDeliveryResponse()
        device.script.prepare("AcknowledgeDelivery", done, BROKEN, done)
        device.script.prepare("ListChanges", page(5, 6))
        async with device.sync:
            await device.clock.quiet()
            assert device.sync.woken(wake_up(5))
            assert device.sync.woken(wake_up(5))
            await device.clock.quiet()
            assert (device.sequences, device.count("ListChanges"), device.count("GetHint")) == ([5, 6], 1, 0)
            assert device.sync.woken(wake_up(6))
            await device.clock.quiet()
            assert device.count("ListChanges") == 1
            acked = [attempt.request.ack_token for attempt in device.script.attempts["AcknowledgeDelivery"]]
            assert acked == ["ack-s-5", "ack-s-5", "ack-s-6"]


@pytest.mark.parametrize("others", ['["b","c"]', "*"])
async def test_smart_sync_push_for_other_scopes_polls_for_them(others: str) -> None:
    async with phone(reported(300, at(4), at(2, "b"), at(1, "c")), cursors=[at(4), at(2, "b"), at(1, "c")]) as device:
        device.script.prepare("AcknowledgeDelivery", push_service_pb2.AcknowledgeDeliveryResponse())
        device.script.prepare("GetHint", polled(300, at(5), at(3, "b"), at(1, "c")))
        device.script.prepare("ListChanges", page(5), page(3))
        async with device.sync:
            await device.clock.quiet()
            assert device.sync.woken(wake_up(5) | {"other_scopes": others})
            await device.clock.quiet()
            assert device.count("GetHint") == 1
            asked = [attempt.request.cursor.scope for attempt in device.script.attempts["ListChanges"]]
            assert asked == ["s", "b"]
            await device.clock.travel(299)
            assert device.count("GetHint") == 1


@pytest.mark.parametrize(
    "wrong",
    [{"syncbeat": "other"}, {"scope": ""}, {"sequence": "-1"}, {"sequence": "9" * 19}, {"sequence": "x" * 5_000}],
    ids=str,
)
async def test_smart_sync_ignores_foreign_pushes(wrong: dict[str, str]) -> None:
    async with phone(reported(300)) as device, device.sync:
        assert not device.sync.woken(wake_up(1) | wrong)
        assert not device.sync.woken({})
        await device.clock.quiet()
    assert device.count("ListChanges") == 0


async def test_smart_sync_retries_a_failed_fetch_and_a_new_push_does_not_wait() -> None:
    async with phone(reported(3_000, at(4)), cursors=[at(4)]) as device:
        device.script.prepare("ListChanges", *[BROKEN] * 50)
        async with device.sync:
            await device.clock.quiet()
            device.sync.woken(wake_up(5) | {"ack_token": ""})
            await device.clock.travel(600)
            assert device.count("ListChanges") >= 4
            device.script.answers["ListChanges"] = [page(5, 6)]
            device.sync.woken(wake_up(6) | {"ack_token": ""})
            await device.clock.quiet()
            assert device.sequences == [5, 6]
            assert device.count("GetHint") == 0


@pytest.mark.parametrize(("first", "lists"), [((5,), 2), ((5, 6), 1)])
async def test_smart_sync_push_during_a_fetch_is_not_lost(first: tuple[int, ...], lists: int) -> None:
    applied: list[int] = []

    async def apply(batch: SyncBatch) -> None:
        if not applied:
            sync.woken(wake_up(6) | {"ack_token": ""})
        applied.extend(change.sequence for change in batch.changes)

    async with phone(reported(300, at(5)), cursors=[at(4)]) as device:
        device.script.prepare("ListChanges", page(*first), page(6))
        sync = SmartSync(device.client, "phone", on_changes=apply, cursors=[at(4)], clock=device.clock)
        async with sync:
            await device.clock.quiet()
        assert (applied, device.count("ListChanges")) == ([5, 6], lists)


async def test_smart_sync_ends_on_pages_without_progress() -> None:
    async with phone(reported(300, at(5)), cursors=[at(4)]) as device:
        device.script.prepare("ListChanges", page(4, more=True))
        async with device.sync:
            await device.clock.quiet()
        assert device.count("ListChanges") == 1


async def test_smart_sync_may_be_closed_from_its_callback() -> None:
    async def apply(batch: SyncBatch) -> None:
        await sync.close()

    async with phone(reported(300, at(5))) as device:
        device.script.prepare("ListChanges", page(5))
        sync = SmartSync(device.client, "phone", on_changes=apply, clock=device.clock)
        async with sync:
            await asyncio.wait_for(sync.wait(), WAIT_S)
        assert sync.cursors == []


async def test_smart_sync_activity_reports_are_few_and_the_last_counts() -> None:
    async with phone(*[reported(300)] * 20) as device, device.sync:
        await device.clock.quiet()
        for _ in range(10):
            device.sync.background()
            await device.clock.travel(0.1)
            device.sync.foreground()
            await device.clock.travel(0.1)
        assert 2 <= device.count("ReportActivity") <= 4
        device.sync.background()
        device.sync.network(pb.NETWORK_CELLULAR)
        device.sync.battery(low=True)
        device.sync.touched()
        await device.clock.travel(20)
        assert device.count("ReportActivity") <= 5
        said = device.last("ReportActivity").activity
        assert (said.state, said.network) == (pb.ACTIVITY_STATE_BACKGROUND, pb.NETWORK_CELLULAR)
        assert said.battery_low
        before = device.count("ReportActivity")
        await device.clock.travel(200)
        assert device.count("ReportActivity") == before
        assert device.count("GetHint") == 0


async def test_smart_sync_foreground_polls_at_once_and_follows_the_new_hint() -> None:
    async with phone(reported(300), reported(10)) as device, device.sync:
        device.script.prepare("GetHint", *[polled(300)] * 2)
        await device.clock.travel(30)
        device.sync.foreground()
        await device.clock.quiet()
        assert device.count("ReportActivity") == 2
        await device.clock.travel(11)
        assert device.count("GetHint") == 1


async def test_smart_sync_unreported_activity_goes_with_the_next_poll() -> None:
    async with phone(reported(60)) as device, device.sync:
        device.script.prepare("ReportActivity", BROKEN, reported(60), BROKEN, reported(60))
        await device.clock.quiet()
        device.sync.background()
        await device.clock.travel(59)
        assert device.count("ReportActivity") == 2
        await device.clock.travel(5)
        assert (device.count("ReportActivity"), device.count("GetHint")) == (3, 0)
        assert device.last("ReportActivity").activity.state == pb.ACTIVITY_STATE_BACKGROUND
        device.sync.battery(low=True)
        await device.clock.travel(20)
        assert device.count("ReportActivity") == 4
        device.sync.network(pb.NETWORK_WIFI)
        await device.clock.quiet()
        assert device.count("ReportActivity") == 5


async def test_smart_sync_foreground_report_is_retried_soon() -> None:
    async with phone(reported(300)) as device, device.sync:
        device.script.prepare("ReportActivity", *[BROKEN] * 9)
        await device.clock.quiet()
        device.sync.foreground()
        await device.clock.travel(80)
        assert device.count("ReportActivity") == 5
        await device.clock.travel(200)
        assert device.count("ReportActivity") == 5
