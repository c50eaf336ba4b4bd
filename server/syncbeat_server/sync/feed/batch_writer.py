"""Appends to the change feed for several calls, each of which is answered once, with few statements (ADR 123)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.idempotency import Answer, RequestKey
from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.feed.value_merge import merged_writes, refused_values
from syncbeat_server.sync.feed.writer import Append, AppendPlan, AppendResult, plan_appends
from syncbeat_server.sync.model import ScopeKey
from syncbeat_server.sync.policy import Prior
from syncbeat_server.sync.store import publish_batches, scopes
from syncbeat_server.sync.store.change_writes import raise_source_times
from syncbeat_server.sync.store.publish_batches import FIRST_BESIDE, Beside

__all__ = ["FIRST_BESIDE", "Beside", "ScopeMissingError", "append_once", "lock_and_plan", "write_plan"]


class ScopeMissingError(Exception):
    """A scope that was to be there is not. The transaction holds locks of later ones, and has to begin again."""


async def append_once(
    conn: Connection,
    requests: Sequence[RequestKey | None],
    calls: Sequence[Append],
    prior: Callable[[str], Prior],
    describe: Callable[[int, AppendResult], str],
    *,
    create_scopes: bool,
    offload: RunInWorker = run_inline,
) -> list[Answer | SyncbeatError]:
    """Append as `append` does, in the service's name, and answer each call as `idempotency.answer_once` does.

    `describe(index, result)` returns the JSON of a call that was carried out. Without `create_scopes` all scopes must
    be there.

    Raises:
        ScopeMissingError: one is not; begin again with `create_scopes`.
        RequestIdReused, RequestInFlight: as `idempotency.answer_once`.
        InvalidRequest, Overloaded, DependencyDown: as `append`.
    """
    wanted = sorted({(call.app_id, change.scope) for call in calls for change in call.changes})
    distinct = idempotency.distinct_keys(requests)
    with idempotency.lock_timeouts_of_claims():
        count, locked = await publish_batches.claim_and_lock(conn, distinct, wanted, create=create_scopes)
    if len(locked) < len(wanted):
        raise ScopeMissingError
    claimed = await idempotency.claimed_requests(conn, requests, count)
    fresh = claimed.fresh
    plan = await plan_appends(conn, [calls[i] for i in fresh], locked, prior, offload)
    results = {
        i: result if isinstance(result, SyncbeatError) else describe(i, result)
        for i, result in zip(fresh, plan.results, strict=True)
    }
    answers = claimed.succeeded(results)
    if plan.raised:
        await raise_source_times(conn, plan.raised)
    if plan.moved or answers:
        await _write(conn, plan, answers, offload)
    await idempotency.release(conn, claimed.failed(results))
    await _drop_unused(conn, plan.unused)
    return claimed.answers(results)


async def lock_and_plan(
    conn: Connection,
    calls: Sequence[Append],
    prior: Callable[[str], Prior],
    *,
    create_scopes: bool,
    offload: RunInWorker = run_inline,
) -> AppendPlan:
    """Lock the scopes of calls, and plan their changes; `write_plan` makes it so.

    Raises:
        ScopeMissingError: a scope is not there; begin again with `create_scopes`.
        InvalidRequest, Overloaded, DependencyDown: as `append`, of changes with a source time.
    """
    wanted = {(call.app_id, change.scope) for call in calls for change in call.changes}
    locked = await scopes.lock_scopes(conn, list(wanted), create=create_scopes) if wanted else {}
    if len(locked) < len(wanted):
        raise ScopeMissingError
    return await plan_appends(conn, calls, locked, prior, offload)


async def write_plan(conn: Connection, plan: AppendPlan, beside: Beside, offload: RunInWorker) -> Row:
    """Write planned changes, and in the same statement what another feature writes beside; return its row.

    Raises:
        InvalidRequest, Overloaded, DependencyDown: as `append`.
    """
    if plan.raised:
        await raise_source_times(conn, plan.raised)
    writes = await merged_writes(conn, plan.writes, offload)
    with refused_values():
        return await publish_batches.write_beside(conn, writes, plan.moved, beside)


async def _write(
    conn: Connection, plan: AppendPlan, answers: Sequence[tuple[RequestKey, str]], offload: RunInWorker
) -> None:
    writes = await merged_writes(conn, plan.writes, offload)
    with refused_values():
        await publish_batches.write_and_answer(conn, writes, plan.moved, answers)


async def _drop_unused(conn: Connection, unused: Sequence[ScopeKey]) -> None:
    if unused:
        await scopes.drop_scopes(conn, unused)
