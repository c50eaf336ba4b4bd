"""Histories of writes with source times: dual writes, imports and deletions, on every path, in any order, at once.

However they arrive, and however often, each key ends with the latest of its writes by source time. A write without
one is made when it comes, at noon: a key that had one ends with such a write, or with one made at noon or later.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.publish import Published, Publisher
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.source_order import NOT_WRITTEN
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import NewChange, WriteOutcome
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from tests.events.test_publish import call
from tests.support.build import APP, make_publisher
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.events import event, make_ingest
from tests.support.fake_clock import START, FakeClock
from tests.support.seed import add_members, rows_of

FIGURES: Counter[str] = Counter()
"""The sums over all histories of this run."""

_SCOPES = itertools.count()
_KEYS = st.sampled_from(["a", "b", "c"])
_SECONDS = st.sampled_from([-3.0, -2.000001, -2.0, -1.0, 0.0, 250.0, None])  # few, so that many are equal
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.sampled_from([0, 1, 1.0, 1e20, -0.5, 10**30]), st.text("aé\U0001f600", max_size=2)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["x", "é", "null"]), inner, max_size=2)
    ),
    max_leaves=4,
)


class Path(StrEnum):
    """The ways by which a write may come."""

    SERVICE = "service"
    USER = "user"
    IMPORT = "import"
    EVENT = "event"


@dataclass(frozen=True)
class Written:
    """One write: JSON, or None for a deletion. `seconds`: when it was made, after noon; None: it has no source time."""

    key: str
    seconds: float | None
    text: str | None

    def change(self, scope: str) -> NewChange:
        """Return it as a change of a scope."""
        return NewChange(scope, self.key, self.text or "", self.text is None, source_time=_moment(self.seconds))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


def _written(key: str, seconds: float | None, value: Any, *, deleted: bool) -> Written:
    whole = value if seconds is not None else [value]  # without a source time it is a patch, and of an array the whole
    return Written(key, seconds, None if deleted else json.dumps(whole))


_WRITES = st.builds(_written, _KEYS, _SECONDS, _VALUES, deleted=st.sampled_from([False, False, True]))
_CALLS = st.tuples(st.sampled_from(Path), st.lists(_WRITES, min_size=1, max_size=4))
HISTORIES = st.lists(st.lists(_CALLS, min_size=1, max_size=6), min_size=1, max_size=4)
"""Rounds of calls; those of a round are made at once, and the rounds one after the other."""


class Writers:
    """Two processes that write to one database."""

    def __init__(self, databases: Sequence[Database], clock: FakeClock) -> None:
        self._databases = databases
        self._publishers: list[Publisher] = [make_publisher(one, clock) for one in databases]
        self._ingests: list[EventIngest] = [make_ingest(one, clock) for one in databases]
        self._numbers = itertools.count()

    async def play(self, history: Sequence[Sequence[tuple[Path, Sequence[Written]]]]) -> None:
        """Play the rounds of a history in a scope of its own, and check what each key ends with."""
        scope = f"h{next(_SCOPES)}"
        await add_members(self._databases[0], scope, "ann")
        written = 0
        for calls in history:
            made = await asyncio.gather(*(self._make(scope, path, writes) for path, writes in calls))
            written += sum(made)
            FIGURES.update(f"calls by {path}" for path, _ in calls)
        await self._check(scope, [one for calls in history for _, writes in calls for one in writes])
        ((head,),) = await rows_of(self._databases[0], "SELECT head FROM scopes WHERE scope = $1", scope)
        events = [writes for calls in history for path, writes in calls if path is Path.EVENT]
        most = written + sum(map(len, events))
        assert written <= head <= most, "each sequence is of a change that was written"
        FIGURES["histories"] += 1

    async def _make(self, scope: str, path: Path, writes: Sequence[Written]) -> int:
        """Make one call, and return how many of its changes were written."""
        number = next(self._numbers)
        changes = [one.change(scope) for one in writes]
        if path is Path.EVENT:
            before = event(f"{scope}-{number}", *changes, subject="", ordering_key="")
            answer = await self._ingests[number % 2].ingest(before)
            assert answer.receipt.failure == ""
            return 0
        if path is Path.IMPORT:
            return await self._import(self._databases[number % 2], changes)
        user_id = "ann" if path is Path.USER else None
        published = await self._publishers[number % 2].publish(call(*changes, user_id=user_id))
        assert isinstance(published, Published)
        return _count_written(published.outcomes, changes)

    async def _import(self, database: Database, changes: Sequence[NewChange]) -> int:
        """Write as an import does: quietly, by the feed itself, in a transaction of its own."""
        async with database.transaction() as conn:
            (result,) = await append(conn, [Append(APP, tuple(changes))], lambda _: DEFAULT_PRIOR, create_scopes=True)
        assert not isinstance(result, Exception), result
        return _count_written(result.outcomes, changes)

    async def _check(self, scope: str, writes: Sequence[Written]) -> None:
        rows: dict[str, tuple[Any, ...]] = {
            row[0]: row[1:]
            for row in await rows_of(
                self._databases[0],
                "SELECT key, deleted, value::text, source_time FROM changes WHERE scope = $1",
                scope,
            )
        }
        assert rows.keys() == {one.key for one in writes}
        for key, row in rows.items():
            texts = await self._canonical([one for one in writes if one.key == key])
            assert row in _possible_ends(texts), (key, writes)
        ((head, highest),) = await rows_of(
            self._databases[0],
            "SELECT head, (SELECT max(sequence) FROM changes c WHERE c.scope = s.scope) FROM scopes s WHERE scope = $1",
            scope,
        )
        assert highest <= head
        FIGURES["writes"] += len(writes)

    async def _canonical(self, writes: Sequence[Written]) -> list[tuple[Written, str]]:
        """Return writes with their values as PostgreSQL prints them, without members that are null."""
        texts = await rows_of(
            self._databases[0],
            """SELECT coalesce(syncbeat_merge_patch(NULL, text::jsonb)::text, '')
               FROM unnest($1::text[]) WITH ORDINALITY AS k (text, i) ORDER BY i""",
            [one.text for one in writes],
        )
        return [(one, text) for one, (text,) in zip(writes, texts, strict=True)]


def _count_written(outcomes: Sequence[WriteOutcome | None], changes: Sequence[NewChange]) -> int:
    """Count the changes of a call that were written; what came without a source time always is."""
    FIGURES["unchanged"] += outcomes.count(WriteOutcome.UNCHANGED)
    return sum(one not in NOT_WRITTEN for one in outcomes) if outcomes else len(changes)


def _possible_ends(texts: Sequence[tuple[Written, str]]) -> list[tuple[bool, str | None, datetime | None]]:
    """Return the rows that a key may end with: one, but for a key that had a write without a source time."""
    ends = sorted(
        (one.seconds, one.text is None, len(text.encode()), text.encode())
        for one, text in texts
        if one.seconds is not None
    )
    last = ends[-1:] if len(ends) == len(texts) else [end for end in ends if end[0] >= 0]
    sourced = [(deleted, None if deleted else text.decode(), _moment(at)) for at, deleted, _, text in last]
    return sourced + [
        (one.text is None, text if one.text else None, None) for one, text in texts if one.seconds is None
    ]


def play_source_time_histories(urls: DatabaseUrls, *, histories: int) -> None:
    """Play so many histories on this database, by two processes.

    Raises:
        AssertionError: a key ended with something else than its latest write; Hypothesis tells after which.
    """
    FIGURES.clear()
    with asyncio.Runner() as runner:
        opened = [open_database(urls.app_url, size=4, name=f"writer-{number}") for number in range(2)]
        databases = [runner.run(one.__aenter__()) for one in opened]
        runner.run(run_sql(urls.owner_url, f"UPDATE test_clock SET at = '{START.isoformat()}'"))
        writers = Writers(databases, FakeClock())

        @settings(
            max_examples=histories,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(HISTORIES)
        def play(history: Sequence[Sequence[tuple[Path, Sequence[Written]]]]) -> None:
            runner.run(writers.play(history))

        try:
            play()
        finally:
            for one in opened:
                runner.run(one.__aexit__(None, None, None))
