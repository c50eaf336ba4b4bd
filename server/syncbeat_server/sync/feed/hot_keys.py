"""Gathers the patches of each key, so that a hot key costs one merge and one write, in a call or a batch of calls."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.sync.model import NewChange, ScopeKey
from syncbeat_server.sync.store.change_writes import ChangeKey


class PlannedWrite(NamedTuple):
    """Collects the patches of one key in order, None for a deletion, and the sequences of their changes."""

    app_id: str
    scope: str
    key: str
    patches: list[str | None]
    sequences: list[int]

    @property
    def change_key(self) -> ChangeKey:
        """Return the primary key of the row."""
        return self[:3]


def plan_change(
    app_id: str,
    change: NewChange,
    heads: dict[ScopeKey, int],
    present: dict[ChangeKey, int],
    planned: dict[ChangeKey, PlannedWrite],
) -> int:
    """Allocate the sequence of a change, and add its patch to the write of its key."""
    sequence = heads[app_id, change.scope] = heads[app_id, change.scope] + 1
    key = (app_id, change.scope, change.key)
    present[key] = sequence
    plan = planned.get(key)
    if plan is None:
        plan = planned[key] = PlannedWrite(*key, [], [])
    plan.patches.append(None if change.deleted else change.merge_patch_json)
    plan.sequences.append(sequence)
    return sequence
