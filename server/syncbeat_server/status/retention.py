"""Names the rows of processes, of counts and of figures that the retention task deletes."""

from __future__ import annotations

from syncbeat_server.status.store import process_rows, slo_counts, slo_figures
from syncbeat_server.storage.retention import RetentionRule

OLD_ROWS = (
    RetentionRule("process_status", process_rows.delete_old, every_s=600.0),
    RetentionRule("slo_counts", slo_counts.delete_old),
    RetentionRule("slo_figures", slo_figures.delete_old, every_s=3_600.0),
)
