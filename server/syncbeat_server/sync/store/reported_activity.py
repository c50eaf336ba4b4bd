"""Stores the activity that devices report: foreground or not, idle time, network and battery."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from syncbeat_server.directory.store import devices as directory
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.model import Activity, DeviceKey


async def report_activity(conn: Connection, reports: Sequence[tuple[DeviceKey, Activity]]) -> None:
    """Store the newest report of each device; devices that are not registered are skipped."""
    newest: dict[tuple[str, str, str], str] = {device: orjson.dumps(activity).decode() for device, activity in reports}
    await directory.report_activity(conn, newest)
