"""Trees of the Realtime Database as they are stored by a map, and exports of them."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from typing import Any

from syncbeat_server.clock import SystemClock
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.snapshot import open_snapshot
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.transfer.compare.comparison import Difference
from syncbeat_server.transfer.compare.entries import SpooledExport, spool_export
from syncbeat_server.transfer.compare.mending import changes_of, feed_writer, mend
from syncbeat_server.transfer.compare.spool import EntryKind, Spool, open_spool
from syncbeat_server.transfer.compare.verification import Verification
from syncbeat_server.transfer.export.app_document import AppSelection
from syncbeat_server.transfer.export.tree_document import ExportedTree, spool_tree, write_tree
from syncbeat_server.transfer.export.tree_spool import open_tree_spool
from syncbeat_server.transfer.importing.batches import ImportSource
from syncbeat_server.transfer.importing.importer import Importer
from syncbeat_server.transfer.importing.report import ImportReport
from syncbeat_server.transfer.importing.throttle import ThrottleRule
from syncbeat_server.transfer.mapping.rules import TransferMap
from syncbeat_server.transfer.model import Path

PATIENT = ThrottleRule(target_s=30.0)
"""A busy machine shrinks no batch."""
_DEFAULT_APP = AppSelection("default")


async def store_export(
    database: Database, text: str, transfer_map: TransferMap, at: datetime, app_id: str = "default"
) -> ImportReport:
    """Import an export as of this time."""
    import_id = hashlib.sha256(f"{text}{transfer_map.text}{at}".encode()).hexdigest()
    source = ImportSource(transfer_map, app_id, at)
    importer = Importer(database, SystemClock(), source, import_id, lambda _: DEFAULT_PRIOR, PATIENT)
    return await importer.run(io.BytesIO(text.encode()), "export.json", lambda _: None)


async def exported_tree(
    database: Database, transfer_map: TransferMap, selected: AppSelection = _DEFAULT_APP
) -> tuple[ExportedTree, str]:
    """Return the tree that is exported by a map, as text, with its counts."""
    parts: list[str] = []
    with open_tree_spool(None) as spool:
        async with open_snapshot(database) as snapshot:
            counts = await spool_tree(snapshot, selected, transfer_map, spool)
        write_tree(spool, parts.append)
    return counts, "".join(parts)


class Comparing:
    """A comparison of an export's text with a database, which can be repeated and mended."""

    def __init__(
        self,
        database: Database,
        text: str,
        transfer_map: TransferMap,
        at: datetime | None = None,
        app_id: str = "default",
    ) -> None:
        self.database = database
        self.text = text
        self.transfer_map = transfer_map
        self.at = at
        self.app_id = app_id
        self.export: SpooledExport | None = None
        self.verification: Verification | None = None

    async def differences(self, spool: Spool | None = None) -> list[tuple[Difference, Path]]:
        """Compare and return what differs."""
        if spool is None:
            with open_spool(None) as own:
                return await self.differences(own)
        with closing(io.BytesIO(self.text.encode())) as file:
            self.export = spool_export(file, self.transfer_map, self.app_id, spool)
        self.verification = Verification(self.transfer_map, self.app_id, spool, self.export, self.at)
        async with open_snapshot(self.database) as snapshot:
            return [found async for found in self.verification.differences(snapshot, lambda *_: None)]

    async def told(self) -> set[tuple[str, str, bool]]:
        """Compare and return each difference as its path, how it differs, and if what is here is newer."""
        return {("/".join(path), one.finding.value, one.is_newer) for one, path in await self.differences()}

    async def reconcile(self) -> dict[str, int]:
        """Mend what differs, and return the outcomes."""
        with open_spool(None) as spool:
            return await self.mend(await self.differences(spool), spool)

    async def mend(self, differences: list[tuple[Difference, Path]], spool: Spool) -> dict[str, int]:
        """Mend what was found to differ, and return the outcomes."""
        assert self.verification is not None
        assert self.verification.as_of is not None
        self.verification.note_wanted([one for one, _ in differences])
        file = io.BytesIO(self.text.encode())
        changes = changes_of(file, self.transfer_map, self.app_id, spool, self.verification.as_of)
        outcomes = await mend(changes, feed_writer(self.database, self.app_id), SystemClock())
        return {outcome.value: count for outcome, count in outcomes.items()}

    def count(self, kind: EntryKind = EntryKind.VALUE) -> tuple[int, int]:
        """Return the numbers of entries here and in the export that were compared last."""
        assert self.verification is not None
        sums = self.verification.totals[kind]
        return sums.here.count, sums.there.count


def exact(text: str) -> Any:
    """Return a document with its numbers as they are written."""
    return json.loads(text, parse_float=Decimal)
