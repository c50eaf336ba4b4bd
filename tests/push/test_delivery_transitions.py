"""The transition table of deliveries is what the SQL does: each row is drawn, and no statement does anything else."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest

from syncbeat_server.directory.model import Preferences
from syncbeat_server.push.accept import close_windows
from syncbeat_server.push.model import ClaimedDelivery, DeliveryFilter, DeliveryState, NewNotification, Reason
from syncbeat_server.push.policy.resend import ResendRule, decide_resend
from syncbeat_server.push.policy.transitions import TRANSITIONS, Attempts, Carried, Event, Guard, Transition, update
from syncbeat_server.push.store import alerts, lifecycle, queue, resends, wake_budgets
from syncbeat_server.push.store.resends import ResendStep
from syncbeat_server.storage.postgres.database import Connection, Database
from tests.push.test_alerts import alert
from tests.support import claimed_delivery
from tests.support.build import APP, make_directory
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_device, add_members, message, wake

pytestmark = pytest.mark.store

LEASE = str(uuid.UUID(int=7))
IN_FLIGHT = DeliveryState.IN_FLIGHT
ATTEMPTS_BEFORE = 3

RECORD_CHANGES = (
    """CREATE TABLE recorded (number bigserial, delivery_id uuid, state_before text, state_after text,
                              reason_before text, reason_after text, attempts_before int, attempts_after int,
                              called_back text, resends int)""",
    """CREATE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
       BEGIN
           IF TG_OP = 'INSERT' THEN
               INSERT INTO recorded (delivery_id, state_after, reason_after, attempts_before, attempts_after)
               VALUES (NEW.delivery_id, NEW.state, NEW.reason, 0, NEW.attempts);
           ELSIF (NEW.state, NEW.reason, NEW.attempts) IS DISTINCT FROM (OLD.state, OLD.reason, OLD.attempts) THEN
               INSERT INTO recorded (delivery_id, state_before, state_after, reason_before, reason_after,
                                    attempts_before, attempts_after, called_back, resends)
               VALUES (NEW.delivery_id, OLD.state, NEW.state, OLD.reason, NEW.reason, OLD.attempts, NEW.attempts,
                       OLD.called_back, OLD.resends);
           END IF;
           RETURN NULL;
       END $$""",
    """CREATE TRIGGER record_change AFTER INSERT OR UPDATE ON deliveries
       FOR EACH ROW EXECUTE FUNCTION record_change()""",
)


@dataclass(frozen=True)
class Change:
    """Records what a statement did to one delivery, as the trigger saw it."""

    delivery_id: str
    state_before: str | None
    state_after: str
    reason_before: str | None
    reason_after: str
    attempts_before: int
    attempts_after: int
    called_back: str | None
    resends: int | None

    def is_of(self, row: Transition) -> bool:
        """Return whether the row allows it."""
        before = {*row.before} if row.before else {None}
        if self.state_before not in before or self.state_after != row.after:
            return False
        match row.reasons:
            case Carried.SAME:
                same_reason = self.reason_after == self.reason_before
            case Carried.OF_CANCEL:
                same_reason = self.reason_after == self.called_back
            case reasons:
                same_reason = self.reason_after in reasons
        guards = {
            Guard.ALWAYS: True,
            Guard.SENT_BEFORE: bool(self.resends),
            Guard.CANCELLED_MEANWHILE: self.called_back is not None,
            Guard.ATTEMPTED: self.attempts_before > 0,
        }
        counted = 0 if row.attempts is Attempts.RESET else self.attempts_before + (row.attempts.value or 0)
        return same_reason and guards[row.guard] and self.attempts_after == counted


class Stage:
    """Deliveries that are put into any state, and the changes of them that a trigger records."""

    def __init__(self, database: Database, admin: asyncpg.Connection, clock: FakeClock) -> None:
        self.database = database
        self.admin = admin
        self.clock = clock

    async def place(
        self,
        state: DeliveryState,
        *,
        notification: NewNotification | None = None,
        reason: str = "",
        called_back: str | None = None,
        resends: int = 0,
    ) -> ClaimedDelivery:
        """Accept a notification for ann's phone, put its delivery into a state, and return it as its worker sees it."""
        sent = notification or message()
        await accept(self.database, sent)
        row = await self.admin.fetchrow(
            """UPDATE deliveries SET state = $2, reason = $3, called_back = $4, resends = $5, attempts = $6,
                   lease_token = CASE WHEN $7 THEN $8::uuid END,
                   lease_until = CASE WHEN $7 THEN syncbeat_now() + interval '30 s' END,
                   sent_at = CASE WHEN $9 THEN syncbeat_now() END, answer_by = CASE WHEN $9 THEN syncbeat_now() END
               WHERE notification_id = $1::uuid RETURNING delivery_id::text AS delivery_id, scope""",
            *(sent.notification_id, state.value, reason, called_back, resends),
            *(0 if state is DeliveryState.SCHEDULED else ATTEMPTS_BEFORE, state is IN_FLIGHT, LEASE),
            state in (DeliveryState.SENT, DeliveryState.RECEIVED, DeliveryState.OPENED) or resends > 0,
        )
        assert row is not None
        await self.admin.execute("TRUNCATE recorded")
        return replace(
            claimed_delivery.MESSAGE,
            delivery_id=row["delivery_id"],
            notification_id=sent.notification_id,
            lease_token=LEASE,
            user_id="ann",
            kind=sent.kind,
            scope=row["scope"],
            resends=resends,
        )

    async def run(self, work: Callable[[Connection], Awaitable[object]]) -> None:
        async with self.database.transaction() as conn:
            await work(conn)

    async def changes(self) -> list[Change]:
        rows = await self.admin.fetch("SELECT * FROM recorded ORDER BY number")
        return [Change(str(row["delivery_id"]), *list(row.values())[2:]) for row in rows]


@pytest.fixture
async def stage(database: Database, database_urls: DatabaseUrls, clock: FakeClock) -> AsyncIterator[Stage]:
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    await add_members(database, "a", "ann")
    admin = await asyncpg.connect(database_urls.admin_url)
    try:
        for statement in RECORD_CHANGES:
            await admin.execute(statement)
        yield Stage(database, admin, clock)
    finally:
        await admin.close()


@dataclass(frozen=True)
class Case:
    """One state before and one reason of a row, by one of its statements."""

    row: Transition
    statement: str
    before: DeliveryState | None
    reason: Reason | None

    @property
    def of_alert(self) -> bool:
        return self.statement.startswith("alerts.") or self.statement == "dedupe_windows.close_alerts"

    def __str__(self) -> str:
        parts = (self.statement, self.row.event.name, self.row.guard.name, self.before or "new", self.reason or "")
        return "-".join(part for part in parts if part)


def cases() -> Iterator[Case]:
    for row in TRANSITIONS:
        reasons = [None] if isinstance(row.reasons, Carried) else row.reasons
        for statement in row.statements:
            for before in row.before or (None,):
                yield from (Case(row, statement, before, reason) for reason in reasons)


async def draw_insert(stage: Stage, case: Case) -> None:
    """Accept what comes to the case; what opens the window before is not recorded."""
    made = alert("one") if case.of_alert else message()
    match case.row.event, case.reason:
        case Event.SUPPRESS, Reason.NO_TOKEN:
            await add_device(stage.database, "ann", token="")
        case Event.SUPPRESS, _:
            await make_directory(stage.database).set_preferences(
                APP, "ann", Preferences(muted_types=("news",)), by_user=False
            )
            made = replace(made, type="news")
        case Event.DEDUPE, Reason.DUPLICATE:
            made = message(dedupe_key="k")
            await accept(stage.database, message(dedupe_key="k"))
        case Event.DEDUPE, _:
            made = wake(3)
            await accept(stage.database, wake(1), wake(2))
        case Event.TRAIL, _:
            first, made = (alert("first"), alert("second")) if case.of_alert else (wake(1), wake(2))
            await accept(stage.database, first)
        case Event.ACCEPT_CANCELLED, _:
            made = replace(made, called_off=True, dedupe_key="")
        case _:
            pass
    await stage.admin.execute("TRUNCATE recorded")
    await accept(stage.database, made)


async def draw_window(stage: Stage, case: Case) -> None:
    """Let deliveries trail a window, claim them when it ends, and close it."""
    for number in (1, 2, 3) if case.row.event is Event.SUPERSEDE else (1, 2):
        await accept(stage.database, alert(f"number {number}") if case.of_alert else wake(number))
    await stage.admin.execute("UPDATE deliveries SET due_at = 'infinity' WHERE reason = ''")
    await stage.clock.advance(61)
    async with stage.database.transaction() as conn:
        found = await queue.claim(conn, LEASE, 30.0, {APP: 10})
    await stage.admin.execute("TRUNCATE recorded")
    await stage.run(lambda conn: close_windows(conn, LEASE, found.trailing))


async def draw_merge(stage: Stage, case: Case) -> None:
    """Hold two of which the later one stands for both."""
    pair = [wake(1, window=0.0), wake(2, window=0.0)]
    if case.of_alert:
        pair = [replace(alert(text), dedupe_window_s=0.0) for text in ("one", "two")]
    reason = Reason.QUIET_HOURS if case.of_alert else Reason.WAKE_BUDGET
    held = [await stage.place(DeliveryState.HELD, notification=one, reason=reason) for one in pair]
    merge = alerts.merge_held if case.of_alert else wake_budgets.merge_held
    await stage.run(lambda conn: merge(conn, held))


async def draw_finish(stage: Stage, case: Case) -> None:
    if case.row.event is Event.END_CANCELLED:
        placed = await stage.place(IN_FLIGHT, called_back=Reason.DEVICE_GONE)
        given_back = case.row.attempts is Attempts.GIVEN_BACK
        result = update(placed, Event.POSTPONE if given_back else Event.RETRY, Reason.UNAVAILABLE)
    else:
        placed = await stage.place(IN_FLIGHT, notification=wake(1), resends=int(case.row.event is Event.KEEP_SENT))
        result = update(placed, case.row.event, case.reason)
    await stage.run(lambda conn: queue.finish(conn, [result]))


async def draw_lease_end(stage: Stage, case: Case) -> None:
    cancelled = case.row.guard is Guard.CANCELLED_MEANWHILE
    await stage.place(
        IN_FLIGHT,
        notification=wake(1),
        reason=Reason.UNAVAILABLE,
        called_back=Reason.USER_DISABLED if cancelled else None,
        resends=int(case.row.guard is Guard.SENT_BEFORE),
    )
    if case.row.event is Event.RELEASE:
        await stage.run(lambda conn: queue.release(conn, [LEASE]))
    else:
        await stage.clock.advance(31)
        await stage.run(lambda conn: queue.rescue(conn, 10))


async def draw_placed(stage: Stage, case: Case) -> None:
    """Put a delivery into the state before, and run the statement."""
    assert case.before is not None
    placed = await stage.place(case.before, notification=wake(1) if case.row.event is Event.RESEND else None)
    event, reason = case.row.event, case.reason or Reason.NONE
    runs: dict[Event, Callable[[Connection], Awaitable[object]]] = {
        Event.CLAIM: lambda conn: queue.claim(conn, LEASE, 30.0, {APP: 10}),
        Event.CANCEL: lambda conn: lifecycle.cancel(conn, APP, placed.notification_id),
        Event.WITHDRAW: lambda conn: lifecycle.cancel_waiting(conn, APP, "ann", None, reason),
        Event.RECEIVE: lambda conn: lifecycle.acknowledge(conn, APP, placed.delivery_id, opened=False),
        Event.OPEN: lambda conn: lifecycle.acknowledge(conn, APP, placed.delivery_id, opened=True),
        Event.REDRIVE: lambda conn: lifecycle.redrive(conn, APP, DeliveryFilter()),
        Event.RESEND: resend_unanswered,
    }
    await stage.run(runs[event])


async def resend_unanswered(conn: Connection) -> None:
    page = await resends.lock_unanswered(conn, 10)
    decided = [(one, decide_resend(one, ResendRule())) for one in page.wakes]
    await resends.settle(conn, LEASE, 30.0, [ResendStep(one, found.resend, None) for one, found in decided])


async def each(works: Iterator[Awaitable[object]]) -> None:
    for work in works:
        await work


def finish_all(event: Event, reason: Reason) -> Callable[[Connection, list[ClaimedDelivery]], Awaitable[object]]:
    return lambda conn, placed: queue.finish(conn, [update(one, event, reason) for one in placed])


DRAWN: dict[str, Callable[[Stage, Case], Awaitable[None]]] = {
    "notifications.insert_deliveries": draw_insert,
    "alerts.insert": draw_insert,
    "queue.claim": draw_placed,
    "dedupe_windows.close_trailed": draw_window,
    "dedupe_windows.close_alerts": draw_window,
    "lifecycle.cancel": draw_placed,
    "lifecycle.cancel_waiting": draw_placed,
    "wake_budgets.merge_held": draw_merge,
    "alerts.merge_held": draw_merge,
    "queue.finish": draw_finish,
    "queue.rescue": draw_lease_end,
    "queue.release": draw_lease_end,
    "resends.settle": draw_placed,
    "lifecycle.acknowledge": draw_placed,
    "lifecycle.redrive": draw_placed,
}


@pytest.mark.parametrize("case", list(cases()), ids=str)
async def test_delivery_transition_of_the_table_is_what_its_statement_does(stage: Stage, case: Case) -> None:
    await DRAWN[case.statement](stage, case)
    done = await stage.changes()
    found = [change for change in done if change.is_of(case.row)]
    assert len(found) == 1, done
    if case.reason is not None:
        assert found[0].reason_after == case.reason
    assert found[0].state_before == case.before


# Every statement, to be run on deliveries of every state at once; the first word names it as the table does.
STATEMENTS: dict[str, Callable[[Connection, list[ClaimedDelivery]], Awaitable[object]]] = {
    "queue.claim": lambda conn, placed: queue.claim(conn, str(uuid.uuid4()), 30.0, {APP: 200}),
    "queue.extend": lambda conn, placed: queue.extend(conn, [LEASE], 60.0),
    "queue.rescue": lambda conn, placed: queue.rescue(conn, 200),
    "queue.release": lambda conn, placed: queue.release(conn, [LEASE]),
    "resends.settle": lambda conn, placed: resend_unanswered(conn),
    "lifecycle.cancel": lambda conn, placed: each(lifecycle.cancel(conn, APP, one.notification_id) for one in placed),
    "lifecycle.cancel_waiting of a user": lambda conn, placed: lifecycle.cancel_waiting(
        conn, APP, "ann", None, Reason.USER_DISABLED
    ),
    "lifecycle.cancel_waiting of a device": lambda conn, placed: lifecycle.cancel_waiting(
        conn, APP, "ann", "phone", Reason.DEVICE_GONE
    ),
    "lifecycle.acknowledge received": lambda conn, placed: each(
        lifecycle.acknowledge(conn, APP, one.delivery_id, opened=False) for one in placed
    ),
    "lifecycle.acknowledge opened": lambda conn, placed: each(
        lifecycle.acknowledge(conn, APP, one.delivery_id, opened=True) for one in placed
    ),
    "lifecycle.redrive": lambda conn, placed: lifecycle.redrive(conn, APP, DeliveryFilter()),
    "wake_budgets.merge_held": wake_budgets.merge_held,
    "alerts.merge_held": alerts.merge_held,
    "dedupe_windows.close": lambda conn, placed: close_windows(
        conn, LEASE, [(one.app_id, one.delivery_id) for one in placed]
    ),
    **{
        f"queue.finish {row.event.name} {reason}".strip(): finish_all(row.event, reason)
        for row in TRANSITIONS
        if "queue.finish" in row.statements and row.guard is Guard.ALWAYS and not isinstance(row.reasons, Carried)
        for reason in row.reasons
    },
}


# A finish asks for the lease token only.
@pytest.mark.parametrize(
    ("statement", "lease"),
    [
        (name, lease)
        for name in STATEMENTS
        for lease in ("held", "expired")
        if lease == "held" or not name.startswith("queue.finish")
    ],
)
async def test_delivery_statements_make_no_transition_that_is_not_in_the_table(
    stage: Stage, statement: str, lease: str
) -> None:
    placed: list[ClaimedDelivery] = []
    for state in DeliveryState:
        kinds: list[dict[str, Any]] = [{}, {"notification": wake(len(placed) + 1, window=0)}]
        if state is IN_FLIGHT:
            kinds += [{"called_back": Reason.NONE}, {"called_back": Reason.USER_DISABLED}]
            kinds.append({"notification": wake(99, window=0), "resends": 1})
        if state is DeliveryState.HELD:
            kinds += [{"notification": wake(n, window=0), "reason": Reason.WAKE_BUDGET} for n in (50, 51)]
        placed += [await stage.place(state, **kind) for kind in kinds]
    if lease == "expired":
        await stage.clock.advance(31)
    await stage.run(lambda conn: STATEMENTS[statement](conn, placed))
    name = statement.partition(" ")[0]
    rows = [row for row in TRANSITIONS if any(one.startswith(name) for one in row.statements)]
    foreign = [change for change in await stage.changes() if not any(change.is_of(row) for row in rows)]
    assert foreign == []


def test_delivery_transitions_have_each_statement_drawn() -> None:
    assert {statement for row in TRANSITIONS for statement in row.statements} == DRAWN.keys()
