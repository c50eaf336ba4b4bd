"""The Python client of Syncbeat: `SyncbeatClient` calls, `SmartSync` keeps a device in sync, `watch` follows changes,
`Session` keeps a user's token fresh, `explain` reads errors.

Messages are the generated ones, in `syncbeat.v1`.
"""

from syncbeat.client import SyncbeatClient, Token
from syncbeat.errors import ErrorDetails, Violation, explain
from syncbeat.feeds import SyncBatch
from syncbeat.rules import ClientRule
from syncbeat.session import Session, SessionStorage, SessionTokens, SignedOut
from syncbeat.smart_sync import SmartSync
from syncbeat.steady import SyncClock
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
