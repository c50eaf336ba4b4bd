"""Writes what an export has over what differs here, by the feed's own code, which leaves what is newer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import IO

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import NewChange, WriteOutcome
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.transfer.compare.spool import Spool
from syncbeat_server.transfer.importing.batches import MAX_BATCH_OCTETS, checked_text
from syncbeat_server.transfer.importing.throttle import Throttle
from syncbeat_server.transfer.mapping.forward import targets_of
from syncbeat_server.transfer.mapping.rules import TransferMap
from syncbeat_server.transfer.model import FeedValue, MisfitReason
from syncbeat_server.transfer.rtdb.reading import read_entries

WriteChanges = Callable[[Sequence[NewChange]], Awaitable[Sequence[WriteOutcome | None]]]


def changes_of(
    export: IO[bytes], transfer_map: TransferMap, app_id: str, spool: Spool, as_of: datetime
) -> Iterator[NewChange]:
    """Yield the changes that mend the wanted keys: values of the export, read again from its beginning, and deletions.

    Raises:
        ConfigurationError: the file is no JSON document with an object.
    """
    compared = transfer_map.without_source_times()
    for entry in read_entries(export, compared.root):
        for target in targets_of(compared, app_id, entry):
            if isinstance(target, FeedValue) and spool.is_wanted(target.scope, target.key):
                text = checked_text(target.value)
                if not isinstance(text, MisfitReason):
                    yield NewChange(target.scope, target.key, text, source_time=as_of)
    for scope, key in spool.absent():
        yield NewChange(scope, key, "", deleted=True, source_time=as_of)


async def mend(
    changes: Iterator[NewChange],
    write: WriteChanges,
    clock: Clock,
    on_progress: Callable[[Counter[WriteOutcome]], None] = lambda _: None,
) -> Counter[WriteOutcome]:
    """Write changes in batches and return their outcomes; `on_progress` is called with those so far after each.

    Batches are as large, and as far apart, as the database's latency lets them be. Raises what `write` raises; what
    was written before stays.
    """
    outcomes: Counter[WriteOutcome] = Counter()
    throttle = Throttle()
    while batch := _next_batch(changes, throttle.batch_size):
        began = clock.monotonic()
        outcomes.update(outcome for outcome in await write(batch) if outcome is not None)
        on_progress(outcomes)
        await clock.sleep(throttle.observe(len(batch), clock.monotonic() - began))
    return outcomes


def feed_writer(database: Database, app_id: str) -> WriteChanges:
    """Return what writes a batch into the feed in one transaction, and wakes nobody.

    Streams and polls hear of it by their sweeps. It raises InvalidRequest: a value cannot be stored; or DependencyDown.
    """

    async def write(changes: Sequence[NewChange]) -> Sequence[WriteOutcome | None]:
        async with database.transaction() as conn:
            calls = [Append(app_id, tuple(changes))]
            (result,) = await append(conn, calls, lambda _: DEFAULT_PRIOR, create_scopes=True)
        if isinstance(result, SyncbeatError):
            raise result
        return result.outcomes

    return write


def _next_batch(changes: Iterator[NewChange], size: int) -> list[NewChange]:
    batch: list[NewChange] = []
    octets = 0
    for change in itertools.islice(changes, size):
        batch.append(change)
        octets += len(change.merge_patch_json)
        if octets >= MAX_BATCH_OCTETS:
            break
    return batch
