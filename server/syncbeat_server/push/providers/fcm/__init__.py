"""Firebase Cloud Messaging, HTTP v1."""

from syncbeat_server.push.providers.fcm.sender import FcmProvider

__all__ = ["FcmProvider"]
