"""Encodes a delivery as the JSON that a relay receives."""

from __future__ import annotations

import orjson

from syncbeat_server.push.providers import Message


def encode(message: Message) -> bytes:
    """Return the body of the request."""
    delivery, content = message.delivery, message.content
    return orjson.dumps(
        {
            "delivery_id": delivery.delivery_id,
            "ack_token": message.ack_token,
            "kind": delivery.kind,
            "platform": delivery.platform,
            "registration_token": delivery.registration_token,
            "ttl_s": delivery.provider_ttl_s,
            "priority": delivery.lane.name,
            "collapse_key": delivery.collapse_key,
            "type": delivery.type,
            "cursor": {"scope": delivery.scope, "epoch": delivery.epoch, "sequence": delivery.sequence},
            "other_scopes": delivery.other_scopes,
            "content": content,
        }
    )
