"""Merges the patches of keys and writes their values, in PostgreSQL where that is fast, and else in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from syncbeat_server.sync.content.merge_patch import apply, compose_each
from syncbeat_server.sync.feed.hot_keys import PlannedWrite
from syncbeat_server.sync.store import change_writes
from syncbeat_server.sync.store.change_writes import ChangeKey, Write

TOO_LARGE = "the merged value would pass 1 MiB"

# SQLSTATE classes of a value that cannot be stored: data exception, program limit exceeded.
_UNSTORABLE_CLASSES = ("22", "54")
_SIZE_CONSTRAINTS = ("changes_value_size", "changes_value_octets")
_UNSTORABLE = "the value cannot be stored as JSON"
# Composing more than this on the event loop would delay everybody else for longer than a millisecond.
_MAX_INLINE_BYTES = 16_384
# PostgreSQL takes 50 us for each object that it merges, a hundred times as long as Python: with the 40,000 that a patch
# may have, all the time that a statement may take.
_MAX_DATABASE_OBJECTS = 1_000
# And it scans the value once more for each level of a patch: 0.25 us an octet. What comes to more than some 0.06 s is
# merged in Python; a few levels are not worth another statement.
_FREE_SCANS = 4
_MAX_SCANNED_OCTETS = 262_144
_NULL = "null"
"""A patch without this text removes no member."""


async def write_values(conn: Connection, planned: Sequence[PlannedWrite], offload: RunInWorker) -> None:
    """Merge and write the patches of keys whose scopes are locked. `offload` runs merges of large values.

    Raises:
        InvalidRequest: a value is too large, or is not JSON that PostgreSQL can store (the transaction is over then).
        Overloaded, DependencyDown: `offload` failed.
    """
    writes = await merged_writes(conn, planned, offload)
    with refused_values():
        await change_writes.write_changes(conn, writes)


@contextmanager
def refused_values() -> Iterator[None]:
    """Turn the refusal of a value by PostgreSQL into InvalidRequest."""
    try:
        yield
    except StatementRejected as error:
        if error.constraint in _SIZE_CONSTRAINTS:
            raise InvalidRequest(FieldViolation("changes", TOO_LARGE, FieldReason.TOO_LONG)) from error
        if error.sqlstate.startswith(_UNSTORABLE_CLASSES):
            raise InvalidRequest(FieldViolation("changes", _UNSTORABLE, FieldReason.OUT_OF_RANGE)) from error
        raise


async def merged_writes(conn: Connection, planned: Sequence[PlannedWrite], offload: RunInWorker) -> list[Write]:
    """Return the writes for planned patches, in their order.

    The patches of a key are composed to two at most, which PostgreSQL merges onto the old value; the costly ones are
    merged here.

    Raises:
        InvalidRequest: a patch or value cannot be read or written as JSON.
        Overloaded, DependencyDown: `offload` failed.
    """
    merging = [plan for plan in planned if not _is_whole(plan)]
    costly = await _costly_in_database(conn, merging)
    rest = [plan for plan in merging if plan.change_key not in costly]
    several = [plan.patches for plan in rest if len(plan.patches) > 1]
    try:
        is_large = sum(len(patch or "") for patches in several for patch in patches) > _MAX_INLINE_BYTES
        patches = [[None, *plan.patches] if plan.replaces else plan.patches for plan in rest]
        composed = await (offload if is_large else run_inline)(compose_each, patches)
        writes = [
            _write(plan, reset, patch, flat=reset is None and _is_flat(patch))
            for plan, (reset, patch) in zip(rest, composed, strict=True)
        ]
        merged = [await _merge_in_python(conn, plan, offload) for plan in costly.values()]
    except ValueError as error:
        raise InvalidRequest(FieldViolation("changes", _UNSTORABLE, FieldReason.OUT_OF_RANGE)) from error
    by_key = {write.change_key: write for write in [*merged, *writes]}
    return [by_key.get(plan.change_key) or _write(plan, None, plan.patches[0], whole=True) for plan in planned]


def _is_whole(plan: PlannedWrite) -> bool:
    # A patch that removes nothing, applied to nothing, is the value. May say no of one that is.
    return plan.replaces and len(plan.patches) == 1 and _NULL not in (plan.patches[0] or _NULL)


def _write(
    plan: PlannedWrite, reset: str | None, patch: str | None, *, whole: bool = False, flat: bool = False
) -> Write:
    return Write(*plan.change_key, plan.sequences[-1], reset, patch, whole, flat, plan.source_time)


async def whole_value(patch: str, offload: RunInWorker) -> str:
    """Return what a patch comes to that is applied to nothing.

    Raises:
        InvalidRequest: it cannot be read or written as JSON.
        Overloaded, DependencyDown: `offload` failed.
    """
    if _NULL not in patch:
        return patch
    try:
        value = await (offload if len(patch) > _MAX_INLINE_BYTES else run_inline)(apply, None, [patch])
    except ValueError as error:
        raise InvalidRequest(FieldViolation("changes", _UNSTORABLE, FieldReason.OUT_OF_RANGE)) from error
    return str(value)


async def _costly_in_database(conn: Connection, planned: Sequence[PlannedWrite]) -> dict[ChangeKey, PlannedWrite]:
    """Return the writes, by key, that PostgreSQL would merge slowly: many objects, or many levels on a large value."""
    objects = {plan.change_key: _count_objects(plan) for plan in planned}
    deep = [key for key, count in objects.items() if _FREE_SCANS < count <= _MAX_DATABASE_OBJECTS]
    octets = await change_writes.octets_of(conn, deep) if deep else {}
    return {
        key: plan
        for key, plan in ((plan.change_key, plan) for plan in planned)
        if objects[key] > _MAX_DATABASE_OBJECTS or octets.get(key, 0) * objects[key] > _MAX_SCANNED_OCTETS
    }


def _is_flat(patch: str | None) -> bool:
    # May say no of one that is: a string may hold what looks like an object, or null.
    return patch is not None and patch.startswith("{") and patch.count("{") == 1 and "null" not in patch


def _count_objects(plan: PlannedWrite) -> int:
    return sum(patch.count("{") for patch in plan.patches if patch is not None)


async def _merge_in_python(conn: Connection, plan: PlannedWrite, offload: RunInWorker) -> Write:
    value = None
    if not plan.replaces:
        value = await change_writes.value_of(conn, *plan.change_key)  # one at a time: a call may have a thousand
    merged = await offload(apply, value, plan.patches)
    return _write(plan, None, merged, whole=True)
