"""`SmartSync` with streams: polls while none is open, streams while hints prefer it, and no change is lost between."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from syncbeat import SmartSync, SyncBatch
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.client_servers import WAIT_S, Hold, Refusal, Stream, Until
from tests.support.fake_clock import wait_until
from tests.support.phones import Phone, at, hint, page, phone, polled, reported, reset, row, streamed

pytestmark = pytest.mark.rpc

BROKEN = Refusal(grpc.StatusCode.INTERNAL, "INTERNAL")


def checkpoint(*cursors: pb.Change, advice: pb.Hint | None = None) -> pb.WatchHintsResponse:
    places = [at(change.sequence, change.scope, change.epoch) for change in cursors]
    return streamed(checkpoint=pb.Checkpoint(cursors=places, hint=advice))


async def streaming(device: Phone) -> None:
    """Return when a stream is open."""
    await wait_until(lambda: device.sync.is_streaming, WAIT_S)
    await device.clock.quiet()


async def test_smart_sync_does_not_poll_while_streaming() -> None:
    async with phone(reported(10, at(2), stream=True)) as device:
        device.script.prepare("ListChanges", page(1, 2))
        device.script.prepare("WatchHints", [checkpoint(row(2)), streamed(change=row(3)), checkpoint(row(4)), Hold()])
        async with device.sync:
            await streaming(device)
            await wait_until(lambda: device.sync.cursors == [at(4)])
            assert device.sequences == [1, 2, 3]
            opened = device.last("WatchHints")
            assert (list(opened.cursors), opened.device_id) == ([at(2)], "phone")
            await device.clock.travel(55)
        await asyncio.wait_for(device.script.left.wait(), WAIT_S)
    assert (device.count("GetHint"), device.count("WatchHints")) == (0, 1)


async def test_smart_sync_stream_hint_returns_it_to_polling() -> None:
    async with phone(reported(10, stream=True)) as device:
        device.script.prepare("WatchHints", [streamed(hint=hint(10)), Hold()], [checkpoint(), Hold()])
        device.script.prepare("GetHint", *[polled(10, stream=True)] * 5)
        async with device.sync:
            await asyncio.wait_for(device.script.left.wait(), WAIT_S)
            await device.clock.travel(9)
            assert device.count("GetHint") == 0
            await device.clock.travel(20)
            assert (device.count("GetHint"), device.count("WatchHints")) == (2, 1)
            await device.clock.travel(12)
            await streaming(device)
    assert device.count("WatchHints") == 2


async def test_smart_sync_stream_break_spreads_polls() -> None:
    breaks = asyncio.Event()
    async with phone(reported(10, stream=True)) as device:
        device.script.prepare("WatchHints", [checkpoint(), Until(breaks), BROKEN], [Hold()])
        device.script.prepare("GetHint", *[polled(10)] * 2)
        async with device.sync:
            await streaming(device)
            await device.clock.travel(55)
            breaks.set()
            await wait_until(lambda: not device.sync.is_streaming)
            await device.clock.quiet()
            assert device.count("GetHint") == 0
            await device.clock.travel(10)
            assert device.count("GetHint") == 1


async def test_smart_sync_polls_until_a_broken_stream_is_back() -> None:
    back = asyncio.Event()
    async with phone(reported(10, at(1), stream=True), cursors=[at(1)]) as device:
        resumed: Stream = [Until(back), streamed(change=row(2)), streamed(change=row(4)), Hold()]
        device.script.prepare("WatchHints", [checkpoint(row(1)), BROKEN], [BROKEN], resumed)
        device.script.prepare("GetHint", polled(10, at(3), stream=True), polled(10, at(3), stream=True))
        device.script.prepare("ListChanges", page(2, 3))
        async with device.sync:
            await wait_until(lambda: device.count("WatchHints") == 3, WAIT_S)
            await device.clock.travel(10.5)
            assert (device.count("GetHint"), device.sequences) == (1, [2, 3])
            # The stream resumes where it was: what the poll brought is not applied again.
            back.set()
            await streaming(device)
            await wait_until(lambda: device.sequences == [2, 3, 4])
            assert list(device.last("WatchHints").cursors) == [at(1)]


async def test_smart_sync_refused_stream_is_not_retried_soon(caplog: pytest.LogCaptureFixture) -> None:
    async with phone(reported(60, stream=True)) as device:
        device.script.prepare("WatchHints", [Refusal(grpc.StatusCode.UNIMPLEMENTED)], [checkpoint(), Hold()])
        device.script.prepare("GetHint", *[polled(60, stream=True)] * 9)
        async with device.sync:
            # It was refused when the device has heard so, which is later than the request.
            await wait_until(lambda: "the stream ended" in caplog.text, WAIT_S)
            await device.clock.travel(280)
            assert (device.count("WatchHints"), device.count("GetHint")) == (1, 4)
            await device.clock.travel(40)
            await streaming(device)
    assert device.count("WatchHints") == 2


async def test_smart_sync_waits_out_a_drain_without_polls() -> None:
    drained = streamed(drain=pb.Drain())
    drained.drain.reconnect_delay.FromMilliseconds(600)
    async with phone(reported(10, stream=True)) as device:
        device.script.prepare("WatchHints", [checkpoint(), drained], [checkpoint(), Hold()])
        async with device.sync:
            await streaming(device)
            await device.clock.travel(40)
            assert device.count("GetHint") == 0
            await wait_until(lambda: device.count("WatchHints") == 2, WAIT_S)
    first, second = device.script.attempts["WatchHints"]
    assert second.at - first.at >= 0.6


async def test_smart_sync_stream_reset_is_listed_after_its_delay() -> None:
    dropped = reset(at(5, epoch="new"), 8)
    later = streamed(change=row(6, epoch="new"))
    async with phone(reported(10, at(9), stream=True), cursors=[at(9)]) as device:
        device.script.prepare("WatchHints", [dropped, later, checkpoint(row(6, epoch="new")), Hold()])
        async with device.sync:
            await streaming(device)
            await device.clock.travel(7)
            assert (device.applied, device.sync.cursors) == ([], [at(9)])
            device.script.prepare("ListChanges", page(4, epoch="new", more=True), page(6, epoch="new"))
            await device.clock.travel(2)
            assert [batch.drop for batch in device.applied] == [True, False]
            starts = [attempt.request.cursor for attempt in device.script.attempts["ListChanges"]]
            assert [start.HasField("sequence") for start in starts] == [False, True]
            assert (device.sequences, device.sync.cursors) == ([4, 6], [at(6, epoch="new")])


async def test_smart_sync_stream_lists_joined_and_drops_left_scopes() -> None:
    async with phone(reported(10, at(1), stream=True), cursors=[at(1)]) as device:
        device.script.prepare("ListChanges", page(5, 7, scope="new"))
        everything = checkpoint(row(7, "new"), row(0, "empty"))
        device.script.prepare("WatchHints", [streamed(change=row(7, "new")), everything, Hold()])
        async with device.sync:
            await wait_until(lambda: len(device.applied) == 2, WAIT_S)
            assert {(batch.scope, batch.drop) for batch in device.applied} == {("s", True), ("new", False)}
            await device.clock.quiet()
            assert {cursor.scope: cursor.sequence for cursor in device.sync.cursors} == {"new": 7, "empty": 0}


async def test_smart_sync_stream_closes_in_background_and_reopens() -> None:
    async with phone(reported(10, stream=True), reported(200), reported(10, stream=True)) as device:
        device.script.prepare("WatchHints", [checkpoint(), Hold()], [checkpoint(), Hold()])
        async with device.sync:
            await streaming(device)
            device.sync.background()
            await wait_until(lambda: not device.sync.is_streaming)
            await device.clock.travel(5)
            device.sync.foreground()
            await streaming(device)
    assert (device.count("WatchHints"), device.count("ReportActivity"), device.count("GetHint")) == (2, 3, 0)


async def test_smart_sync_stream_reopens_when_foregrounded_while_closing() -> None:
    away = asyncio.Event()
    async with phone(*[reported(10, stream=True)] * 2) as device:
        device.script.prepare("WatchHints", [checkpoint(), Until(away), streamed(hint=hint(10)), Hold()])
        device.script.prepare("WatchHints", [checkpoint(), Hold()])
        async with device.sync:
            await streaming(device)
            away.set()
            async with asyncio.timeout(WAIT_S):
                while device.sync.is_streaming:  # noqa: ASYNC110  # the very turn of the loop counts
                    await asyncio.sleep(0)
            device.sync.foreground()
            await streaming(device)
    assert (device.count("WatchHints"), device.count("GetHint")) == (2, 0)


async def test_smart_sync_opens_no_stream_for_a_hint_of_a_past_state() -> None:
    async def hide(batch: SyncBatch) -> None:
        sync.background()

    async with phone(reported(100), reported(100), reported(10, at(1), stream=True), reported(100, at(1))) as device:
        device.script.prepare("ListChanges", page(1))
        sync = SmartSync(device.client, "phone", on_changes=hide, clock=device.clock)
        async with sync:
            await device.clock.quiet()
            sync.background()
            await device.clock.quiet()
            sync.foreground()
            await device.clock.travel(12)
    assert (device.count("WatchHints"), device.count("ReportActivity")) == (0, 4)


async def test_smart_sync_network_change_reopens_the_stream() -> None:
    async with phone(*[reported(10, stream=True)] * 2) as device:
        device.script.prepare("WatchHints", [checkpoint(), Hold()], [checkpoint(), Hold()])
        async with device.sync:
            await streaming(device)
            device.sync.network(pb.NETWORK_CELLULAR)
            await wait_until(lambda: device.count("WatchHints") == 2, WAIT_S)
    assert device.last("WatchHints").activity.network == pb.NETWORK_CELLULAR


async def test_smart_sync_reports_idle_time_while_streaming() -> None:
    async with phone(*[reported(10, stream=True)] * 3, reported(100)) as device:
        device.script.prepare("WatchHints", [checkpoint(), Hold()])
        async with device.sync:
            await streaming(device)
            await device.clock.travel(300)
            assert not device.sync.is_streaming
        told = [attempt.request.activity.idle_duration.seconds for attempt in device.script.attempts["ReportActivity"]]
    assert told[0] == 0
    assert all(later in range(60 * 2**index, 60 * 2**index + 21) for index, later in enumerate(told[1:]))
    assert len(told) == 4


async def test_smart_sync_drops_its_stream_after_suspension_and_polls() -> None:
    async with phone(reported(10, stream=True)) as device:
        device.script.prepare("WatchHints", [checkpoint(), Hold()], [checkpoint(), Hold()])
        device.script.prepare("ReportActivity", *[reported(10, stream=True)] * 2)
        device.script.prepare("GetHint", polled(10, stream=True))
        async with device.sync:
            await streaming(device)
            device.clock.suspended_s += 30
            await device.clock.travel(14)
            await streaming(device)
            assert (device.count("GetHint"), device.count("WatchHints")) == (1, 2)


async def test_smart_sync_streams_can_be_declined() -> None:
    async with phone(reported(10, stream=True)) as device:
        sync = SmartSync(device.client, "phone", clock=device.clock, streams=False)
        device.script.prepare("GetHint", *[polled(10, stream=True)] * 4)
        async with sync:
            await device.clock.travel(35)
    assert (device.count("WatchHints"), device.count("GetHint")) == (0, 3)
