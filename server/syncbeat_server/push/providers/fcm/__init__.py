"""Firebase Cloud Messaging, HTTP v1."""

from syncbeat_server.push.providers.fcm.credentials import AccessTokens
from syncbeat_server.push.providers.fcm.sender import FcmProvider

__all__ = ["AccessTokens", "FcmProvider"]
