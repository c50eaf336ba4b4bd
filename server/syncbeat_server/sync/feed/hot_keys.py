"""Gathers the patches of each key, so that a hot key costs one merge and one write, in a call or a batch of calls."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from syncbeat_server.sync.model import NewChange, ScopeKey
from syncbeat_server.sync.store.change_writes import ChangeKey


class PlannedWrite(NamedTuple):
    """Collects the patches of one key in order, None for a deletion, and the sequences of their changes.

    `replaces`: the patches are applied to nothing, whatever the key has. `source_time` is that of the last change.
    """

    app_id: str
    scope: str
    key: str
    patches: list[str | None]
    sequences: list[int]
    replaces: bool = False
    source_time: datetime | None = None

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
    patch = None if change.deleted else change.merge_patch_json
    if change.source_time is not None:
        planned[key] = PlannedWrite(*key, [patch], [sequence], replaces=True, source_time=change.source_time)
        return sequence
    plan = planned.get(key)
    if plan is None:
        plan = planned[key] = PlannedWrite(*key, [], [])
    elif plan.source_time is not None:
        plan = planned[key] = plan._replace(source_time=None)
    plan.patches.append(patch)
    plan.sequences.append(sequence)
    return sequence
