"""A request is carried out once and answered every time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from syncbeat_server.errors import NotFound, RequestIdReused, RequestInFlight, SyncbeatError
from syncbeat_server.storage.idempotency import Answer, RequestKey, answer_once, forget_old
from syncbeat_server.storage.postgres.database import Connection, Database
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import rows_of, value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

WAITING = """SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'"""


def key(
    request_id: str = "r", content: bytes = b"c", *, app: str = "default", caller: str = "a", rpc: str = "R"
) -> RequestKey:
    return RequestKey(app, caller, rpc, request_id, content)


class Work:
    """Counts what it carries out; the indexes in `faulty` fail."""

    def __init__(self, *faulty: int) -> None:
        self.faulty = faulty
        self.carried_out: list[int] = []

    async def __call__(self, indexes: Sequence[int]) -> list[str | SyncbeatError]:
        self.carried_out += indexes
        return [NotFound("no") if i in self.faulty else json.dumps({"index": i}) for i in indexes]


async def answer(
    database: Database, *requests: RequestKey | None, work: Work | None = None
) -> list[Answer | SyncbeatError]:
    async with database.transaction() as conn:
        return await answer_once(conn, requests, work or Work())


def index_of(given: Answer | SyncbeatError) -> tuple[int, bool]:
    assert isinstance(given, Answer), given
    return json.loads(given.text)["index"], given.replayed


def test_idempotency_key_is_absent_without_request_id() -> None:
    assert RequestKey.of("app", "caller", "R", "", b"c") is None
    assert RequestKey.of("app", "caller", "R", "r", b"c") == key(app="app", caller="caller")


async def test_idempotency_replay_returns_the_first_response(database: Database) -> None:
    work = Work()
    (first,) = await answer(database, key(), work=work)
    other, again, unkeyed = await answer(database, key("other"), key(), None, work=work)
    assert index_of(first) == (0, False)
    assert index_of(again) == (0, True)
    assert (index_of(other), index_of(unkeyed)) == ((0, False), (2, False))
    assert work.carried_out == [0, 0, 2]


async def test_idempotency_of_duplicates_in_a_batch(database: Database) -> None:
    work = Work()
    answers = await answer(database, key("x"), key(), key(), None, key(), work=work)
    assert [index_of(a) for a in answers] == [(0, False), (1, False), (1, True), (3, False), (1, True)]
    assert work.carried_out == [0, 1, 3]


@pytest.mark.parametrize("changed", [key(app="b"), key(caller="b"), key(rpc="S"), key("s")])
async def test_idempotency_key_is_app_caller_rpc_and_request_id(database: Database, changed: RequestKey) -> None:
    await answer(database, key())
    (given,) = await answer(database, changed)
    assert index_of(given) == (0, False)


async def test_idempotency_conflict_before_and_in_the_same_batch(database: Database) -> None:
    work = Work()
    with pytest.raises(RequestIdReused) as raised:
        await answer(database, key("x"), key(), key(content=b"d"), work=work)
    assert raised.value.reason == "REQUEST_ID_REUSED"
    assert work.carried_out == []
    await answer(database, key())
    with pytest.raises(RequestIdReused):
        await answer(database, key(content=b"d"))


async def test_idempotency_failed_call_frees_its_request_id(database: Database) -> None:
    failed, twin, good = await answer(database, key(), key(), key("x"), work=Work(0))
    assert isinstance(failed, NotFound)
    assert twin is failed
    assert index_of(good) == (2, False)
    assert await rows_of(database, "SELECT request_id FROM request_records") == [("x",)]
    (retried,) = await answer(database, key(content=b"repaired"))
    assert index_of(retried) == (0, False)


async def test_idempotency_rollback_forgets_the_request(database: Database) -> None:
    async def failing_later() -> None:
        async with database.transaction() as conn:
            await answer_once(conn, [key()], Work())
            raise NotFound("later in the same transaction")

    with pytest.raises(NotFound):
        await failing_later()
    assert await value_of(database, "SELECT count(*) FROM request_records") == 0


async def race(database: Database, *, first_fails: bool) -> tuple[Answer | SyncbeatError, Work]:
    """Answer a request while its twin is at work in another transaction."""
    first_work, second_work = Work(), Work()
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with database.transaction() as conn:
            await answer_once(conn, [key()], first_work)
            at_work.set()
            await go_on.wait()
            if first_fails:
                raise NotFound("no")

    running = asyncio.ensure_future(first())
    await at_work.wait()
    second = asyncio.ensure_future(answer(database, key(), work=second_work))
    await wait_until(lambda: value_of(database, WAITING), what="the twin waits")
    assert second_work.carried_out == []
    go_on.set()
    await asyncio.wait([running])
    assert (running.exception() is not None) == first_fails
    (given,) = await second
    return given, second_work


async def test_idempotency_waits_for_a_duplicate_in_flight(database: Database) -> None:
    given, work = await race(database, first_fails=False)
    assert index_of(given) == (0, True)
    assert work.carried_out == []


async def test_idempotency_duplicate_takes_over_when_the_first_fails(database: Database) -> None:
    given, work = await race(database, first_fails=True)
    assert index_of(given) == (0, False)
    assert work.carried_out == [0]


async def test_idempotency_wait_for_a_duplicate_times_out(database: Database) -> None:
    async def impatient(conn: Connection) -> None:
        await conn.execute("SET LOCAL lock_timeout = 50")
        await answer_once(conn, [key("x"), key()], Work())

    async with database.transaction() as holder:
        await answer_once(holder, [key()], Work())
        with pytest.raises(RequestInFlight):
            async with database.transaction() as conn:
                await impatient(conn)
    assert await rows_of(database, "SELECT request_id FROM request_records") == [("r",)]


async def test_idempotency_records_are_kept_for_thirty_days(database: Database, clock: FakeClock) -> None:
    await answer(database, *(key(f"old-{n}") for n in range(3)))
    await clock.advance(86_400)
    await answer(database, key("young"))
    await clock.advance(29 * 86_400)
    async with database.connection() as conn:
        assert (await forget_old(conn, 10)).gone == 0
    await clock.advance(1)
    async with database.connection() as conn:
        assert (await forget_old(conn, 2)).gone == 2
        assert (await forget_old(conn, 10)).gone == 1
    assert await rows_of(database, "SELECT request_id FROM request_records") == [("young",)]
