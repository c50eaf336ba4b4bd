"""Names the rows of sessions that the retention task deletes."""

from __future__ import annotations

from syncbeat_server.auth.store import sessions
from syncbeat_server.storage.retention import RetentionRule

OLD_ROWS = (RetentionRule("sessions", sessions.delete_expired),)
