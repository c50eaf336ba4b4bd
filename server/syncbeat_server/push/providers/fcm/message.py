"""A delivery as an FCM v1 message, encoded and checked by firebase-admin's own encoder."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import orjson
from firebase_admin import messaging

from syncbeat_server.push.model import ClaimedDelivery, Content, Kind, Lane

_MAX_TTL_S = 2_419_200  # four weeks, FCM's own limit
_SYNC_COLLAPSE_KEY = "sync"


def encode(delivery: ClaimedDelivery) -> bytes:
    """The body of `messages:send`.

    The delivery id stands in it as Android tag, apns-collapse-id and `data.delivery_id`, so that a retry after an
    ambiguous failure replaces the first copy on the device.

    Raises:
        ValueError: the message breaks FCM's rules.
    """
    # The SDK wants one target and deprecates the registration token, which FCM itself takes: a topic stands in for it.
    message: dict[str, Any] = json.loads(str(_message(delivery)))
    del message["topic"]
    message["token"] = delivery.registration_token
    return orjson.dumps({"message": message})


def _message(delivery: ClaimedDelivery) -> messaging.Message:
    shown = bool(delivery.content.title or delivery.content.body)
    return messaging.Message(
        topic="placeholder",
        data=_data(delivery),
        notification=_notification(delivery.content) if shown else None,
        android=_android(delivery, shown=shown),
        apns=_apns(delivery, shown=shown),
    )


def _data(delivery: ClaimedDelivery) -> dict[str, str]:
    own = {"delivery_id": delivery.delivery_id}
    if delivery.kind is Kind.SYNC:
        own |= {
            "syncbeat": "sync",
            "type": delivery.type,
            "scope": delivery.scope,
            "epoch": delivery.epoch,
            "sequence": str(delivery.sequence),
        }
    return {**delivery.content.data, **own}


def _notification(content: Content) -> messaging.Notification:
    return messaging.Notification(
        title=content.title or None, body=content.body or None, image=content.image_url or None
    )


def _android(delivery: ClaimedDelivery, *, shown: bool) -> messaging.AndroidConfig:
    content = delivery.content
    collapse_key = delivery.collapse_key or (_SYNC_COLLAPSE_KEY if delivery.kind is Kind.SYNC else None)
    notification = messaging.AndroidNotification(
        tag=delivery.delivery_id,
        sound=content.sound or None,
        click_action=content.click_action or None,
        channel_id=content.channel_id or None,
        notification_count=content.badge,
    )
    return messaging.AndroidConfig(
        collapse_key=collapse_key,
        priority="high" if delivery.lane is Lane.HIGH else "normal",
        ttl=timedelta(seconds=max(0, min(_MAX_TTL_S, int(delivery.ttl_s)))),
        notification=notification if shown else None,
    )


def _apns(delivery: ClaimedDelivery, *, shown: bool) -> messaging.APNSConfig:
    content = delivery.content
    headers = {
        "apns-collapse-id": delivery.delivery_id,
        "apns-push-type": "alert" if shown else "background",
        "apns-priority": "10" if shown and delivery.lane is Lane.HIGH else "5",
    }
    aps = messaging.Aps(content_available=None if shown else True, sound=content.sound or None, badge=content.badge)
    return messaging.APNSConfig(headers=headers, payload=messaging.APNSPayload(aps))
