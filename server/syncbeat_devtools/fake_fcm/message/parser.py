"""Validates a send as FCM does, and extracts the parts that the ledger needs.

Sources: the reference of `projects.messages` (ttl, topics, the reserved data keys), and "Message too big" in the
reference of `ErrorCode` (4096 bytes, 2048 to a topic, keys and values together).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from syncbeat_devtools.fake_fcm.message.schema import Violation, parse_send

_MAX_BYTES = 4096
_MAX_TOPIC_BYTES = 2048
_MAX_TTL_S = 2_419_200


class TargetKind(StrEnum):
    """The fields that can name the recipient."""

    TOKEN = "token"
    FID = "fid"
    TOPIC = "topic"
    CONDITION = "condition"


class Message(NamedTuple):
    """A send that passed validation.

    Attributes:
        target_kind: the field that names the recipient.
        target: the registration token, installation id, topic or condition.
        body: the request body as received.
        validate_only: a dry run.
        display: it has something to show: a notification block for any platform, or an APNs alert.
        slot: the tag (Android, web) or apns-collapse-id; a later message with the same slot replaces this one on
            the screen.
        delivery_id: the value of `data.delivery_id`.
    """

    target_kind: TargetKind
    target: str
    body: bytes
    validate_only: bool
    display: bool
    slot: str | None
    delivery_id: str | None


_TARGETS = tuple((kind, kind.value) for kind in TargetKind)
_DEVICE = re.compile(r"[\x21-\x7e]{1,4096}")
_TOPIC = re.compile(r"(/topics/)?[a-zA-Z0-9\-_.~%]{1,900}")
_RESERVED_KEYS = frozenset({"from", "message_type", "gcm", "collapse_key"})
_NOTHING: dict[str, Any] = {}


def parse_message(body: bytes) -> Message:
    """Validate and parse the body of a send.

    Raises:
        Violation: FCM would refuse it.
    """
    root = parse_send(body)
    message = root.get("message") or _NOTHING
    kind, target = _target(message)
    android = message.get("android") or _NOTHING
    apns = message.get("apns") or _NOTHING
    web = (message.get("webpush") or _NOTHING).get("notification")
    ttl = android.get("ttl")
    if ttl is not None and float(ttl[:-1]) > _MAX_TTL_S:
        raise Violation("message.android.ttl", "Invalid TTL: must be at most 2419200 seconds", as_fcm=True)
    data = android.get("data") or message.get("data") or _NOTHING
    for key in data:
        if key in _RESERVED_KEYS or key.startswith(("google.", "gcm.")):
            raise Violation("message.data", f"Invalid data payload key: {key}", as_fcm=True)
    if len(body) > _MAX_TOPIC_BYTES:
        _check_size(message, kind, data)
    aps = (apns.get("payload") or _NOTHING).get("aps")
    alert = aps.get("alert") if type(aps) is dict else None
    shown = android.get("notification")
    return Message(
        kind,
        target,
        body,
        bool(root.get("validate_only") or root.get("validateOnly")),
        not (message.get("notification") is shown is web is None) or bool(alert),
        _slot((shown or _NOTHING).get("tag"), apns, web or _NOTHING),
        data.get("delivery_id"),
    )


def _target(message: dict[str, Any]) -> tuple[TargetKind, str]:
    found = [(kind, message[name]) for kind, name in _TARGETS if message.get(name)]
    if not found:
        raise Violation("message", "Recipient of the message is not set.", as_fcm=True)
    if len(found) > 1:
        name = found[1][0]
        text = f"Invalid value at 'message' (oneof), oneof field 'target' is already set. Cannot set '{name}'"
        raise Violation("message", text)
    kind, target = found[0]
    if kind is TargetKind.TOPIC and not _TOPIC.fullmatch(target):
        raise Violation("message.topic", "Invalid topic name", as_fcm=True)
    if kind in (TargetKind.TOKEN, TargetKind.FID) and not _DEVICE.fullmatch(target):
        raise Violation(None, "The registration token is not a valid FCM registration token", as_fcm=True)
    return kind, target


def _slot(tag: str | None, apns: dict[str, Any], web: dict[str, Any]) -> str | None:
    slot = tag or (apns.get("headers") or _NOTHING).get("apns-collapse-id") or web.get("tag")
    return slot if type(slot) is str else None  # what a web notification holds is not checked


def _check_size(message: dict[str, Any], kind: TargetKind, data: dict[str, str]) -> None:
    """Refuse a message that is too big for one of the platforms. `data` is the data that an Android device receives.

    Android receives keys and values. APNs and web push receive JSON, in which a quote or a line break takes two bytes.
    """
    limit = _MAX_TOPIC_BYTES if kind in (TargetKind.TOPIC, TargetKind.CONDITION) else _MAX_BYTES
    shown = message.get("notification")
    android = message.get("android") or _NOTHING
    sizes = {
        "Android": _text_bytes(data) + _text_bytes(shown) + _text_bytes(android.get("notification")),
        "APNS": _apns_bytes(message.get("data"), shown or _NOTHING, message.get("apns") or _NOTHING),
        "Web Push": _web_bytes(message.get("data"), shown or _NOTHING, message.get("webpush") or _NOTHING),
    }
    for platform, size in sizes.items():
        if size > limit:
            raise Violation("message", f"{platform} message is too big", as_fcm=True)


def _apns_bytes(data: dict[str, str] | None, shown: dict[str, Any], apns: dict[str, Any]) -> int:
    """Return the size of the payload that FCM builds for APNs: the given one with texts as its alert, and the data."""
    payload = apns.get("payload")
    if not payload:
        return 0
    aps = payload.get("aps")
    aps = dict(aps) if type(aps) is dict else {}
    alert = {name: shown[name] for name in ("title", "body") if shown.get(name)}
    if alert and type(aps.get("alert", _NOTHING)) is dict:
        aps["alert"] = {**alert, **aps.get("alert", _NOTHING)}
    image = (apns.get("fcm_options") or _NOTHING).get("image") or shown.get("image")
    options = {"fcm_options": {"image": image}} if image else {}
    return len(orjson.dumps({**(data or _NOTHING), **payload, "aps": aps, **options}))


def _web_bytes(data: dict[str, str] | None, shown: dict[str, Any], web: dict[str, Any]) -> int:
    """Return the size of the payload that FCM builds for a browser."""
    if not web:
        return 0
    notification = {**shown, **(web.get("notification") or _NOTHING)}
    link = (web.get("fcm_options") or _NOTHING).get("link")
    parts = {
        "data": {**(data or _NOTHING), **(web.get("data") or _NOTHING)},
        "notification": notification,
        "fcmOptions": {"link": link} if link else {},
    }
    return len(orjson.dumps({name: part for name, part in parts.items() if part}))


def _text_bytes(value: Any) -> int:
    """Return the size in UTF-8 of all keys and values below `value`."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(len(key.encode()) + _text_bytes(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(_text_bytes(inner) for inner in value)
    return 0 if value is None else len(orjson.dumps(value))
