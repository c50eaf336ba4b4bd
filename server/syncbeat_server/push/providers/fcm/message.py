"""Encodes deliveries as FCM v1 messages, with firebase-admin's own encoder and its checks (ADRs 37, 87).

The encoder takes several times as long as the rest of a message, and most of a message is the same for all devices of a
notification. So a form with marks in place of what differs is encoded once, and filled in for each device.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections import OrderedDict
from datetime import timedelta
from operator import attrgetter
from typing import Any

import orjson
from firebase_admin import messaging

from syncbeat_server.push.model import MAX_OTHER_SCOPES, ClaimedDelivery, Content, Kind, Lane
from syncbeat_server.push.providers import Message

_MAX_TTL_S = 2_419_200  # four weeks, FCM's own limit
_SYNC_COLLAPSE_KEY = "sync"
_MAX_COLLAPSE_ID = 64
_FORMS = 1_000
_BARE = Content()
_MAX_OTHERS_BYTES = 1_024
_ALL_SCOPES = "*"

# Unguessable, so that no content can hold one.
_MARK = secrets.token_hex(8)
_TOKEN, _DELIVERY, _ACK, _TTL, _EXPIRY = (f"{_MARK}{part}{_MARK}" for part in "tdaxe")
_SCOPE, _EPOCH, _SEQUENCE, _OTHERS = (f"{_MARK}{part}{_MARK}" for part in "oqsr")
_fields = attrgetter(*Content.__slots__)  # as a tuple, which is encoded in a third of the time
_SPLIT = re.compile(f"({_MARK}[tdaxeoqsr]{_MARK})")


class Encoder:
    """Encodes messages, and caches the forms of the last thousand contents."""

    def __init__(self) -> None:
        self._forms: OrderedDict[tuple[object, ...], list[str]] = OrderedDict()

    def encode(self, message: Message) -> bytes:
        """Return the body of `messages:send`.

        Messages that are to replace each other on the screen have the same Android tag, apns-collapse-id and web tag:
        all messages of one collapse key on a device; without a key, the two copies that an ambiguous failure may have
        made.

        Raises:
            ValueError: the message breaks FCM's rules.
        """
        delivery = message.delivery
        ttl_s = min(_MAX_TTL_S, delivery.provider_ttl_s)
        values = {
            _TOKEN: delivery.registration_token,
            _DELIVERY: delivery.delivery_id,
            _ACK: message.ack_token,
            _TTL: str(ttl_s),
            # 0 to APNs: try once and do not keep it.
            _EXPIRY: str(int(delivery.claimed_at.timestamp()) + ttl_s) if ttl_s else "0",
        }
        if delivery.kind is Kind.SYNC:
            values |= {_SCOPE: delivery.scope, _EPOCH: delivery.epoch, _SEQUENCE: str(delivery.sequence)}
        if delivery.other_scopes:
            values[_OTHERS] = _other_scopes(delivery, message.content)
        escaped = {mark: orjson.dumps(value)[1:-1].decode() for mark, value in values.items()}
        pieces = self._form(message).copy()
        pieces[1::2] = [escaped[mark] for mark in pieces[1::2]]
        return "".join(pieces).encode()

    def _form(self, message: Message) -> list[str]:
        delivery, content = message.delivery, message.content
        # By content, not by notification: silent ones, and those rendered in one locale, are the same for many.
        others, shown = bool(delivery.other_scopes), orjson.dumps(_fields(content))
        key = (delivery.kind, delivery.type, delivery.collapse_key, delivery.lane, others, shown)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = _SPLIT.split(_form_text(delivery, content))
            if len(self._forms) > _FORMS:
                self._forms.popitem(last=False)
        else:
            self._forms.move_to_end(key)
        return form


def _form_text(delivery: ClaimedDelivery, content: Content) -> str:
    # The SDK requires one target and deprecates the registration token, which FCM accepts: a topic stands in for it.
    message: dict[str, Any] = json.loads(str(_message(delivery, content)))
    del message["topic"]
    message["token"] = _TOKEN
    message["android"]["ttl"] = f"{_TTL}s"
    return orjson.dumps({"message": message}).decode()


def _message(delivery: ClaimedDelivery, content: Content) -> messaging.Message:
    shown = content.visible
    return messaging.Message(
        topic="placeholder",
        data=_data(delivery, content),
        notification=_notification(content) if shown else None,
        android=_android(delivery, content, shown=shown),
        apns=_apns(delivery, content, shown=shown),
        webpush=_webpush(delivery, content, shown=shown),
    )


def _data(delivery: ClaimedDelivery, content: Content) -> dict[str, str]:
    own = {"delivery_id": _DELIVERY, "ack_token": _ACK}
    if delivery.kind is Kind.SYNC:
        own |= {
            "syncbeat": "sync",
            "type": delivery.type,
            "scope": _SCOPE,
            "epoch": _EPOCH,
            "sequence": _SEQUENCE,
        }
    if delivery.other_scopes:
        own["other_scopes"] = _OTHERS
    # For platforms without a field for it: an Android app resets its badge, or opens a URL, by these.
    if content.link:
        own["click_action"] = content.link
    if content.badge_only:
        own["badge"] = str(content.badge)
    return {**content.data, **own}


def _other_scopes(delivery: ClaimedDelivery, content: Content) -> str:
    """Return the names of the other scopes to look at as a JSON list, or '*' where there is no room for them."""
    names = orjson.dumps(delivery.other_scopes).decode()
    fits = len(delivery.other_scopes) <= MAX_OTHER_SCOPES and len(orjson.dumps(names)) <= _MAX_OTHERS_BYTES
    return names if fits and content == _BARE else _ALL_SCOPES


def _notification(content: Content) -> messaging.Notification:
    return messaging.Notification(
        title=content.title or None, body=content.body or None, image=content.image_url or None
    )


def _android(delivery: ClaimedDelivery, content: Content, *, shown: bool) -> messaging.AndroidConfig:
    # One key for all wake-ups, which name each other's scopes: FCM stores only four per device, and messages need some.
    silent = delivery.kind is Kind.SYNC and not content.is_alert
    collapse_key = delivery.collapse_key or (_SYNC_COLLAPSE_KEY if silent else None)
    notification = messaging.AndroidNotification(
        tag=delivery.collapse_key or _DELIVERY,
        sound=content.sound or None,
        default_sound=None if content.sound else True,
        # An intent. If the app does not have it, nothing opens at all, and it has none with the name of a URL.
        click_action=None if content.link else content.click_action or None,
        channel_id=content.channel_id or None,
        notification_count=content.badge or None,  # 0 means "one more" to FCM
    )
    return messaging.AndroidConfig(
        collapse_key=collapse_key,
        priority="high" if delivery.lane is Lane.HIGH else "normal",
        ttl=timedelta(),  # the encoder accepts no mark as a duration: it is put in afterwards
        notification=notification if shown else None,
    )


def _apns(delivery: ClaimedDelivery, content: Content, *, shown: bool) -> messaging.APNSConfig:
    # An "alert" of APNs is shown, heard, or changes the badge; iOS may drop "background" ones.
    alert = shown or content.badge_only
    headers = {
        "apns-collapse-id": _collapse_id(delivery.collapse_key) if delivery.collapse_key else _DELIVERY,
        "apns-expiration": _EXPIRY,
        "apns-push-type": "alert" if alert else "background",
        "apns-priority": "10" if alert and delivery.lane is Lane.HIGH else "5",
    }
    aps = messaging.Aps(
        content_available=None if shown or (alert and not content.data) else True,
        sound=content.sound or ("default" if shown else None),  # without one iOS is silent
        badge=content.badge,
        category=None if content.link else content.click_action or None,
        mutable_content=True if content.image_url else None,
    )
    return messaging.APNSConfig(headers=headers, payload=messaging.APNSPayload(aps))


def _webpush(delivery: ClaimedDelivery, content: Content, *, shown: bool) -> messaging.WebpushConfig:
    # RFC 8030: TTL, Urgency, and Topic, which replaces what the push service still holds. A notification's tag replaces
    # an earlier one of the same name on the screen.
    headers = {"TTL": _TTL, "Urgency": "high" if delivery.lane is Lane.HIGH else "normal"}
    if delivery.collapse_key:
        headers["Topic"] = _topic(delivery.collapse_key)
    link = content.link if content.link.startswith("https://") else None  # FCM accepts no other schemes
    return messaging.WebpushConfig(
        headers=headers,
        notification=messaging.WebpushNotification(tag=delivery.collapse_key or _DELIVERY) if shown else None,
        fcm_options=messaging.WebpushFCMOptions(link=link) if link and shown else None,
    )


def _collapse_id(key: str) -> str:
    # A header of at most 64 bytes (Apple, "Sending notification requests to APNs"): a key that fits stays as it is.
    plain = len(key) <= _MAX_COLLAPSE_ID and key.isascii() and key.isprintable()
    return key if plain else hashlib.sha256(key.encode()).hexdigest()


def _topic(key: str) -> str:
    # RFC 8030, 5.4: at most 32 characters of base64url, so 24 bytes of a digest.
    return base64.urlsafe_b64encode(hashlib.sha256(key.encode()).digest()[:24]).decode()
