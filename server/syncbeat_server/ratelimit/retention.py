"""Names the rows of quotas that the retention task deletes."""

from __future__ import annotations

from syncbeat_server.ratelimit.store import quota_usage
from syncbeat_server.storage.retention import RetentionRule

OLD_ROWS = (RetentionRule("quota_usage", quota_usage.delete_old, every_s=3_600.0),)
