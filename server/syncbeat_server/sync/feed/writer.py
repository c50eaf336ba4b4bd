"""Appends to the change feed inside a caller's transaction: checks expectations, allocates sequences, moves heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest

from syncbeat_server.errors import AccessDenied, FieldViolation, InvalidRequest, SequenceMismatch, SyncbeatError
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.feed.hot_keys import PlannedWrite, plan_change
from syncbeat_server.sync.feed.source_order import NOT_WRITTEN, SourceOrder, read_source_order
from syncbeat_server.sync.feed.value_merge import TOO_LARGE, merged_writes, write_values
from syncbeat_server.sync.model import Cursor, NewChange, ScopeKey, Signal, WriteOutcome
from syncbeat_server.sync.policy import Prior, signal_after_change
from syncbeat_server.sync.store import change_writes, scopes
from syncbeat_server.sync.store.change_writes import ChangeKey

_ALL_WRITTEN: tuple[WriteOutcome | None, ...] = ()


@dataclass(frozen=True)
class Append:
    """Holds the changes of one call: all are written, or none, but for those that their source times have superseded.

    `triggered`: the call wakes devices too.
    """

    app_id: str
    changes: tuple[NewChange, ...]
    triggered: bool = False


@dataclass(frozen=True)
class AppendResult:
    """Holds the sequence of each change, in order, and the new head of each scope.

    Attributes:
        moved: The heads of those scopes in which a change was written.
        outcomes: What became of each change with a source time, None for one without; empty: none has one.
    """

    sequences: tuple[int, ...]
    heads: tuple[Cursor, ...]
    moved: tuple[Cursor, ...]
    outcomes: tuple[WriteOutcome | None, ...] = ()


NOTHING_APPENDED = AppendResult((), (), ())
"""The result of a call without changes."""


@dataclass(frozen=True)
class AppendPlan:
    """Holds the result of each call, and the writes that make it true.

    Attributes:
        unused: Scopes created for calls that fail.
        raised: Later source times of values that stay as they are.
    """

    results: list[AppendResult | SyncbeatError]
    writes: list[PlannedWrite]
    moved: list[scopes.MovedScope]
    unused: list[ScopeKey]
    raised: Mapping[ChangeKey, datetime] = field(default_factory=dict)


async def append(
    conn: Connection,
    calls: Sequence[Append],
    prior: Callable[[str], Prior],
    *,
    create_scopes: bool,
    offload: RunInWorker = run_inline,
) -> list[AppendResult | SyncbeatError]:
    """Write the changes of several calls. A call whose expectation fails gets its error and writes nothing.

    `prior(app)` returns the prior of an app's scopes; `offload` runs merges of large values.

    Raises:
        Overloaded, DependencyDown: `offload` failed.
        InvalidRequest: PostgreSQL cannot store a value (the transaction is over then). `locate_violation` finds it.
        AccessDenied: the user is no longer a writer of a scope.
    """
    keys = [(call.app_id, change.scope) for call in calls for change in call.changes]
    locked = await scopes.lock_scopes(conn, keys, create=create_scopes)
    plan = await plan_appends(conn, calls, locked, prior, offload)
    if plan.raised:
        await change_writes.raise_source_times(conn, plan.raised)
    if plan.moved:
        await write_values(conn, plan.writes, offload)
        if await scopes.advance_heads(conn, plan.moved) < len(plan.moved):
            # The rows are locked, so nothing but the right to write them can have gone. Changes above the head would
            # be read by nobody, and block the next writer.
            raise AccessDenied("not a writer of this scope any more")
    if plan.unused:
        await scopes.drop_scopes(conn, plan.unused)
    return plan.results


async def plan_appends(
    conn: Connection,
    calls: Sequence[Append],
    locked: Mapping[ScopeKey, scopes.LockedScope],
    prior: Callable[[str], Prior],
    offload: RunInWorker,
) -> AppendPlan:
    """Allocate the sequences of calls whose scopes are locked.

    Reads what their keys have, of changes that expect a sequence or have a source time.

    Raises:
        InvalidRequest, Overloaded, DependencyDown: as `append`, of changes with a source time.
    """
    present = await _sequences_of_expected_keys(conn, calls)
    order = await _source_order(conn, calls, locked, offload)
    if order is not None:
        present |= order.sequences
    heads = {key: scope.head for key, scope in locked.items()}
    commits: dict[ScopeKey, scopes.Commits] = {}
    planned: dict[ChangeKey, PlannedWrite] = {}
    results: list[AppendResult | SyncbeatError] = []
    for number, call in enumerate(calls):
        error = _precondition_error(call, locked, present)
        if error is not None:
            results.append(error)
            continue
        outcomes = _ALL_WRITTEN if order is None else order.place_call(number, call.app_id, call.changes)
        sequences = tuple(
            present[call.app_id, change.scope, change.key]
            if outcome in NOT_WRITTEN
            else plan_change(call.app_id, change, heads, present, planned)
            for change, outcome in zip_longest(call.changes, outcomes)
        )
        names = sorted({change.scope for change in call.changes})
        moved = names if not outcomes else _written_scopes(call, outcomes)
        for scope in moved:
            made, triggered = commits.get((call.app_id, scope), (0, 0))
            commits[call.app_id, scope] = scopes.Commits(made + 1, triggered + call.triggered)
        cursors = tuple(Cursor(s, locked[call.app_id, s].epoch, heads[call.app_id, s]) for s in names)
        told = cursors if moved is names else tuple(cursor for cursor in cursors if cursor.scope in moved)
        results.append(AppendResult(sequences, cursors, told, outcomes))
    moves = [
        scopes.MovedScope(*key, heads[key], _updated_signal(locked[key], prior(key[0]), made.made), made)
        for key, made in sorted(commits.items())
    ]
    unused = [key for key, scope in locked.items() if scope.created and key not in commits]
    raised = {} if order is None else order.raised
    for key in raised.keys() & planned.keys():
        planned[key] = planned[key]._replace(source_time=raised[key])
    left = {key: source_time for key, source_time in raised.items() if key not in planned}
    return AppendPlan(results, list(planned.values()), moves, unused, left)


async def lock_scope(conn: Connection, app_id: str, scope: str) -> None:
    """Create a scope if it is missing and lock it, for those who count its members."""
    await scopes.lock_scopes(conn, [(app_id, scope)], create=True)


async def lock_in_order(conn: Connection, app_id: str, created: Collection[str], there: Collection[str] = ()) -> None:
    """Create scopes that are missing, and lock them and some that are there, before what comes after scopes (ADR 66).

    In one statement: who locks those that are there first, and creates the others later, waits in a circle with who
    creates and locks them in order.
    """
    keys = [(app_id, name) for name in (*created, *there)]
    await scopes.lock_scopes(conn, keys, create=bool(created))


async def locate_violation(
    conn: Connection, call: Append, error: InvalidRequest, offload: RunInWorker = run_inline
) -> InvalidRequest:
    """Return the error of a refused call with the change that caused it, where it can be found: the last of its key."""
    planned: dict[ChangeKey, PlannedWrite] = {}
    heads = {(call.app_id, change.scope): 0 for change in call.changes}
    last_of_key: dict[ChangeKey, int] = {}
    for index, change in enumerate(call.changes):
        plan_change(call.app_id, change, heads, {}, planned)
        last_of_key[call.app_id, change.scope, change.key] = index
    description, reason = error.violations[0].description, error.violations[0].reason
    causes = list(last_of_key.values()) if len(last_of_key) == 1 else []
    if not causes and description == TOO_LARGE:
        writes = await merged_writes(conn, list(planned.values()), offload)
        oversized = await change_writes.oversized(conn, writes)
        causes = [last_of_key[key] for place, key in enumerate(planned) if place in oversized]
    if not causes:
        return error
    return InvalidRequest(
        *(FieldViolation(f"changes[{index}].merge_patch_json", description, reason) for index in sorted(causes))
    )


def _updated_signal(scope: scopes.LockedScope, prior: Prior, commits: int) -> Signal:
    signal = scope.signal
    for _ in range(commits):
        signal = signal_after_change(signal, prior, scope.now)
    return signal


async def _sequences_of_expected_keys(conn: Connection, calls: Sequence[Append]) -> dict[ChangeKey, int]:
    keys = {
        (call.app_id, change.scope, change.key)
        for call in calls
        for change in call.changes
        if change.expected_sequence is not None
    }
    return await change_writes.key_sequences(conn, sorted(keys)) if keys else {}


async def _source_order(
    conn: Connection, calls: Sequence[Append], locked: Mapping[ScopeKey, scopes.LockedScope], offload: RunInWorker
) -> SourceOrder | None:
    if all(change.source_time is None for call in calls for change in call.changes):
        return None
    now = max((scope.now for scope in locked.values()), default=0.0)
    changes = [(call.app_id, call.changes) for call in calls]
    return await read_source_order(conn, changes, datetime.fromtimestamp(now, UTC), offload)


def _written_scopes(call: Append, outcomes: Sequence[WriteOutcome | None]) -> list[str]:
    written = {
        change.scope for change, outcome in zip(call.changes, outcomes, strict=True) if outcome not in NOT_WRITTEN
    }
    return sorted(written)


def _precondition_error(
    call: Append, locked: Mapping[ScopeKey, scopes.LockedScope], present: dict[ChangeKey, int]
) -> SyncbeatError | None:
    for change in call.changes:
        if (call.app_id, change.scope) not in locked:
            return AccessDenied("not a writer of this scope", scope=change.scope)
        expected = change.expected_sequence
        actual = present.get((call.app_id, change.scope, change.key), 0)
        if expected is not None and expected != actual:
            return SequenceMismatch(
                "the key has another sequence now", scope=change.scope, key=change.key, sequence=str(actual)
            )
    return None
