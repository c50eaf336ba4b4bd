"""Append to the change feed inside a caller's transaction: sequences, expectations, merges, heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from syncbeat_server.errors import (
    AccessDenied,
    FieldViolation,
    InvalidRequest,
    SequenceMismatch,
    SyncbeatError,
)
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline
from syncbeat_server.storage.postgres.database import Connection, StatementRejected
from syncbeat_server.sync.content.merge_patch import apply, compose_each
from syncbeat_server.sync.model import Cursor, NewChange, Signal
from syncbeat_server.sync.policy import Prior, signal_after_change
from syncbeat_server.sync.store import changes as changes_store
from syncbeat_server.sync.store import scopes

# SQLSTATE classes of a value that cannot be held: data exception, program limit exceeded.
_UNFIT = ("22", "54")
_SIZE_CONSTRAINTS = ("changes_value_size", "changes_value_octets")
_TOO_LARGE = "the merged value would pass 1 MiB"
_UNSTORABLE = "the value cannot be stored as JSON"
# Composing more than this here would keep everybody else waiting for longer than a millisecond.
_COMPOSED_ASIDE_BYTES = 16_384
# PostgreSQL takes 50 us for each object that it merges, a hundred times as long as Python: with the 40,000 that a patch
# may have, all the time that a statement may take.
_MERGED_BY_DATABASE = 1_000
# And it passes over the value once more for each level that a patch goes down: 0.25 us an octet. What comes to more
# than some 0.06 s is merged here; a few levels are not worth another statement.
_PASSED_UNSEEN = 4
_MOST_PASSED_OCTETS = 262_144


@dataclass(frozen=True)
class Append:
    """The changes of one call: all are written, or none. `triggered`: it wakes devices too."""

    app_id: str
    changes: tuple[NewChange, ...]
    triggered: bool = False


@dataclass(frozen=True)
class Appended:
    """The sequence each change got, in order, and the new head of each scope."""

    sequences: tuple[int, ...]
    heads: tuple[Cursor, ...]


async def append(
    conn: Connection,
    calls: Sequence[Append],
    prior: Callable[[str], Prior],
    *,
    create_scopes: bool,
    aside: RunInWorker = run_inline,
) -> list[Appended | SyncbeatError]:
    """Write the changes of several calls. A call whose expectation fails gets its error and writes nothing.

    `prior` knows what each app's scopes have in common; `aside` runs merges of large values.

    Raises:
        Overloaded, DependencyDown: `aside` could not.
        InvalidRequest: PostgreSQL cannot hold a value (the transaction is over then). `blame` says which.
        AccessDenied: the user is a writer of a scope no longer.
    """
    keys = [(call.app_id, change.scope) for call in calls for change in call.changes]
    locked = await scopes.lock_scopes(conn, keys, create=create_scopes)
    present = await _expected_keys(conn, calls)
    heads = {key: scope.head for key, scope in locked.items()}
    commits: dict[tuple[str, str], scopes.Commits] = {}
    planned: dict[tuple[str, str, str], _Planned] = {}
    results: list[Appended | SyncbeatError] = []
    for call in calls:
        fault = _fault(call, locked, present)
        if fault is not None:
            results.append(fault)
            continue
        sequences = tuple(_plan(call.app_id, change, heads, present, planned) for change in call.changes)
        names = sorted({change.scope for change in call.changes})
        for scope in names:
            made, triggered = commits.get((call.app_id, scope), (0, 0))
            commits[call.app_id, scope] = scopes.Commits(made + 1, triggered + call.triggered)
        ends = tuple(Cursor(s, locked[call.app_id, s].epoch, heads[call.app_id, s]) for s in names)
        results.append(Appended(sequences, ends))
    if commits:
        await _write(conn, list(planned.values()), aside)
        moved = [
            scopes.MovedScope(*key, heads[key], _signal(locked[key], prior(key[0]), made.made), made)
            for key, made in sorted(commits.items())
        ]
        if await scopes.advance_heads(conn, moved) < len(moved):
            # The rows are locked, so nothing but the right to write them can have gone. Changes above the head would be
            # read by nobody, and in the way of whoever comes next.
            raise AccessDenied("not a writer of this scope any more")
    unused = [key for key, scope in locked.items() if scope.created and key not in commits]
    if unused:
        await scopes.drop_scopes(conn, unused)
    return results


def _signal(scope: scopes.LockedScope, prior: Prior, commits: int) -> Signal:
    signal = scope.signal
    for _ in range(commits):
        signal = signal_after_change(signal, prior, scope.now)
    return signal


async def _expected_keys(conn: Connection, calls: Sequence[Append]) -> dict[tuple[str, str, str], int]:
    keys = {
        (call.app_id, change.scope, change.key)
        for call in calls
        for change in call.changes
        if change.expected_sequence is not None
    }
    return await changes_store.key_sequences(conn, sorted(keys)) if keys else {}


def _fault(
    call: Append, locked: dict[tuple[str, str], scopes.LockedScope], present: dict[tuple[str, str, str], int]
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


class _Planned(NamedTuple):
    """What is to become of one key: the patches of its changes in their order, None for a deletion."""

    app_id: str
    scope: str
    key: str
    patches: list[str | None]
    sequences: list[int]


def _plan(
    app_id: str,
    change: NewChange,
    heads: dict[tuple[str, str], int],
    present: dict[tuple[str, str, str], int],
    planned: dict[tuple[str, str, str], _Planned],
) -> int:
    sequence = heads[app_id, change.scope] = heads[app_id, change.scope] + 1
    key = (app_id, change.scope, change.key)
    present[key] = sequence
    plan = planned.get(key)
    if plan is None:
        plan = planned[key] = _Planned(*key, [], [])
    plan.patches.append(None if change.deleted else change.merge_patch_json)
    plan.sequences.append(sequence)
    return sequence


async def _write(conn: Connection, planned: Sequence[_Planned], aside: RunInWorker) -> None:
    writes = await _composed(conn, planned, aside)
    try:
        await changes_store.write_changes(conn, writes)
    except StatementRejected as error:
        if error.constraint in _SIZE_CONSTRAINTS:
            raise InvalidRequest(FieldViolation("changes", _TOO_LARGE)) from error
        if error.sqlstate.startswith(_UNFIT):
            raise InvalidRequest(FieldViolation("changes", _UNSTORABLE)) from error
        raise


async def _composed(conn: Connection, planned: Sequence[_Planned], aside: RunInWorker) -> list[changes_store.Write]:
    intricate = await _intricate(conn, planned)
    rest = [plan for plan in planned if plan[:3] not in intricate]
    several = [plan.patches for plan in rest if len(plan.patches) > 1]
    try:
        is_large = sum(len(patch or "") for patches in several for patch in patches) > _COMPOSED_ASIDE_BYTES
        composed = await (aside if is_large else run_inline)(compose_each, [plan.patches for plan in rest])
        writes = [
            changes_store.Write(*plan[:3], plan.sequences[-1], *two) for plan, two in zip(rest, composed, strict=True)
        ]
        merged = [await _merged(conn, plan, aside) for plan in intricate.values()]
    except ValueError as error:
        raise InvalidRequest(FieldViolation("changes", _UNSTORABLE)) from error
    by_key = {write[:3]: write for write in [*merged, *writes]}
    return [by_key[plan[:3]] for plan in planned]


async def _intricate(conn: Connection, planned: Sequence[_Planned]) -> dict[tuple[str, str, str], _Planned]:
    # Those by key that are merged here, and not by PostgreSQL.
    objects = {plan[:3]: _objects(plan) for plan in planned}
    deep = [key for key, count in objects.items() if _PASSED_UNSEEN < count <= _MERGED_BY_DATABASE]
    octets = await changes_store.octets_of(conn, deep) if deep else {}
    return {
        plan[:3]: plan
        for plan in planned
        if objects[plan[:3]] > _MERGED_BY_DATABASE or octets.get(plan[:3], 0) * objects[plan[:3]] > _MOST_PASSED_OCTETS
    }


def _objects(plan: _Planned) -> int:
    return sum(patch.count("{") for patch in plan.patches if patch is not None)


async def _merged(conn: Connection, plan: _Planned, aside: RunInWorker) -> changes_store.Write:
    value = await changes_store.value_of(conn, *plan[:3])  # one at a time: a call may have a thousand
    return changes_store.Write(*plan[:3], plan.sequences[-1], None, await aside(apply, value, plan.patches), whole=True)


async def blame(
    conn: Connection, call: Append, refused: InvalidRequest, aside: RunInWorker = run_inline
) -> InvalidRequest:
    """The same refusal of a call, with the change that it is for where that can be told: the last of its key."""
    planned: dict[tuple[str, str, str], _Planned] = {}
    heads = {(call.app_id, change.scope): 0 for change in call.changes}
    places: dict[tuple[str, str, str], int] = {}
    for index, change in enumerate(call.changes):
        _plan(call.app_id, change, heads, {}, planned)
        places[call.app_id, change.scope, change.key] = index
    said = refused.violations[0].description
    guilty = list(places.values()) if len(places) == 1 else []
    if not guilty and said == _TOO_LARGE:
        found = await changes_store.oversized(conn, await _composed(conn, list(planned.values()), aside))
        guilty = [places[key] for place, key in enumerate(planned) if place in found]
    if not guilty:
        return refused
    return InvalidRequest(*(FieldViolation(f"changes[{index}].merge_patch_json", said) for index in sorted(guilty)))
