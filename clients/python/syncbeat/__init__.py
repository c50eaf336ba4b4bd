"""The Python client of Syncbeat: `SyncbeatClient` calls, `watch` follows changes, `explain` reads errors.

Messages are the generated ones, in `syncbeat.v1`.
"""

from syncbeat.client import SyncbeatClient, Token
from syncbeat.errors import ErrorDetails, Violation, explain
from syncbeat.watch import Watch, WatchEvent

__all__ = ["ErrorDetails", "SyncbeatClient", "Token", "Violation", "Watch", "WatchEvent", "explain"]
