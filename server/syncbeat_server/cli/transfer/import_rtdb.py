"""Subcommand `import-rtdb`: import an export of the Realtime Database by a map (docs/migrate/import.md)."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.deployment.target import number_between
from syncbeat_server.cli.startup import open_stores, read_settings
from syncbeat_server.cli.transfer.chosen_app import add_app_option, chosen_app
from syncbeat_server.cli.transfer.exit_status import LEFT_OUT
from syncbeat_server.cli.transfer.source_time import check_source_time, source_time
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.app.transfer.rtdb_import import ImportRequest
    from syncbeat_server.ops.settings.server import Settings
    from syncbeat_server.transfer.importing.report import ImportReport

_LEAST_TARGET_MS, _TARGET_MS, _MOST_TARGET_MS = 10.0, 250.0, 2_000.0


def add_import_rtdb(commands: Any) -> None:
    """Add the subcommand to the parser."""
    command = commands.add_parser(
        "import-rtdb",
        help="import an export of Firebase's Realtime Database, by a map",
        description="Import a JSON export of Firebase's Realtime Database into an app, as the service's login. It can "
        "be ended at any time, and goes on when it is run again; a second run changes no value. Devices are not "
        "woken, and nothing is pushed. Exits 0 if all of it fits, and 3 if something does not, which is left out and "
        "listed, or if the map takes nothing of it.",
    )
    command.add_argument("export", type=Path, metavar="EXPORT.json", help="the export, of the whole tree or a part")
    command.add_argument("--map", type=Path, required=True, metavar="MAP.toml", help="from paths to scopes and keys")
    add_app_option(command)
    command.add_argument(
        "--source-time",
        type=source_time,
        metavar="TIME",
        help="when the export was begun, as 2026-01-31T12:00:00Z: what was written since then is never overwritten. "
        "Needed unless --dry-run",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="write nothing, ask no database; tell what does not fit the map"
    )
    command.add_argument(
        "--values-only",
        action="store_true",
        help="leave out members, devices and preferences: for every export but the first, since those that were "
        "removed here after it was begun would come back",
    )
    command.add_argument(
        "--batch-ms",
        type=number_between(_LEAST_TARGET_MS, _MOST_TARGET_MS),
        default=_TARGET_MS,
        metavar="MS",
        help="milliseconds that a transaction may take: smaller is gentler to live writers (default: %(default)g)",
    )
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from syncbeat_server.app.transfer.rtdb_import import ImportRequest, check_export, read_map
    from syncbeat_server.cli.transfer.progress import Watch

    transfer_map = read_map(parsed.map)
    if parsed.source_time is None and not parsed.dry_run:
        raise ConfigurationError("--source-time: say when the export was begun, as --source-time 2026-01-31T12:00:00Z")
    if parsed.source_time is not None:
        check_source_time(parsed.source_time)
    moment = parsed.source_time or datetime.now(UTC)  # noqa: TID251  # of a dry run, which writes it nowhere
    target_s = parsed.batch_ms / 1_000
    settings = None if parsed.dry_run else read_settings()  # what fits depends on no setting, and on no app
    app_id = DEFAULT_APP if settings is None else chosen_app(settings, parsed.app)
    request = ImportRequest(parsed.export, transfer_map, app_id, moment, target_s, parsed.values_only)
    if settings is None:
        with Watch(parsed.export) as watch:
            report = check_export(request, watch.show)
        _print_misfits(report)
        print(f"syncbeat-server: would import {_targets(report)}; nothing was written")
        return _status(report)
    report = _import(settings, request)
    _print_misfits(report)
    changed = f"{report.changed} changed, by all runs of it"
    print(f"syncbeat-server: imported into app {app_id!r}: {_targets(report)}; {changed}")
    print(
        f"syncbeat-server: left as they are: {report.unchanged} values unchanged, {report.superseded} newer in the "
        f"feed, {report.present} members, devices and preferences there already"
    )
    return _status(report)


def _status(report: ImportReport) -> int:
    if not report.taken:
        print("syncbeat-server: the export has nothing that a rule of the map takes: is it empty, or of another tree?")
    return LEFT_OUT if report.misfit_total or not report.taken else 0


def _import(settings: Settings, request: ImportRequest) -> ImportReport:
    import asyncio

    from syncbeat_server.app.transfer.rtdb_import import import_rtdb
    from syncbeat_server.cli.transfer.progress import Watch

    app = settings.all_apps()[request.app_id]
    with open_stores(settings) as (stores, _), Watch(request.export) as watch:
        return asyncio.run(import_rtdb(stores.database_url, app, request, watch.show))


def _targets(report: ImportReport) -> str:
    return (
        f"{report.written} values, {report.members} members, {report.devices} devices, {report.preferences} preferences"
    )


def _print_misfits(report: ImportReport) -> None:
    rows = sorted(report.misfits.items(), key=lambda row: (-row[1].count, row[0]))
    for (pattern, reason), found in rows:
        print(f"{found.count:>12}  {pattern}  {reason.value}  (first: {found.example})")
    if rows:
        print(f"syncbeat-server: {report.misfit_total} places do not fit, as listed")
