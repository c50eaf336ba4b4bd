"""Events that come together share a transaction of three statements."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from syncbeat_server.events.model import LIST_START, Effects, EventFilter, EventState, ListPlace, NotificationEffect
from syncbeat_server.events.retention import old_rows
from syncbeat_server.events.store.event_rows import list_events
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.tracing.spans import SpanKind, active, current_traceparent
from syncbeat_server.push.model import Content, Target
from syncbeat_server.storage.postgres import database as database_module
from syncbeat_server.storage.postgres.database import Database, Row
from syncbeat_server.storage.retention import Retention
from tests.events.test_publish_batches import statements
from tests.support.build import APP
from tests.support.events import change, event, make_ingest
from tests.support.fake_clock import START, FakeClock
from tests.support.otlp import idle_tracer
from tests.support.seed import rows_of, value_of

__all__ = ["statements"]

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


async def test_batch_of_events_takes_three_statements(
    database: Database, clock: FakeClock, statements: list[str]
) -> None:
    ingest = make_ingest(database, clock)
    await ingest.ingest(event("first", change(0)))
    statements.clear()

    answers = await asyncio.gather(
        *(ingest.ingest(event(f"e{n}", change(n, f"k{n}"), subject=f"s{n}")) for n in range(20)),
        *(ingest.ingest(event("first", change(0))) for _ in range(2)),
    )

    assert len(statements) == 3
    assert [one.receipt.state for one in answers] == [EventState.ACCEPTED] * 20 + [EventState.DUPLICATE] * 2


async def test_notification_of_a_batch_is_traced_to_the_call_of_its_event(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, tracer = make_ingest(database, clock), idle_tracer(monkeypatch)
    shown = NotificationEffect(Content(title="t"), (Target(user_id="alice"),))

    async def call(number: int) -> str:
        with active(tracer.start("a call", SpanKind.SERVER, {})):
            effects = Effects(notification=shown)
            answer = await ingest.ingest(event(f"e{number}", subject=f"s{number}", effects=effects))
            return f"{answer.result.notification_id} {current_traceparent()}"

    calls = await asyncio.gather(*(call(number) for number in range(3)))

    rows = await rows_of(database, "SELECT notification_id || ' ' || traceparent FROM notifications")
    assert sorted(one for (one,) in rows) == sorted(calls)


async def test_page_of_large_events_reads_no_more_than_it_answers(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = make_ingest(database, clock)
    payload = f'"{"x" * 262_142}"'
    await asyncio.gather(*(ingest.ingest(event(f"e{n}", payload_json=payload)) for n in range(12)))
    read: list[int] = []
    session = database_module._Session
    fetch = session.fetch

    async def counted(self: database_module._Session, query: str, *args: object) -> Sequence[Row]:
        rows = await fetch(self, query, *args)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(session, "fetch", counted)
    async with database.connection() as conn:
        found, pages, more = [], [], True
        place = LIST_START
        while more:
            page, more = await list_events(conn, APP, EventFilter(), place, 1_000)
            place = ListPlace(page[-1].first_seen_at, page[-1].source, page[-1].event_id)
            pages.append(len(page))
            found += [one.event_id for one in page]

    assert pages == [4, 4, 4]
    assert sorted(found) == sorted(f"e{n}" for n in range(12))
    assert read == [5, 5, 4], "of those that do not fit one is read, which tells that more follow"


async def swept(retention: Retention, clock: FakeClock) -> dict[str, int]:
    """Sweep, and let its pauses pass."""
    task = asyncio.ensure_future(retention.sweep())
    while not task.done():
        await clock.advance(0.01)
    return task.result()


async def test_old_events_and_heads_are_deleted(database: Database, clock: FakeClock) -> None:
    ingest = make_ingest(database, clock)
    for number in range(3):
        await ingest.ingest(event(f"e{number}", subject=f"s{number}"))
    deleted: list[tuple[str, int]] = []
    retention = Retention(database, old_rows(30), clock, lambda name, count: deleted.append((name, count)))

    async def sweep_after(days: float) -> list[tuple[str, int]]:
        await clock.advance(days * 86_400.0)
        deleted.clear()
        await swept(retention, clock)
        return list(deleted)

    assert await sweep_after(29.0) == []
    await ingest.ingest(event("moved", subject="s0"))
    assert await sweep_after(1.5) == [("events", 3)]
    assert await sweep_after(1.0) == [("event_order_heads", 2)]

    assert await value_of(database, "SELECT event_id FROM events") == "moved"
    assert await value_of(database, "SELECT ordering_key FROM event_order_heads") == "s0"


async def test_event_that_is_still_retried_is_kept(database: Database, clock: FakeClock) -> None:
    ingest = make_ingest(database, clock, give_up_s=40 * 86_400.0, longest_retry_s=86_400.0)
    await ingest.ingest(event("e1", change(1, expected_sequence=9)))
    await clock.advance(timedelta(days=35).total_seconds())

    assert await swept(Retention(database, old_rows(30), clock), clock) == {"events": 0, "event_order_heads": 0}
    assert await value_of(database, "SELECT first_seen_at FROM events") == START


def test_metrics_bound_the_sources_that_senders_name() -> None:
    metrics = Metrics()
    for number in range(150):
        metrics.events.ingested("default", f"source {number}", EventState.ACCEPTED)
        metrics.events.retried("default", f"source {number}", EventState.FAILED, given_up=True)

    found = {
        (sample.name, sample.labels["source"]): (sample.value, sample.labels["outcome"])
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name in ("syncbeat_events_total", "syncbeat_event_retries_total")
    }
    assert len(found) == 2 * 101
    assert found["syncbeat_events_total", "others"] == (50.0, "accepted")
    assert found["syncbeat_event_retries_total", "source 0"] == (1.0, "given_up")


def test_given_up_events_count_from_zero() -> None:
    metrics = Metrics()
    given_up = {"app": "default", "source": "billing", "outcome": "given_up"}
    metrics.events.retried("default", "billing", EventState.FAILED, given_up=False)
    assert metrics.registry.get_sample_value("syncbeat_event_retries_total", given_up) == 0.0, (
        "so that 1 is an increase"
    )
