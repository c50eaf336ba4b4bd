"""Sends deliveries to Firebase Cloud Messaging, HTTP v1."""

from syncbeat_server.push.providers.fcm.client import FcmProvider
from syncbeat_server.push.providers.fcm.credentials import AccessTokens

__all__ = ["AccessTokens", "FcmProvider"]
