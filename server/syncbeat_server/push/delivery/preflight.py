"""Checks claimed deliveries before they are sent: live streams, collapse keys, daily maxima and wake-up budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.dependencies import DeliveryDependencies, Live
from syncbeat_server.push.model import ClaimedDelivery, DeliveryUpdate, Kind, Reason
from syncbeat_server.push.policy.holds import hold, hold_or_end
from syncbeat_server.push.policy.quiet_hours import day_bounds
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.push.store import collapse_keys, daily_maximum, wake_budgets
from syncbeat_server.storage.postgres.database import Connection

_OUTCOME_S = 2.0  # until an attempt under way has shown whether it counts towards the maximum: most take less


class _Capped(NamedTuple):
    """A delivery that counts towards the daily maximum of its device."""

    delivery: ClaimedDelivery
    maximum: int
    day_begins: datetime
    day_ends: datetime


async def screen(
    deps: DeliveryDependencies, rule: RetryRule, deliveries: Sequence[ClaimedDelivery]
) -> list[DeliveryUpdate | None]:
    """Return, for each delivery, its update if it is not to be attempted now, or None if it is to be sent.

    Raises:
        DependencyDown: the database does not answer.
    """
    streams = await _have_streams(deps.live, deliveries)
    found = [
        hold_or_end(delivery, has_stream, delivery.claimed_at, rule)
        for delivery, has_stream in zip(deliveries, streams, strict=True)
    ]
    left = [delivery for delivery, update in zip(deliveries, found, strict=True) if update is None]
    limited = await _limited(deps, left)
    return [
        limited.get(delivery.delivery_id) if update is None else update
        for delivery, update in zip(deliveries, found, strict=True)
    ]


async def _have_streams(live: Live, deliveries: Sequence[ClaimedDelivery]) -> list[bool]:
    # A message is always pushed; only a wake-up may be left to the stream.
    devices = list({d.device for d in deliveries if d.kind is Kind.SYNC and not d.held_for_stream})
    if not devices:
        return [False] * len(deliveries)
    found = dict(zip(devices, await live(devices), strict=True))
    return [found.get(d.device, False) for d in deliveries]


async def _limited(deps: DeliveryDependencies, deliveries: Sequence[ClaimedDelivery]) -> dict[str, DeliveryUpdate]:
    """Return the updates of deliveries that a limit of their device holds back, by delivery id."""
    capped = [
        _Capped(delivery, maximum, *day_bounds(delivery.time_zone, delivery.claimed_at))
        for delivery in deliveries
        if (maximum := _daily_maximum(deps.channels, delivery)) is not None
    ]
    keyed = [delivery for delivery in deliveries if delivery.collapse_key]
    silent = [delivery for delivery in deliveries if delivery.silent]
    if not capped and not silent and not keyed:
        return {}
    async with deps.database.transaction() as conn:
        limited = await collapse_keys.keep_order(conn, keyed) if keyed else {}
        limited |= await _over_maximum(conn, [one for one in capped if one.delivery.delivery_id not in limited])
        if silent:
            waits = await wake_budgets.spend_wake_budgets(conn, [d for d in silent if d.delivery_id not in limited])
            for delivery in silent:
                if delivery.delivery_id in waits:
                    limited[delivery.delivery_id] = hold(delivery, Reason.WAKE_BUDGET, waits[delivery.delivery_id])
    return limited


async def _over_maximum(conn: Connection, capped: Sequence[_Capped]) -> dict[str, DeliveryUpdate]:
    if not capped:
        return {}
    counted = await daily_maximum.count_shown(conn, [(one.delivery, one.maximum, one.day_begins) for one in capped])
    over = {}
    for delivery, _, _, day_ends in capped:
        if delivery.delivery_id not in counted.allowed:
            undecided = delivery.delivery_id in counted.undecided
            wait_s = _OUTCOME_S if undecided else (day_ends - delivery.claimed_at).total_seconds()
            over[delivery.delivery_id] = hold(delivery, Reason.DAILY_MAXIMUM, wait_s)
    return over


def _daily_maximum(channels: Mapping[str, Channel], delivery: ClaimedDelivery) -> int | None:
    """Return the maximum of the delivery's user, else that of its app; None if the delivery does not count."""
    if not delivery.content.visible or delivery.critical:
        return None
    if delivery.max_per_day is not None:
        return delivery.max_per_day
    channel = channels.get(delivery.app_id)
    return None if channel is None else channel.max_per_day
