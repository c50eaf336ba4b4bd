"""Names the rows of processes that the retention task deletes."""

from __future__ import annotations

from syncbeat_server.status.store import process_rows
from syncbeat_server.storage.retention import RetentionRule

OLD_ROWS = (RetentionRule("process_status", process_rows.delete_old, every_s=600.0),)
