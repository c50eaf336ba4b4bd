"""Decides which of the changes that carry a source time are written: those later than what their key has (ADR 198).

A later one of the value that is there already is not written; the source time of what is there is raised to it.

It is read under the scopes' locks, under which every write of the feed is made, so that nothing comes between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.runtime.worker_processes import RunInWorker
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.feed.value_merge import refused_values, whole_value
from syncbeat_server.sync.model import NewChange, WriteOutcome
from syncbeat_server.sync.store import change_writes
from syncbeat_server.sync.store.change_writes import Candidate, ChangeKey

NOT_WRITTEN = frozenset({WriteOutcome.SUPERSEDED, WriteOutcome.UNCHANGED})
_LAST = 1 << 30  # a rank above those of all values of one time


class _Place(NamedTuple):
    made_at: datetime
    rank: int = 0  # from 1 on, where it is known


@dataclass(slots=True)
class SourceOrder:
    """Holds what the keys have that changes with a source time are for, as the calls of a transaction go by.

    Attributes:
        sequences: The sequences that the keys had before.
        places: When what they have was made, with its rank among values of the key.
        ranks: The ranks of changes, by the numbers of call and change, that may be equal to another of the key.
        now: When the changes are made that have no source time.
        raised: The source times that values get which stay as they are.
    """

    sequences: dict[ChangeKey, int]
    places: dict[ChangeKey, _Place]
    ranks: dict[tuple[int, int], int]
    now: datetime
    raised: dict[ChangeKey, datetime] = field(default_factory=dict)

    def place_call(self, number: int, app_id: str, changes: Sequence[NewChange]) -> tuple[WriteOutcome | None, ...]:
        """Decide about the changes of a call one after the other, None for one that has no source time."""
        return tuple(
            self._place_change((number, index), (app_id, change.scope, change.key), change)
            for index, change in enumerate(changes)
        )

    def _place_change(self, place: tuple[int, int], key: ChangeKey, change: NewChange) -> WriteOutcome | None:
        if change.source_time is None:
            self.places[key] = _Place(self.now, _LAST)  # also of a key that was not there: an older one may follow
            self.raised.pop(key, None)
            return None
        present = self.places.get(key)
        given = _Place(change.source_time, self.ranks.get(place, 0))
        if present is not None and given <= present:
            return WriteOutcome.UNCHANGED if given == present else WriteOutcome.SUPERSEDED
        self.places[key] = given
        # A tombstone is kept for a time after it was written: a later deletion is written, so that its own is.
        if present is not None and given.rank == present.rank > 0 and not change.deleted:
            self.raised[key] = change.source_time
            return WriteOutcome.UNCHANGED
        self.raised.pop(key, None)
        return WriteOutcome.WRITTEN


async def read_source_order(
    conn: Connection, calls: Sequence[tuple[str, Sequence[NewChange]]], now: datetime, offload: RunInWorker
) -> SourceOrder:
    """Read what the keys of all changes with a source time have. Each call is an app's id and its changes.

    `now` is the transaction's time.

    Raises:
        InvalidRequest: a value cannot be stored (the transaction is over then).
        Overloaded, DependencyDown: `offload` failed.
    """
    sourced = {
        (number, index): ((app_id, change.scope, change.key), change.source_time, change)
        for number, (app_id, changes) in enumerate(calls)
        for index, change in enumerate(changes)
        if change.source_time is not None
    }
    count = Counter(key for key, _, _ in sourced.values())
    stored = await change_writes.versions(conn, sorted(count))
    met = {
        place: (key, change)
        for place, (key, made_at, change) in sourced.items()
        if count[key] > 1 or (key in stored and made_at >= stored[key].made_at)
    }
    values = [
        None if change.deleted else await whole_value(change.merge_patch_json, offload) for _, change in met.values()
    ]
    candidates = [Candidate(*key, value) for (key, _), value in zip(met.values(), values, strict=True)]
    ranks = change_writes.Ranks({}, [])
    if candidates:
        with refused_values():
            ranks = await change_writes.rank_values(conn, candidates)
    return SourceOrder(
        {key: version.sequence for key, version in stored.items()},
        {key: _Place(version.made_at, ranks.stored.get(key, 0)) for key, version in stored.items()},
        dict(zip(met, ranks.candidates, strict=True)),
        now,
    )
