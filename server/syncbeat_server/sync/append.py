"""Append to the change feed inside a caller's transaction: sequences, expectations, merges, heads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncbeat_server.errors import (
    AccessDenied,
    FieldViolation,
    InvalidRequest,
    SequenceMismatch,
    SyncbeatError,
)
from syncbeat_server.storage.postgres import Connection, StatementRejected
from syncbeat_server.sync import scopes, store
from syncbeat_server.sync.model import Cursor, NewChange, Signal
from syncbeat_server.sync.policy import Prior, signal_after_change

_DATA_EXCEPTION = "22"
_TOO_COMPLEX = "54001"
_SIZE_CONSTRAINT = "changes_value_size"


@dataclass(frozen=True)
class Append:
    """The changes of one call: all are written, or none."""

    app_id: str
    changes: tuple[NewChange, ...]


@dataclass(frozen=True)
class Appended:
    """The sequence each change got, in order, and the new head of each scope."""

    sequences: tuple[int, ...]
    heads: tuple[Cursor, ...]


async def append(
    conn: Connection, calls: Sequence[Append], prior: Callable[[str], Prior], *, create_scopes: bool
) -> list[Appended | SyncbeatError]:
    """Write the changes of several calls. A call whose expectation fails gets its error and writes nothing.

    `prior` knows what each app's scopes have in common.

    Raises:
        InvalidRequest: PostgreSQL cannot hold a value (the transaction is over then).
    """
    keys = [(call.app_id, change.scope) for call in calls for change in call.changes]
    locked = await scopes.lock_scopes(conn, keys, create=create_scopes)
    present = await _expected_keys(conn, calls)
    heads = {key: scope.head for key, scope in locked.items()}
    commits: dict[tuple[str, str], int] = defaultdict(int)
    rounds: list[dict[tuple[str, str, str], tuple[str, int, NewChange]]] = []
    results: list[Appended | SyncbeatError] = []
    for call in calls:
        fault = _fault(call, locked, present)
        if fault is not None:
            results.append(fault)
            continue
        sequences = tuple(_plan(call.app_id, change, heads, present, rounds) for change in call.changes)
        names = sorted({change.scope for change in call.changes})
        for scope in names:
            commits[call.app_id, scope] += 1
        ends = tuple(Cursor(s, locked[call.app_id, s].epoch, heads[call.app_id, s]) for s in names)
        results.append(Appended(sequences, ends))
    await _write(conn, rounds)
    if commits:
        await scopes.advance_heads(
            conn,
            [
                scopes.MovedScope(*key, heads[key], _signal(locked[key], prior(key[0]), count))
                for key, count in sorted(commits.items())
            ],
        )
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
    return await store.key_sequences(conn, sorted(keys)) if keys else {}


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


def _plan(
    app_id: str,
    change: NewChange,
    heads: dict[tuple[str, str], int],
    present: dict[tuple[str, str, str], int],
    rounds: list[dict[tuple[str, str, str], tuple[str, int, NewChange]]],
) -> int:
    # One statement may touch a key once: the second change of a key goes into the next round.
    sequence = heads[app_id, change.scope] = heads[app_id, change.scope] + 1
    key = (app_id, change.scope, change.key)
    present[key] = sequence
    for written in rounds:
        if key not in written:
            written[key] = (app_id, sequence, change)
            return sequence
    rounds.append({key: (app_id, sequence, change)})
    return sequence


async def _write(conn: Connection, rounds: list[dict[tuple[str, str, str], tuple[str, int, NewChange]]]) -> None:
    try:
        for written in rounds:
            await store.write_changes(conn, list(written.values()))
    except StatementRejected as error:
        if error.constraint == _SIZE_CONSTRAINT:
            raise InvalidRequest(FieldViolation("changes", "a merged value would pass 1 MiB")) from error
        if error.sqlstate.startswith(_DATA_EXCEPTION) or error.sqlstate == _TOO_COMPLEX:
            raise InvalidRequest(FieldViolation("changes", "a value cannot be stored as JSON")) from error
        raise
