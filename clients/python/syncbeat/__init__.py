"""The Python client of Syncbeat: `SyncbeatClient` calls, `watch` follows changes, `Session` keeps a user's
token fresh, `explain` reads errors.

Messages are the generated ones, in `syncbeat.v1`.
"""

from syncbeat.client import SyncbeatClient, Token
from syncbeat.errors import ErrorDetails, Violation, explain
from syncbeat.session import Session, SessionStorage, SessionTokens, SignedOut
from syncbeat.watch import Watch, WatchEvent

__all__ = [
    "ErrorDetails",
    "Session",
    "SessionStorage",
    "SessionTokens",
    "SignedOut",
    "SyncbeatClient",
    "Token",
    "Violation",
    "Watch",
    "WatchEvent",
    "explain",
]
