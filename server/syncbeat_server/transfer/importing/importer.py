"""Runs an import: reads ahead in a thread, writes batch after batch, and notes in each transaction how far it came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import IO

from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import Member
from syncbeat_server.errors import (
    ConfigurationError,
    DependencyDown,
    DependencyUnfit,
    InvalidRequest,
    Overloaded,
    RateLimited,
)
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.policy import Prior
from syncbeat_server.transfer.importing.batch_writer import write_items
from syncbeat_server.transfer.importing.batches import Batch, BatchReader, ImportSource, Item, PlacedMisfit
from syncbeat_server.transfer.importing.report import ImportReport, read_report
from syncbeat_server.transfer.importing.throttle import DEFAULT_THROTTLE, Throttle, ThrottleRule
from syncbeat_server.transfer.model import Misfit, MisfitReason
from syncbeat_server.transfer.store.imports import (
    ImportKey,
    advance_import,
    begin_import,
    find_import,
    finish_import,
    look_up_by_index,
)

_TRIES = 8
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 15.0  # seven pauses, of a minute together: a fail-over of PostgreSQL


@dataclass(frozen=True)
class Progress:
    """Holds how far an import is, for who watches it. `skipped`: these places were done by an earlier run."""

    places: int
    report: ImportReport
    skipped: int = 0


OnProgress = Callable[[Progress], None]


class Importer:
    """Import of one export into one app."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        source: ImportSource,
        import_id: str,
        prior: Callable[[str], Prior],
        throttle: ThrottleRule = DEFAULT_THROTTLE,
    ) -> None:
        """`import_id`: the digest of all that decides what is written. `prior(app)`: the prior of its scopes."""
        self._database = database
        self._clock = clock
        self._source = source
        self._key = ImportKey(source.app_id, import_id)
        self._prior = prior
        self._throttle = Throttle(throttle)
        self._places = 0
        self._report = ImportReport()

    async def run(self, export: IO[bytes], export_name: str, on_progress: OnProgress) -> ImportReport:
        """Import what no earlier run has, and return the report of all runs.

        An import that was finished begins anew, and finds everything as it is.

        Raises:
            ConfigurationError: the export is broken, or another process runs this import.
            DependencyDown, Overloaded: the database did not answer for a minute.
        """
        await self._begin(export_name)
        skipped = self._places
        reader = BatchReader(self._source, export, skipped)
        # One batch is read while the one before is written: the threads share the interpreter, but not the waiting.
        batch = await asyncio.to_thread(reader.next_batch, self._throttle.batch_size)
        while batch is not None:
            ahead = asyncio.ensure_future(asyncio.to_thread(reader.next_batch, self._throttle.batch_size))
            try:
                pause_s = await self._write_batch(batch)
            except BaseException:
                await asyncio.wait([ahead])  # a thread is not cancelled, and reads from what the caller closes
                raise
            on_progress(Progress(self._places, self._report, skipped))
            if pause_s:
                await self._clock.sleep(pause_s)
            batch = await ahead
        await self._repeat(self._finish)
        return self._report

    async def _begin(self, export_name: str) -> None:
        async with self._database.transaction() as conn:
            row = await begin_import(conn, self._key, export_name, ImportReport().to_json())
            self._places, self._report = row.places, read_report(row.report)
            if row.finished_at is not None:
                self._places, self._report = 0, ImportReport()
                await advance_import(conn, self._key, row.places, 0, self._report.to_json())

    async def _finish(self, _is_repeat: bool) -> None:
        async with self._database.transaction() as conn:
            if not await finish_import(conn, self._key, self._places, self._report.to_json()):
                raise _others_run()

    async def _write_batch(self, batch: Batch) -> float:
        """Write a batch, and return the seconds to pause after it."""
        places, started = batch.places - self._places, self._clock.monotonic()
        await self._write_halves(batch.items, batch.misfits, batch.places)
        return self._throttle.observe(places, self._clock.monotonic() - started)

    async def _write_halves(self, items: Sequence[Item], misfits: Sequence[PlacedMisfit], places: int) -> None:
        """Write targets up to the number `places`; what the database refuses is found by halving, and counted."""
        counted = ImportReport()
        counted.add_misfits(one.misfit for one in misfits)
        try:
            await self._write_patiently(items, counted, places)
        except (InvalidRequest, RateLimited) as error:
            if len(items) == 1:
                counted.add_misfits([Misfit(items[0].pattern, items[0].path, _reason(error, items[0]))])
                await self._write_patiently([], counted, places)
                return
            middle = len(items) // 2
            # The place of the first of the right half may be begun in the left one: it is done with the right one.
            done = max(self._places, items[middle].place - 1)
            await self._write_halves(items[:middle], [one for one in misfits if one.place <= done], done)
            await self._write_halves(items[middle:], [one for one in misfits if one.place > done], places)

    async def _write_patiently(self, items: Sequence[Item], counted: ImportReport, places: int) -> None:
        async def write(is_repeat: bool) -> None:
            await self._write_once(items, counted, places, is_repeat=is_repeat)

        await self._repeat(write)

    async def _repeat(self, work: Callable[[bool], Awaitable[None]]) -> None:
        """Do work, which is told if it is repeated, until the database answers, for a minute."""
        pause_s = _FIRST_RETRY_S
        for left in reversed(range(_TRIES)):
            try:
                await work(left < _TRIES - 1)
                return
            except DependencyUnfit:
                raise
            except (DependencyDown, Overloaded):
                if not left:
                    raise DependencyDown(
                        "the database did not answer for a minute; what was imported stays: run the same again, and it "
                        "goes on from there"
                    ) from None
            await self._clock.sleep(pause_s)
            pause_s = min(_LONGEST_RETRY_S, 2.0 * pause_s)

    async def _write_once(self, items: Sequence[Item], counted: ImportReport, places: int, *, is_repeat: bool) -> None:
        async with self._database.transaction() as conn:
            await look_up_by_index(conn)
            written = await write_items(conn, self._source.app_id, items, self._prior)
            report = self._report.add(counted).add(written)
            if not await advance_import(conn, self._key, self._places, places, report.to_json()):
                row = await find_import(conn, self._key)
                if not is_repeat or row is None or row.places != places:
                    raise _others_run()
                report = read_report(row.report)  # it was committed, and the answer was lost
        self._places, self._report = places, report


def _others_run() -> ConfigurationError:
    return ConfigurationError("another process runs this import: let it end, or end it; nothing of this batch is kept")


def _reason(error: InvalidRequest | RateLimited, item: Item) -> MisfitReason:
    if isinstance(error, InvalidRequest):
        return MisfitReason.REFUSED_VALUE
    if isinstance(item.target, Member) and not error.metadata.get("user_id"):
        return MisfitReason.REFUSED_SCOPE_FULL
    return MisfitReason.REFUSED_USER_FULL
