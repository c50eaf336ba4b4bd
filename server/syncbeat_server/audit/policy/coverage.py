"""Says of each RPC which entries it writes, or why it writes none. Pure.

A test holds this against the contract, so that a new RPC has to choose, and calls each audited one.
"""

from __future__ import annotations

from collections.abc import Mapping

from syncbeat_server.audit.model import AuditAction

AUDITED: Mapping[str, frozenset[AuditAction]] = {
    "RevokeSession": frozenset({AuditAction.SESSION_REVOKED}),
    "RevokeUser": frozenset({AuditAction.USER_REVOKED}),
    "RefreshSession": frozenset({AuditAction.REFRESH_TOKEN_REUSED}),
    "CreateLinkToken": frozenset({AuditAction.LINK_TOKEN_ISSUED}),
    "LinkIdentity": frozenset({AuditAction.IDENTITY_LINKED}),
    "RegisterDevice": frozenset({AuditAction.TOKEN_MOVED}),
    "DisableUser": frozenset({AuditAction.USER_DISABLED}),
    "EnableUser": frozenset({AuditAction.USER_ENABLED}),
    "DeleteUser": frozenset({AuditAction.USER_DELETED}),
    "SetUserTier": frozenset({AuditAction.TIER_SET}),
    "IngestEvent": frozenset(
        {AuditAction.USER_DISABLED, AuditAction.USER_ENABLED, AuditAction.USER_DELETED, AuditAction.TIER_SET}
    ),
    "RetryEvent": frozenset({AuditAction.EVENT_RETRIED}),
    "RedriveDeliveries": frozenset({AuditAction.DELIVERIES_REDRIVEN}),
}
"""The actions of which an RPC may write an entry."""

_READS = "reads only"
_TRAFFIC = "traffic of the app, whose volume has no bound; its own rows tell of it"
_OWN = "a user's or backend's routine that takes nothing from anybody else"

NOT_AUDITED: Mapping[str, str] = {
    "GetDevice": _READS,
    "ListDevices": _READS,
    "GetPreferences": _READS,
    "ListScopeMembers": _READS,
    "ListScopes": _READS,
    "GetUserTier": _READS,
    "ListSessions": _READS,
    "GetTokenCacheStats": _READS,
    "GetEvent": _READS,
    "ListEvents": _READS,
    "GetNotification": _READS,
    "ListDeliveries": _READS,
    "WatchDeliveries": _READS,
    "ListChanges": _READS,
    "GetHint": _READS,
    "WatchHints": _READS,
    "GetStatus": _READS,
    "GetSloReport": _READS,
    "ListAuditEntries": _READS,
    "PublishChanges": _TRAFFIC,
    "SendNotification": _TRAFFIC,
    "CancelNotification": _TRAFFIC,
    "AcknowledgeDelivery": _TRAFFIC,
    "ReportActivity": _TRAFFIC,
    "BoostScope": _TRAFFIC,
    "CreateSession": "each sign-in; the session's own row tells of it",
    "AddScopeMembers": "as high in volume as publishes; the member's row has the time",
    "RemoveScopeMembers": "as high in volume as publishes",
    "UnregisterDevice": _OWN,
    "SetPreferences": _OWN,
    "InvalidateTokenCache": "changes nothing: what is dropped is read again",
}
"""The reason for which an RPC writes none."""
