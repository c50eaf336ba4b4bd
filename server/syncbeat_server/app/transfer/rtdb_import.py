"""Wires imports of the Realtime Database: opens the database as the service does, and runs one import."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path

import orjson

from syncbeat_server.app.transfer.export import open_transfer
from syncbeat_server.app.tuning import goal_of
from syncbeat_server.clock import SystemClock
from syncbeat_server.directory.model import Member, Registration
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.garbage_collector import spare_started_process
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.sync.model import NewChange
from syncbeat_server.sync.tuning.price_updates import HintTuner
from syncbeat_server.transfer.export_faults import require_file
from syncbeat_server.transfer.importing.batches import BatchReader, ImportSource
from syncbeat_server.transfer.importing.importer import Importer, Progress
from syncbeat_server.transfer.importing.report import ImportReport
from syncbeat_server.transfer.importing.throttle import DEFAULT_THROTTLE
from syncbeat_server.transfer.mapping.map_file import MAX_MAP_OCTETS, parse_map
from syncbeat_server.transfer.mapping.rules import TransferMap

_FORMAT = 1
"""A part of what an import is known by; raised when the same export and map come to write something else."""
_CHECKED_PLACES = 1_000


@dataclass(frozen=True)
class ImportRequest:
    """Says what to import: a file, its map, the app, and the time as of which the export was made.

    `values_only`: members, devices and preferences, which have no time that could be compared, are left out.
    """

    export: Path
    transfer_map: TransferMap
    app_id: str
    source_time: datetime
    target_s: float = DEFAULT_THROTTLE.target_s
    values_only: bool = False

    @property
    def source(self) -> ImportSource:
        """Return what the import is made from."""
        used = self.transfer_map.values_only() if self.values_only else self.transfer_map
        return ImportSource(used, self.app_id, self.source_time)


OnOctets = Callable[[int, Progress], None]
"""Hears after each batch how many octets of the file are read, and how far the import is."""


def read_map(path: Path) -> TransferMap:
    """Return the map of a file. Raises ConfigurationError: it cannot be read, or is at fault."""
    try:
        with path.open("rb") as file:
            octets = file.read(MAX_MAP_OCTETS + 1)
        return parse_map(octets.decode(), str(path))
    except OSError as error:
        raise ConfigurationError(f"--map: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--map: {path}: not UTF-8") from error


def check_export(request: ImportRequest, on_octets: OnOctets) -> ImportReport:
    """Read an export as an import does, and return the report of what does not fit; nothing is written or asked.

    Targets that fit are counted as `written`, `members`, `devices` and `preferences`.

    Raises:
        ConfigurationError: the export cannot be read, or is broken.
    """
    report, places = ImportReport(), 0
    with _opened(request.export) as export:
        reader = BatchReader(request.source, export)
        while (batch := reader.next_batch(_CHECKED_PLACES)) is not None:
            for item in batch.items:
                if isinstance(item.target, NewChange):
                    report.written += 1
                elif isinstance(item.target, Member):
                    report.members += 1
                elif isinstance(item.target, Registration):
                    report.devices += 1
                else:
                    report.preferences += 1
            report.add_misfits(one.misfit for one in batch.misfits)
            places = batch.places
            on_octets(export.tell(), Progress(places, report))
    return report


async def import_rtdb(
    database_url: str, settings: AppSettings, request: ImportRequest, on_octets: OnOctets
) -> ImportReport:
    """Import an export into an app, on from where an earlier run of the same import was ended.

    Raises:
        ConfigurationError: the login is not the service's, the export is broken, or another process runs this import.
        DependencyDown: the database does not answer.
        MigrationNeeded: it is of another version.
    """
    clock = SystemClock()
    async with open_transfer(database_url, name="syncbeat-import") as database:
        tuner = HintTuner(database, lambda: {request.app_id: goal_of(settings)}, tuple, clock)
        await tuner.read()
        spare_started_process()
        with _opened(request.export) as export:
            importer = Importer(
                database,
                clock,
                request.source,
                _import_id(request, export),
                lambda app_id: tuner.tuning(app_id).prior,
                replace(DEFAULT_THROTTLE, target_s=request.target_s),
            )
            return await importer.run(export, request.export.name, lambda progress: on_octets(export.tell(), progress))


def _opened(path: Path) -> BufferedReader:
    require_file(path)
    try:
        file = path.open("rb")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    return file


def _import_id(request: ImportRequest, export: BufferedReader) -> str:
    """Return the digest of all that decides what is written. The file's name is none of it."""
    content = hashlib.file_digest(export, "sha256").hexdigest()
    export.seek(0)
    parts = [_FORMAT, content, request.transfer_map.text, request.source_time.astimezone(UTC).isoformat()]
    if request.values_only:
        parts.append("values only")
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()
