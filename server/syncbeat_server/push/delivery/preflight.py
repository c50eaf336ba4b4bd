"""Which of the claimed deliveries are to be sent now: asks the streams, the day's maxima and the wake-up budgets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.model import ClaimedDelivery, Finished, Kind, Reason
from syncbeat_server.push.policy import decisions, quiet_hours
from syncbeat_server.push.policy.decisions import RetryRule
from syncbeat_server.push.store import collapse_keys, device_limits
from syncbeat_server.storage.postgres.database import Database

_OUTCOME_S = 2.0  # until an attempt under way has shown whether it takes a place: most take less

Live = Callable[[Sequence[tuple[str, str, str]]], Awaitable[Sequence[bool]]]
"""For each (app, user, device) whether it has a live stream somewhere."""


class Screening:
    """Tells what needs no attempt, or none yet."""

    def __init__(self, database: Database, channels: Mapping[str, Channel], live: Live, rule: RetryRule) -> None:
        self._database = database
        self._channels = channels
        self._live = live
        self._rule = rule

    async def judge(self, deliveries: Sequence[ClaimedDelivery]) -> list[Finished | None]:
        """For each delivery how it goes on without an attempt, or None when it is to be sent.

        Raises:
            DependencyDown: the database does not answer.
        """
        live = await self._ask_live(deliveries)
        judged = [
            decisions.triage(delivery, is_live, delivery.claimed_at, self._rule)
            for delivery, is_live in zip(deliveries, live, strict=True)
        ]
        left = [delivery for delivery, found in zip(deliveries, judged, strict=True) if found is None]
        held = await self._within_limits(left)
        return [
            held.get(delivery.delivery_id) if found is None else found
            for delivery, found in zip(deliveries, judged, strict=True)
        ]

    async def _ask_live(self, deliveries: Sequence[ClaimedDelivery]) -> list[bool]:
        # A message is always pushed; only a wake-up may be left to the stream.
        asked = {d.device for d in deliveries if d.kind is Kind.SYNC and not d.held}
        if not asked:
            return [False] * len(deliveries)
        ordered = list(asked)
        found = dict(zip(ordered, await self._live(ordered), strict=True))
        return [found.get(d.device, False) for d in deliveries]

    async def _within_limits(self, deliveries: Sequence[ClaimedDelivery]) -> dict[str, Finished]:
        capped = [
            (delivery, most, quiet_hours.day_of(delivery.time_zone, delivery.claimed_at))
            for delivery in deliveries
            if (most := self._most_a_day(delivery)) is not None
        ]
        keyed = [delivery for delivery in deliveries if delivery.collapse_key]
        wakes = [delivery for delivery in deliveries if delivery.wakes]
        if not capped and not wakes and not keyed:
            return {}
        async with self._database.transaction() as conn:
            held = await collapse_keys.keep_order(conn, keyed) if keyed else {}
            capped = [one for one in capped if one[0].delivery_id not in held]
            if capped:
                counted = await device_limits.count_shown(
                    conn, [(delivery, most, day[0]) for delivery, most, day in capped]
                )
                for delivery, _, (_, ends) in capped:
                    if delivery.delivery_id not in counted.may:
                        perhaps = delivery.delivery_id in counted.perhaps
                        wait_s = _OUTCOME_S if perhaps else (ends - delivery.claimed_at).total_seconds()
                        held[delivery.delivery_id] = decisions.hold(delivery, Reason.DAILY_MAXIMUM, wait_s)
            if wakes:
                waits = await device_limits.take_wakes(conn, [d for d in wakes if d.delivery_id not in held])
                for delivery in wakes:
                    if delivery.delivery_id in waits:
                        held[delivery.delivery_id] = decisions.hold(
                            delivery, Reason.WAKE_BUDGET, waits[delivery.delivery_id]
                        )
        return held

    def _most_a_day(self, delivery: ClaimedDelivery) -> int | None:
        if not delivery.content.visible or delivery.critical:
            return None
        if delivery.max_per_day is not None:
            return delivery.max_per_day
        channel = self._channels.get(delivery.app_id)
        return None if channel is None else channel.max_per_day
