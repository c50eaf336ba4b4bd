"""Ingests events that came together in one transaction of few statements, if nothing is in their way (ADR 160)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from syncbeat_server.directory.service import existing_scopes
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.events.batch_plan import Outcome, RunAloneError, plan_batch
from syncbeat_server.events.effects import EffectRules, Notices, notification_of
from syncbeat_server.events.known_scopes import KnownScopes
from syncbeat_server.events.model import NO_EFFECTS, EffectResult, IncomingEvent
from syncbeat_server.events.policy.retries import is_failure
from syncbeat_server.events.store.event_batches import BatchWrites, RacedError, look_up, write_batch
from syncbeat_server.push.accept import accept, new_notification_id
from syncbeat_server.push.model import NewNotification
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.storage.postgres.driver_errors import Conflict, LockTimeout
from syncbeat_server.sync.feed.batch_writer import ScopeMissingError, lock_and_plan, write_plan
from syncbeat_server.sync.feed.writer import NOTHING_APPENDED, Append, AppendPlan, AppendResult
from syncbeat_server.sync.model import ScopeKey

_TRIES = 4
_HEAD_LOCK_S = 0.1
_LOCK_S = 1.0
"""Seconds that a batch waits for each lock, since all of its events wait with it: at first, and once it leaves events
alone whose heads are held. Then it waits for scopes and twins, in line with the batches of other processes: were these
waits short, a busy scope would send whole batches to run one by one."""


class _UnfitError(Exception):
    """Effects of the events at these places cannot be carried out, or the head of their order is held by another
    transaction: the batch begins again without them."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__()
        self.places = frozenset(places)


class BatchIngest:
    """Ingests events whose effects are changes and notifications, which need no savepoint as long as none fails."""

    def __init__(self, database: Database, rules: EffectRules, give_up_s: float) -> None:
        self._database = database
        self._rules = rules
        self._give_up_s = give_up_s
        self._known_scopes = KnownScopes()

    async def ingest(self, events: Sequence[IncomingEvent]) -> tuple[list[Outcome], list[Notices]]:
        """Return the answer to each event, and what is to be told of those whose effects were carried out.

        An event that stands in the way of the others, or whose effects fail, is left alone (`RunAloneError`).
        """
        outcomes: dict[int, Outcome] = {}
        places, notices = list(range(len(events))), list[Notices]()
        skip_held = False
        for _ in range(_TRIES):
            batch = [events[place] for place in places]
            try:
                answers, notices = await self._ingest_once(batch, skip_held=skip_held)
            except RacedError:
                continue
            except _UnfitError as error:
                outcomes |= {places[unfit]: RunAloneError() for unfit in error.places}
                places = [place for at, place in enumerate(places) if at not in error.places]
                continue
            except LockTimeout:
                if skip_held:
                    break  # a scope is held, or the twin of one of them takes its time: only that one should wait
                skip_held = True
                continue
            except Conflict:
                break
            except SyncbeatError as error:
                if not is_failure(error):
                    raise
                break  # PostgreSQL refused a value, and which one only a savepoint tells
            outcomes |= dict(zip(places, answers, strict=True))
            break
        return [outcomes.get(place) or RunAloneError() for place in range(len(events))], notices

    async def _ingest_once(
        self, events: Sequence[IncomingEvent], *, skip_held: bool
    ) -> tuple[list[Outcome], list[Notices]]:
        if not events:
            return [], []
        keys = {(event.app_id, change.scope) for event in events for change in event.effects.changes}
        try:
            return await self._write(events, create_scopes=not self._known_scopes.include(keys), skip_held=skip_held)
        except ScopeMissingError:
            self._known_scopes.forget()
            return await self._write(events, create_scopes=True, skip_held=skip_held)

    async def _write(
        self, events: Sequence[IncomingEvent], *, create_scopes: bool, skip_held: bool
    ) -> tuple[list[Outcome], list[Notices]]:
        keys = sorted({event.key for event in events})
        orders = sorted({event.order for event in events if event.order is not None})
        async with self._database.transaction(lock_s=_LOCK_S if skip_held else _HEAD_LOCK_S) as conn:
            found = await look_up(conn, keys, orders, skip_held=skip_held)
            if found.held:
                raise _UnfitError([place for place, event in enumerate(events) if event.order in found.held])
            plan = plan_batch(events, found)
            places = [place for place in plan.accepted if events[place].effects.changes]
            appends = await self._plan_appends(conn, events, places, create_scopes=create_scopes)
            await _require_scopes(conn, events, plan.accepted)
            appended = {
                place: one for place, one in zip(places, appends.results, strict=True) if isinstance(one, AppendResult)
            }
            results, accepted = self._results(events, plan.accepted, appended)
            writes = BatchWrites(plan.records(results), plan.moves(), plan.repetitions)
            if appends.moved or appends.raised:
                beside = writes.beside_changes(self._give_up_s)
                writes.check(await write_plan(conn, appends, beside, self._rules.offload))
            else:
                await write_batch(conn, writes, self._give_up_s)
            await accept(conn, accepted)
        self._known_scopes.add((events[at].app_id, head.scope) for at, one in appended.items() for head in one.heads)
        notices = [_notices(events[at], result, appended.get(at, NOTHING_APPENDED)) for at, result in results.items()]
        return plan.outcomes(results), notices

    async def _plan_appends(
        self, conn: Connection, events: Sequence[IncomingEvent], places: Sequence[int], *, create_scopes: bool
    ) -> AppendPlan:
        calls = [
            Append(events[place].app_id, events[place].effects.changes, events[place].effects.trigger is not None)
            for place in places
        ]
        plan = await lock_and_plan(
            conn, calls, self._rules.prior, create_scopes=create_scopes, offload=self._rules.offload
        )
        unfit = [place for place, one in zip(places, plan.results, strict=True) if isinstance(one, SyncbeatError)]
        if unfit:
            raise _UnfitError(unfit)
        return plan

    def _results(
        self, events: Sequence[IncomingEvent], accepted: Sequence[int], appended: Mapping[int, AppendResult]
    ) -> tuple[dict[int, EffectResult], list[NewNotification]]:
        """Return the result of each event with effects, and the notifications that follow from all of them."""
        now = self._rules.clock.now()
        results: dict[int, EffectResult] = {}
        notifications: list[NewNotification] = []
        for place in accepted:
            event, trigger_id, notification_id = events[place], "", ""
            done = appended.get(place, NOTHING_APPENDED)
            if event.effects.trigger is not None and done.moved:
                trigger_id = new_notification_id(now)
                wake_up = event.effects.trigger.wake_up(event.app_id, event.caller, done.moved, trigger_id)
                notifications.append(wake_up)
            if event.effects.notification is not None:
                notification_id = new_notification_id(now)
                wanted, parent = event.effects.notification, event.traceparent
                notifications.append(notification_of(event.app_id, event.caller, wanted, notification_id, parent))
            if event.effects != NO_EFFECTS:
                results[place] = EffectResult(done.heads, trigger_id, notification_id)
        return results, notifications


async def _require_scopes(conn: Connection, events: Sequence[IncomingEvent], places: Sequence[int]) -> None:
    """Raise _UnfitError for events that notify a scope which is not there, nor made by their own changes."""
    wanted: dict[int, set[ScopeKey]] = {}
    for place in places:
        event = events[place]
        if event.effects.notification is not None:
            own = {change.scope for change in event.effects.changes}
            names = {target.scope for target in event.effects.notification.targets if target.scope is not None}
            wanted[place] = {(event.app_id, name) for name in names - own}
    asked = set[ScopeKey]().union(*wanted.values())
    known = await existing_scopes(conn, asked)
    unfit = [place for place, keys in wanted.items() if not keys <= known]
    if unfit:
        raise _UnfitError(unfit)


def _notices(event: IncomingEvent, result: EffectResult, appended: AppendResult) -> Notices:
    deliveries = bool(result.trigger_notification_id or result.notification_id)
    return Notices(event.app_id, heads=appended.moved, deliveries=deliveries)
