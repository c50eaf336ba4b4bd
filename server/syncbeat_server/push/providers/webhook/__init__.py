"""Sends deliveries to an HTTP relay of the operator."""

from syncbeat_server.push.providers.webhook.client import RelayAddress, WebhookProvider

__all__ = ["RelayAddress", "WebhookProvider"]
