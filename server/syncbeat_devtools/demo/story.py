"""The story of a couple with three devices, played over the real wire. Each chapter checks its claims."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.demo.devices import StreamingDevice, cursor_of, eventually
from syncbeat_devtools.demo.report import Report
from syncbeat_devtools.demo.resend_chapter import fetch, play_resend_chapter
from syncbeat_devtools.demo.session_chapter import play_session_chapter
from syncbeat_devtools.demo.stage import Stage

SCOPE = "couple:alice-and-bob"
_WINDOW_S = 10  # longer than the grace of streams, which passes in between, and with room for a busy machine
PHONE, TABLET, BOBS_PHONE = "alice-phone", "alice-tablet", "bob-phone"


@dataclass
class Story:
    """The state that the chapters share."""

    stage: Stage
    report: Report
    backend: SyncbeatClient
    alice: SyncbeatClient
    bob: SyncbeatClient
    stream: StreamingDevice
    published: list[int] = field(default_factory=list)

    async def publish(self, text: str, *, wake: bool = True) -> tuple[int, float]:
        """Publish a note as the backend. Returns its sequence, and the time before the call."""
        began = time.monotonic()
        window = core_pb2.SyncTrigger(type="note")
        window.dedupe_window.FromSeconds(_WINDOW_S)
        answer = await self.backend.sync.PublishChanges(
            sync_service_pb2.PublishChangesRequest(
                changes=[
                    core_pb2.NewChange(
                        scope=SCOPE, key=f"note-{len(self.published)}", merge_patch_json=f'{{"text": "{text}"}}'
                    )
                ],
                trigger=window if wake else None,
            )
        )
        self.published.append(answer.results[0].sequence)
        return self.published[-1], began

    async def send(self, title: str) -> str:
        """Notify bob as the backend. Returns the notification's id."""
        answer = await self.backend.push.SendNotification(
            push_service_pb2.SendNotificationRequest(
                device_ids=core_pb2.DeviceRefs(refs=[core_pb2.DeviceRef(user_id="bob", device_id=BOBS_PHONE)]),
                notification=core_pb2.Notification(title=title),
            )
        )
        return str(answer.notification_id)

    async def deliveries(
        self, *, notification_id: str = "", user_id: str = "", device_id: str = ""
    ) -> list[push_service_pb2.Delivery]:
        """Return the deliveries that match a filter."""
        wanted = push_service_pb2.DeliveryFilter(notification_id=notification_id, user_id=user_id, device_id=device_id)
        answer = await self.backend.push.ListDeliveries(
            push_service_pb2.ListDeliveriesRequest(filter=wanted, page_size=1000)
        )
        return list(answer.deliveries)

    async def wake_ups(self, count: int) -> list[int]:
        """Wait for `count` wake-ups of bob's phone. Returns the sequences they carry, fewer if they do not come in
        time.

        A wake-up that is not answered in time is sent again on a slow machine; it counts once.
        """
        found: dict[str, int] = {}

        async def came() -> bool:
            pushes = await self.stage.fake_fcm.deliveries(BOBS_PHONE)
            found.update((push["message"]["data"]["delivery_id"], cursor_of(push)) for push in pushes)
            return len(found) >= count

        await eventually(came)
        return list(found.values())

    async def settled(self, notification_id: str, state: str) -> push_service_pb2.Delivery:
        """Wait until the only delivery of a notification reaches a state. Returns it in its final state."""
        found: list[push_service_pb2.Delivery] = []

        async def there() -> bool:
            nonlocal found
            found = await self.deliveries(notification_id=notification_id)
            return _state(found[0]) == state

        await eventually(there)
        return found[0]


async def play_story(stage: Stage, report: Report) -> None:
    """Play every chapter."""
    first, second = stage.servers
    async with (
        stage.client(stage.identity.service_token, second, first) as backend,
        stage.client(stage.user_token("alice"), first, second) as alice,
        stage.client(stage.user_token("bob"), second) as bob,
    ):
        await _meet(backend, alice, bob, report)
        stream = StreamingDevice(alice, PHONE)
        story = Story(stage, report, backend, alice, bob, stream)
        try:
            await _first_change(story)
            await _repeats(story)
            sequence = await play_resend_chapter(stage, report, backend, bob, BOBS_PHONE, SCOPE)
            story.published.append(sequence)
            await _faults(story)
            await _dead_token(story)
            await _receipts(story)
            await _idle(story)
            await play_session_chapter(stage, report)
            await _killed_worker(story)
            await _killed_server(story)
            await _without_redis(story)
        finally:
            await stream.close()


async def _meet(backend: SyncbeatClient, alice: SyncbeatClient, bob: SyncbeatClient, report: Report) -> None:
    report.chapter("A couple: alice streams on her phone and polls on her tablet, bob's phone is offline")
    for client, device, token in ((alice, PHONE, PHONE), (alice, TABLET, ""), (bob, BOBS_PHONE, BOBS_PHONE)):
        await client.directory.RegisterDevice(
            directory_service_pb2.RegisterDeviceRequest(
                device_id=device, platform=directory_service_pb2.PLATFORM_ANDROID, registration_token=token
            )
        )
    writer = directory_service_pb2.ROLE_WRITER
    await backend.directory.AddScopeMembers(
        directory_service_pb2.AddScopeMembersRequest(
            scope=SCOPE,
            members=[directory_service_pb2.ScopeMember(user_id=user, role=writer) for user in ("alice", "bob")],
        )
    )
    report.note("three devices registered, both are members of their scope")


async def _first_change(story: Story) -> None:
    report, fake_fcm = story.report, story.stage.fake_fcm
    report.chapter("The backend publishes a change on the other server")
    report.claim("the stream is open", await story.stream.wait_open())
    sequence, began = await story.publish("dinner at eight")
    came = await story.stream.wait_for(sequence)
    delay = (story.stream.came_at[-1] - began) * 1000 if came else float("nan")
    report.claim("the stream got the change itself", came, f"{delay:.0f} ms after the call began")
    hint = await story.alice.sync.GetHint(sync_service_pb2.GetHintRequest(device_id=TABLET))
    report.claim("the tablet's poll says that there is news", hint.hint.changed)
    carried = await story.wake_ups(1)
    report.claim("bob's phone got one wake-up with the cursor, seen at FCM over HTTP", carried == [sequence], carried)
    report.claim("and fetched what it was woken for", await fetch(story.bob, BOBS_PHONE, SCOPE) == sequence)

    async def held_back() -> bool:
        found = await story.deliveries(user_id="alice", device_id=PHONE)
        return [_state(delivery) for delivery in found] == ["CANCELLED"]

    cancelled = await eventually(held_back)
    quiet = not await fake_fcm.deliveries(PHONE)
    report.claim(
        "the streaming phone was not pushed: its delivery was cancelled once it had the change", cancelled and quiet
    )


async def _repeats(story: Story) -> None:
    report = story.report
    report.chapter(f"Three more changes inside the window of {_WINDOW_S} s")
    texts = ("bring wine", "red, not white", "and bread")
    last = [(await story.publish(text))[0] for text in texts][-1]
    early = await story.wake_ups(1)
    report.claim("the repeats woke nobody", len(early) == 1, f"{len(early)} push so far")
    carried = (await story.wake_ups(2))[1:]
    await fetch(story.bob, BOBS_PHONE, SCOPE)
    report.claim("when the window ended the last one still arrived, once", carried == [last], carried)
    states: list[str] = []

    async def recorded() -> bool:
        nonlocal states
        states = sorted(_state(delivery) for delivery in await story.deliveries(user_id="bob"))
        return states == ["SENT", "SENT", "SUPPRESSED", "SUPPRESSED"]

    accounted = await eventually(recorded)
    report.claim("four accepted: two sent, two merged into the last", accounted, ", ".join(states))


async def _faults(story: Story) -> None:
    report, fake_fcm = story.report, story.stage.fake_fcm
    report.chapter("FCM answers 503")
    await fake_fcm.script(BOBS_PHONE, "503")
    delivery = await story.settled(await story.send("A 503 before"), "SENT")
    report.claim("it was retried until FCM took it", _state(delivery) == "SENT", f"{delivery.attempts} attempts")
    before = await fake_fcm.device(BOBS_PHONE)
    await fake_fcm.script(BOBS_PHONE, "accepted-503")
    delivery = await story.settled(await story.send("Taken, and a 503 all the same"), "SENT")
    after = await fake_fcm.device(BOBS_PHONE)
    shown, replaced = after["shown"] - before["shown"], after["replaced"] - before["replaced"]
    report.claim(
        "FCM took it twice, and the phone shows it once",
        shown == 1 and replaced >= 1,
        f"{delivery.attempts} attempts, {shown} shown, {replaced} replaced in place",
    )


async def _dead_token(story: Story) -> None:
    report = story.report
    report.chapter("The tablet's app was deleted: FCM says UNREGISTERED")
    registration = directory_service_pb2.RegisterDeviceRequest(
        device_id=TABLET, platform=directory_service_pb2.PLATFORM_ANDROID, registration_token="dead-token"
    )
    await story.alice.directory.RegisterDevice(registration)
    await story.stage.fake_fcm.script("dead-token", "unregistered")
    refs = core_pb2.DeviceRefs(refs=[core_pb2.DeviceRef(user_id="alice", device_id=TABLET)])
    sent = await story.backend.push.SendNotification(
        push_service_pb2.SendNotificationRequest(device_ids=refs, notification=core_pb2.Notification(title="Hello?"))
    )
    delivery = await story.settled(sent.notification_id, "DEAD")
    wanted = directory_service_pb2.GetDeviceRequest(device_id=TABLET)
    device = (await story.alice.directory.GetDevice(wanted)).device
    dropped = device.token_state == directory_service_pb2.TOKEN_STATE_DEAD
    report.claim("its token was dropped after one attempt", dropped and _state(delivery) == "DEAD")


async def _receipts(story: Story) -> None:
    report, push = story.report, story.backend.push
    report.chapter("A phone says what became of a push; another push is called back")
    delivery = await story.settled(await story.send("Read me"), "SENT")
    carried = [push["message"]["data"] for push in await story.stage.fake_fcm.deliveries(BOBS_PHONE)]
    ack_token = next(one["ack_token"] for one in carried if one["delivery_id"] == delivery.delivery_id)
    receipt = push_service_pb2.AcknowledgeDeliveryRequest(
        ack_token=ack_token, kind=push_service_pb2.ACKNOWLEDGE_KIND_OPENED
    )
    async with story.stage.client("") as nobody:  # a background app, whose access token has expired
        await nobody.push.AcknowledgeDelivery(receipt)
    opened = await story.settled(delivery.notification_id, "OPENED")
    report.claim("it was opened, says the phone without an access token", _state(opened) == "OPENED")
    quiet = directory_service_pb2.QuietHours(start_minute=0, end_minute=0)
    await story.bob.directory.SetPreferences(directory_service_pb2.SetPreferencesRequest(quiet_hours=quiet))
    held = await story.settled(await story.send("Not now"), "HELD")
    report.claim("bob has quiet hours: it is held", _state(held) == "HELD")
    cancel = push_service_pb2.CancelNotificationRequest(notification_id=held.notification_id)
    count = (await push.CancelNotification(cancel)).cancelled_count
    await story.bob.directory.SetPreferences(directory_service_pb2.SetPreferencesRequest())
    report.claim("and called back before it was ever sent", count == 1)


async def _idle(story: Story) -> None:
    report = story.report
    report.chapter("The tablet is put away")
    in_hand = sync_service_pb2.Activity(state=sync_service_pb2.ACTIVITY_STATE_FOREGROUND)
    away = sync_service_pb2.Activity(state=sync_service_pb2.ACTIVITY_STATE_BACKGROUND, battery_low=True)
    away.idle_duration.FromSeconds(600)
    intervals = []
    for activity in (in_hand, away):
        request = sync_service_pb2.ReportActivityRequest(device_id=TABLET, activity=activity)
        hint = (await story.alice.sync.ReportActivity(request)).hint
        intervals.append(hint.poll_interval.ToMilliseconds() / 1000)
    grew = intervals[1] > 3 * intervals[0]
    report.claim("its poll interval grew", grew, f"{intervals[0]:.0f} s in hand, {intervals[1]:.0f} s idle")


async def _killed_worker(story: Story) -> None:
    report, fake_fcm, worker = story.report, story.stage.fake_fcm, story.stage.worker
    report.chapter("The worker is killed between send and record")
    before = await fake_fcm.device(BOBS_PHONE)
    await fake_fcm.script(BOBS_PHONE, "hang")
    notification_id = await story.send("Sent by a worker that dies")

    async def hangs() -> bool:
        return bool((await fake_fcm.stats())["hanging"])

    report.claim("the worker waits for FCM's answer", await eventually(hangs))
    if worker is not None:
        await worker.kill()
        report.note(f"kill -9 {worker.pid}")
    await story.stage.start_worker()
    delivery = await story.settled(notification_id, "SENT")
    after = await fake_fcm.device(BOBS_PHONE)
    report.claim(
        "another worker took over when the lease ran out; it was shown once",
        _state(delivery) == "SENT" and after["shown"] - before["shown"] == 1,
        f"{delivery.attempts} attempts",
    )


async def _killed_server(story: Story) -> None:
    report, first = story.report, story.stage.servers[0]
    report.chapter("The server that has the stream is killed between accept and send")
    shown = (await story.stage.fake_fcm.device(BOBS_PHONE))["shown"]
    async with story.stage.client(story.stage.identity.service_token, first) as backend:
        accepted = await backend.push.SendNotification(
            push_service_pb2.SendNotificationRequest(
                user_ids=core_pb2.UserIds(ids=["bob"]),
                notification=core_pb2.Notification(title="Accepted"),
            )
        )
        await first.kill()
    report.note(f"kill -9 {first.pid}")
    missed = [(await story.publish(f"while the stream was down {n}", wake=False))[0] for n in range(5)]
    resumed = await story.stream.wait_for(missed[-1])
    exact = story.stream.sequences == story.published
    seen = f"{len(story.stream.sequences)} changes, in order"
    report.claim("the stream resumed on the other server: nothing missed, nothing twice", resumed and exact, seen)
    delivery = await story.settled(accepted.notification_id, "SENT")
    arrived = (await story.stage.fake_fcm.device(BOBS_PHONE))["shown"] - shown
    report.claim("what was accepted arrived", _state(delivery) == "SENT" and arrived == 1)


async def _without_redis(story: Story) -> None:
    report, stores = story.report, story.stage.stores
    report.chapter("Redis is killed")
    stores.kill_redis()
    sequence, _ = await story.publish("no redis", wake=False)
    hint = await story.bob.sync.GetHint(sync_service_pb2.GetHintRequest(device_id=BOBS_PHONE))
    report.claim("publish and hints go on", hint.hint.heads[0].sequence == sequence)
    delivery = await story.settled(await story.send("Without Redis"), "SENT")
    report.claim("pushes arrive", _state(delivery) == "SENT")
    report.claim("the stream gets the change", await story.stream.wait_for(sequence))
    stores.start_redis()
    sequence, _ = await story.publish("redis is back", wake=False)
    report.claim("it comes back by itself", await story.stream.wait_for(sequence))


def _state(delivery: push_service_pb2.Delivery) -> str:
    return push_service_pb2.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")
