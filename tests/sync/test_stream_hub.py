"""The hub wakes who follows what changed, once, and forgets nobody's news."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from syncbeat_server.errors import RateLimited
from syncbeat_server.sync.model import Cursor, DeviceKey
from syncbeat_server.sync.streams.hub import Hub
from syncbeat_server.sync.streams.open_stream_limits import OpenStreamLimits
from syncbeat_server.sync.streams.subscription import Subscription
from tests.support.fake_clock import settle

pytestmark = pytest.mark.unit


def subscribed(hub: Hub, user: str = "ann", *scopes: str, app: str = "a", whole: bool = False) -> Subscription:
    subscription = Subscription(DeviceKey(app, user, f"phone-{user}"), all_scopes=whole)
    hub.add(subscription)
    hub.follow(subscription, scopes)
    return subscription


async def woken(subscription: Subscription) -> bool:
    """Return whether it does not wait."""
    waiting = asyncio.ensure_future(subscription.wait(60))
    await settle()
    if waiting.done():
        return True
    waiting.cancel()
    await asyncio.wait([waiting])
    return False


async def test_hub_wakes_followers_of_a_scope() -> None:
    hub = Hub()
    follower, other, stranger = subscribed(hub, "ann", "s"), subscribed(hub, "bob", "t"), subscribed(hub, "s", app="b")
    hub.follow(stranger, ["s"])
    everything = subscribed(hub, "backend", whole=True)
    hub.scope_changed("a", "s")
    assert [await woken(s) for s in (follower, other, stranger, everything)] == [True, False, False, True]
    assert [s.take_dirty() for s in (follower, other, everything)] == [{"s"}, set(), set()]
    assert follower.take_dirty() == set()
    assert not await woken(follower)


async def test_hub_wakes_nobody_who_is_at_the_head() -> None:
    hub = Hub()
    at_head, behind, other_epoch = (subscribed(hub, name, "s") for name in ("ann", "bob", "cy"))
    for subscription, cursor in ((at_head, ("e", 7)), (behind, ("e", 6)), (other_epoch, ("d", 7))):
        subscription.cursors = {"s": Cursor("s", *cursor)}
    unknown = subscribed(hub, "dee", "s")
    hub.scope_changed("a", "s", ("e", 7))
    assert [await woken(s) for s in (at_head, behind, other_epoch, unknown)] == [False, True, True, True]
    hub.scope_changed("a", "s")
    assert await woken(at_head), "something else of it changed"


async def test_hub_wakes_a_waiting_stream_at_once() -> None:
    hub = Hub()
    subscription = subscribed(hub, "ann", "s")
    waiting = asyncio.ensure_future(subscription.wait(60))
    await settle()
    assert not waiting.done()
    hub.scope_changed("a", "s")
    await asyncio.wait_for(waiting, 20)


async def test_hub_conflates_news_to_one_slot_per_scope() -> None:
    hub = Hub()
    subscription = subscribed(hub, "ann", "s", "t")
    for _ in range(1_000):
        hub.scope_changed("a", "s")
        hub.scope_changed("a", "t")
    await settle()
    assert subscription.dirty == {"s", "t"}
    assert await woken(subscription)
    subscription.take_dirty()
    assert not await woken(subscription)


async def test_hub_never_loses_a_wake_up() -> None:
    hub = Hub()
    subscription = subscribed(hub, "ann", "s")
    seen: list[int] = []
    news = 0

    async def follow() -> None:
        while True:
            if subscription.take_dirty():
                await asyncio.sleep(0)  # reads
                seen.append(news)
            if not subscription.dirty:
                await subscription.wait(60)

    following = asyncio.ensure_future(follow())
    for turns in range(40):
        news += 1
        hub.scope_changed("a", "s")
        for _ in range(turns % 8):
            await asyncio.sleep(0)
        if turns % 8 == 7:
            await settle()
            assert seen[-1] == news
    following.cancel()
    await asyncio.wait([following])


async def test_hub_wait_times_out() -> None:
    subscription = subscribed(Hub(), "ann", "s")
    await asyncio.wait_for(subscription.wait(0.001), 20)
    await asyncio.wait_for(subscription.wait(0), 20)
    await asyncio.wait_for(subscription.wait(-1), 20)


async def test_hub_wakes_thousands_in_chunks() -> None:
    hub = Hub(wake_chunk=10)
    crowd = [subscribed(hub, f"user-{n}", "s") for n in range(35)]
    waiting = [asyncio.ensure_future(one.wait(60)) for one in crowd]
    await settle()
    hub.scope_changed("a", "s")
    awake = []
    for _ in range(12):
        await asyncio.sleep(0)
        awake.append(sum(task.done() for task in waiting))
    steps = [after - before for before, after in pairwise(awake)]
    assert max(steps) <= 10
    assert awake[-1] == 35
    assert [one.take_dirty() for one in crowd] == [{"s"}] * 35


async def test_hub_follow_replaces_what_was_followed() -> None:
    hub = Hub()
    subscription = subscribed(hub, "ann", "s", "t")
    hub.follow(subscription, ["t", "u"])
    assert sorted(hub.followed_scopes()) == [("a", "t"), ("a", "u")]
    hub.scope_changed("a", "s")
    assert not await woken(subscription)
    hub.remove(subscription)
    hub.remove(subscription)
    assert (hub.followed_scopes(), hub.live_devices(), len(hub)) == ([], [], 0)


async def test_hub_membership_change_wakes_every_stream_of_the_user() -> None:
    hub = Hub()
    phone, tablet, bob = subscribed(hub), subscribed(hub), subscribed(hub, "bob")
    hub.members_changed("a", "ann")
    hub.members_changed("b", "bob")
    assert [await woken(s) for s in (phone, tablet, bob)] == [True, True, False]
    assert [s.members_changed for s in (phone, tablet, bob)] == [True, True, False]


async def test_hub_sweep_repairs_lost_wake_ups() -> None:
    hub = Hub()
    streams = [subscribed(hub, f"user-{n}", "s", f"own-{n}") for n in range(3)]
    hub.invalidate_all()
    assert [await woken(s) for s in streams] == [True] * 3
    assert [s.take_dirty() for s in streams] == [{"s", f"own-{n}"} for n in range(3)]
    assert all(s.members_changed for s in streams)


async def test_hub_drain_wakes_everybody() -> None:
    hub = Hub()
    streams = [subscribed(hub, "ann", "s"), subscribed(hub, "bob"), subscribed(hub, "backend", whole=True)]
    waiting = [asyncio.ensure_future(s.wait(60)) for s in streams]
    await settle()
    hub.drain()
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert hub.draining


async def test_hub_firehose_keeps_no_scopes() -> None:
    hub = Hub()
    everything = subscribed(hub, "backend", whole=True)
    for number in range(20_000):
        hub.scope_changed("a", f"s{number}")
    assert not everything.dirty
    assert await woken(everything)
    assert not await woken(everything)
    hub.remove(everything)
    hub.scope_changed("a", "s")
    assert not await woken(everything)


async def test_hub_lists_live_devices_once() -> None:
    hub = Hub()
    subscribed(hub)
    subscribed(hub)
    nameless = Subscription(DeviceKey("a", "service", ""), all_scopes=True)
    hub.add(nameless)
    assert hub.live_devices() == [DeviceKey("a", "ann", "phone-ann")]
    assert len(hub) == 3


@pytest.mark.parametrize(("max_per_user", "max_per_device", "whose"), [(3, 9, "user"), (9, 3, "device")])
def test_stream_limit_per_user_and_device(max_per_user: int, max_per_device: int, whose: str) -> None:
    hub = Hub(limits=OpenStreamLimits(max_per_user, max_per_device))
    phone = DeviceKey("default", "ann", "phone")
    subscriptions = [Subscription(phone, all_scopes=False) for _ in range(4)]
    for subscription in subscriptions[:3]:
        hub.add(subscription)
    with pytest.raises(RateLimited, match=f"a {whose} has at most 3 streams") as raised:
        hub.add(subscriptions[3])
    assert raised.value.metadata == {"limit": "3", "remaining": "0", "reset": "30"}
    assert hub.opened == len(hub) == 3
    hub.add(Subscription(DeviceKey("default", "bob", "phone"), all_scopes=False))
    hub.add(Subscription(DeviceKey("other", "ann", "phone"), all_scopes=False))
    hub.remove(subscriptions[0])
    hub.add(subscriptions[3])


def test_stream_limit_without_a_device_counts_for_the_user() -> None:
    hub = Hub(limits=OpenStreamLimits(per_user=5, per_device=1))
    for _ in range(5):
        hub.add(Subscription(DeviceKey("default", "ann", ""), all_scopes=False))
    for _ in range(6):
        hub.add(Subscription(DeviceKey("default", "", ""), all_scopes=True))
