"""The Python client of Syncbeat: `SyncbeatClient` calls, `SmartSync` keeps a device in sync, `watch` follows changes,
`Session` keeps a user's token fresh, `explain` reads errors.

Messages are the generated ones, in `syncbeat.v1`.
"""

from syncbeat.boottime_clock import SyncClock
from syncbeat.call_interceptors import Token
from syncbeat.client import SyncbeatClient
from syncbeat.client_options import ClientRule
from syncbeat.cursor_state import SyncBatch
from syncbeat.errors import ErrorDetails, Violation, explain
from syncbeat.session import Session
from syncbeat.session_tokens import SessionStorage, SessionTokens, SignedOut
from syncbeat.smart_sync import SmartSync
from syncbeat.watch import Watch, WatchEvent

__all__ = [
    "ClientRule",
    "ErrorDetails",
    "Session",
    "SessionStorage",
    "SessionTokens",
    "SignedOut",
    "SmartSync",
    "SyncBatch",
    "SyncClock",
    "SyncbeatClient",
    "Token",
    "Violation",
    "Watch",
    "WatchEvent",
    "explain",
]
