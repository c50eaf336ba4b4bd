"""Subcommands `verify` and `reconcile`: compare an export with what is stored, and mend it (docs/migrate/verify.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from syncbeat_server.cli.transfer.chosen_app import add_app_option, opened_app
from syncbeat_server.cli.transfer.map_option import add_export_file, add_map_option, open_export_file
from syncbeat_server.cli.transfer.source_time import check_source_time, source_time

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping
    from datetime import datetime

    from syncbeat_server.cli.transfer.comparison_report import ComparisonReport
    from syncbeat_server.sync.model import WriteOutcome
    from syncbeat_server.transfer.compare.verification import Verification

_MOST_SHOWN = 1_000_000
_REPORT_EVERY = 10_000  # changes
_NOTED = 1_000


def add_verify(commands: Any) -> None:
    """Add the subcommand to the parser."""
    command = commands.add_parser(
        "verify",
        help="compare an export of the Realtime Database with what is stored",
        description="Compare an export of the Realtime Database with what is stored, by counts and checksums of each "
        "scope, and print the differences by path. Changes nothing. Exits 0 if there is none, 1 if there is one, and "
        "2 if they cannot be compared.",
    )
    _add_options(command, source_time_required=False)
    command.set_defaults(run=_verify)


def add_reconcile(commands: Any) -> None:
    """Add the subcommand to the parser."""
    command = commands.add_parser(
        "reconcile",
        help="write what an export has over the values that differ, unless they are newer",
        description="Compare as 'verify' does, and write the values of the export over those that differ here, and "
        "delete those that it lacks, as of a minute before --source-time: what was made here later stays. The export "
        "is of the whole tree. Nobody is woken. Without --yes it tells what it would do. Members, devices and "
        "preferences are compared and left alone. Exits 0 if no value is left to mend, 1 if one is, and 2 if it "
        "cannot be done.",
    )
    _add_options(command, source_time_required=True)
    command.add_argument("--yes", action="store_true", help="do it")
    command.add_argument(
        "--delete",
        type=_deletions,
        default=0,
        metavar="N",
        help="the most values to delete; with more to delete nothing is done (default: %(default)s)",
    )
    command.set_defaults(run=_reconcile)


def _add_options(command: argparse.ArgumentParser, *, source_time_required: bool) -> None:
    add_export_file(command)
    add_map_option(command, required=True)
    add_app_option(command)
    command.add_argument(
        "--source-time",
        type=source_time,
        required=source_time_required,
        metavar="TIME",
        help="when the export was begun, as 2026-01-31T12:00:00Z: what was made here later, or in the minute "
        "before, is counted apart",
    )
    command.add_argument(
        "--limit", type=_limit, default=100, help="the most differences and scopes to print (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print the report as JSON, in one line")


def _limit(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_SHOWN:
        raise argparse.ArgumentTypeError(f"want 0 to {_MOST_SHOWN}")
    return int(text)


def _deletions(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("want the number of values that may be deleted")
    return int(text)


def _verify(parsed: argparse.Namespace) -> int:
    return _compare(parsed, is_mending=False)


def _reconcile(parsed: argparse.Namespace) -> int:
    return _compare(parsed, is_mending=True)


def _compare(parsed: argparse.Namespace, *, is_mending: bool) -> int:
    import asyncio

    from syncbeat_server.app import check_writes
    from syncbeat_server.app.transfer.rtdb_import import read_map
    from syncbeat_server.cli.transfer.comparison_report import ComparisonReport
    from syncbeat_server.cli.transfer.progress import Watch
    from syncbeat_server.transfer.compare.entries import spool_export
    from syncbeat_server.transfer.compare.spool import open_spool
    from syncbeat_server.transfer.compare.verification import Verification
    from syncbeat_server.transfer.importing.importer import Progress
    from syncbeat_server.transfer.importing.report import ImportReport

    transfer_map = read_map(parsed.map)
    if parsed.source_time is not None:
        check_source_time(parsed.source_time)
    with opened_app(parsed) as (stores, app_id), open_spool(parsed.tmp) as spool:
        if is_mending and parsed.yes:
            asyncio.run(check_writes(stores.database_url))
        with open_export_file(parsed.export) as file, Watch(parsed.export) as watch:
            found = spool_export(
                file,
                transfer_map,
                app_id,
                spool,
                lambda places: watch.show(file.tell(), Progress(places, ImportReport())),
            )
        verification = Verification(transfer_map, app_id, spool, found, parsed.source_time)
        report = ComparisonReport(parsed.limit)
        asyncio.run(_take_differences(stores.database_url, verification, parsed.export, report, is_mending=is_mending))
        print(report.as_json(verification, found) if parsed.json else report.as_text(verification, found), flush=True)
        if not is_mending or verification.as_of is None:  # reconcile requires --source-time
            return 1 if report.differences else 0
        return _mend(parsed, stores.database_url, verification, verification.as_of)


async def _take_differences(
    database_url: str, verification: Verification, export: Path, report: ComparisonReport, *, is_mending: bool
) -> None:
    from syncbeat_server.app import open_export
    from syncbeat_server.transfer.compare.inner_paths import MOST_VALUES, inner_differences, stored_texts

    noted = []
    async with open_export(database_url) as snapshot:
        async for difference, path in verification.differences(snapshot, report.add_scope):
            report.add_difference(difference, path)
            if is_mending:
                noted.append(difference)
                if len(noted) == _NOTED:
                    verification.note_wanted(noted)
                    noted.clear()
        verification.note_wanted(noted)
        here = await stored_texts(snapshot, verification.app_id, report.changed_values(MOST_VALUES))
    if here:
        with open_export_file(export) as file:
            report.inner = inner_differences(file, verification.transfer_map, verification.app_id, here)


def _mend(parsed: argparse.Namespace, database_url: str, verification: Verification, as_of: datetime) -> int:
    import asyncio

    to_write, to_delete = verification.spool.count_wanted()
    _say(f"{to_write} values to write and {to_delete} to delete, as of {as_of.isoformat()}")
    for pattern, count in sorted(verification.kept.items()):
        _say(f"{count} values of {pattern} left, since the export has none: is it of the whole tree?")
    status = 1 if verification.kept else 0
    if not to_write + to_delete:
        return status
    if not parsed.yes:
        more = f" --delete {to_delete}" if to_delete else ""
        _say(f"nothing was done; to do it: the same with --yes{more}")
        return 1
    if to_delete > parsed.delete:
        _say(f"nothing was done: {to_delete} to delete are more than --delete {parsed.delete}")
        return 1
    with open_export_file(parsed.export) as file:
        done = asyncio.run(_write(database_url, verification, file, as_of))
    _say(_outcomes(done))
    return status


async def _write(
    database_url: str, verification: Verification, file: IO[bytes], as_of: datetime
) -> Mapping[WriteOutcome, int]:
    from syncbeat_server.app import open_transfer
    from syncbeat_server.clock import SystemClock
    from syncbeat_server.transfer.compare.mending import changes_of, feed_writer, mend

    app_id = verification.app_id
    changes = changes_of(file, verification.transfer_map, app_id, verification.spool, as_of)
    async with open_transfer(database_url) as database:
        return await mend(changes, feed_writer(database, app_id), SystemClock(), _Progress().report)


class _Progress:
    """Reports the outcomes so far, once each `_REPORT_EVERY` changes."""

    def __init__(self) -> None:
        self._reported = 0

    def report(self, outcomes: Counter[WriteOutcome]) -> None:
        if outcomes.total() // _REPORT_EVERY > self._reported:
            self._reported = outcomes.total() // _REPORT_EVERY
            _say(_outcomes(outcomes))


def _outcomes(outcomes: Mapping[WriteOutcome, int]) -> str:
    from syncbeat_server.sync.model import WriteOutcome

    return (
        f"{outcomes.get(WriteOutcome.WRITTEN, 0)} written, {outcomes.get(WriteOutcome.SUPERSEDED, 0)} left since what "
        f"is here is newer, {outcomes.get(WriteOutcome.UNCHANGED, 0)} left since it is the same"
    )


def _say(text: str) -> None:
    print(f"syncbeat-server: {text}", file=sys.stderr, flush=True)
