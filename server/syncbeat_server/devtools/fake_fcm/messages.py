"""Checks the body of a send as FCM does, and reads from it what the ledger needs.

Sources: the reference of `projects.messages` (fields, ttl, topics, the reserved data keys), and "Message too big" in
the reference of `ErrorCode` (4096 bytes, 2048 to a topic, keys and values together).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from syncbeat_server.devtools.fake_fcm.answers import Answer, bad_request, fcm_error, google_error

_MAX_BYTES = 4096
_MAX_TOPIC_BYTES = 2048
_MAX_TTL_S = 2_419_200


class TargetKind(StrEnum):
    """Which field names the receiver."""

    TOKEN = "token"
    FID = "fid"
    TOPIC = "topic"
    CONDITION = "condition"


class Message(NamedTuple):
    """A send that passed the checks.

    Attributes:
        target_kind: which field named the receiver.
        target: the registration token, installation id, topic or condition.
        body: the request body as it came.
        validate_only: a dry run.
        display: it has something to show: a notification block, an Android notification or an APNs alert.
        slot: the Android tag or apns-collapse-id; a later message with the same one replaces this one on screen.
        delivery_id: the value of `data.delivery_id`.
    """

    target_kind: TargetKind
    target: str
    body: bytes
    validate_only: bool
    display: bool
    slot: str | None
    delivery_id: str | None


class Violation(Exception):
    """A bad field. `as_fcm` adds the FcmError detail, which FCM sends beside the BadRequest in some cases."""

    def __init__(self, field: str | None, description: str, *, as_fcm: bool = False) -> None:
        super().__init__(description)
        self.field = field
        self.description = description
        self.as_fcm = as_fcm

    def answer(self) -> Answer:
        """400 INVALID_ARGUMENT."""
        details = [bad_request(self.field, self.description)]
        if self.as_fcm:
            details.append(fcm_error("INVALID_ARGUMENT"))
        return google_error(400, "INVALID_ARGUMENT", self.description, details)


def _both_cases(*names: str) -> frozenset[str]:
    """Proto JSON takes a field in lowerCamelCase or under its original name."""
    camel = (re.sub(r"_(.)", lambda match: match[1].upper(), name) for name in names)
    return frozenset((*names, *camel))


_ROOT_FIELDS = _both_cases("message", "validate_only")
_MESSAGE_FIELDS = _both_cases(
    "name", "data", "notification", "android", "webpush", "apns", "fcm_options", *TargetKind
)
_ANDROID_FIELDS = _both_cases(
    "collapse_key",
    "priority",
    "ttl",
    "restricted_package_name",
    "data",
    "notification",
    "fcm_options",
    "direct_boot_ok",
    "bandwidth_constrained_ok",
    "restricted_satellite_ok",
)
_TARGETS = tuple((kind, kind.value) for kind in TargetKind)
_DURATION = re.compile(r"(\d{1,12})(\.\d{1,9})?s")
_TOPIC = re.compile(r"[a-zA-Z0-9\-_.~%]+")
_RESERVED_KEYS = frozenset({"from", "message_type", "gcm"})
_PRIORITIES = frozenset({"NORMAL", "HIGH", "normal", "high", 0, 1})


def read_message(body: bytes) -> Message:
    """Check the body of a send.

    Raises:
        Violation: FCM would refuse it.
    """
    root = _object(_parse(body), "", _ROOT_FIELDS)
    message = _object(root.get("message", {}), "message", _MESSAGE_FIELDS)
    kind, target = _target(message)
    display = message.get("notification") is not None
    if display:
        _object(message["notification"], "message.notification")
    data = message.get("data")
    if data is not None:
        _check_data(data, "message.data")
    slot = None
    android = message.get("android")
    if android is not None:
        shown, slot, data = _check_android(android, data)
        display = display or shown
    apns = message.get("apns")
    if apns is not None:
        shown, collapse_id = _check_apns(apns)
        display = display or shown
        slot = slot or collapse_id
    if len(body) > _MAX_TOPIC_BYTES:
        _check_size(message, kind)
    validate_only = root.get("validate_only") or root.get("validateOnly") or False
    return Message(
        kind, target, body, validate_only is True, display, slot, None if data is None else data.get("delivery_id")
    )


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Violation(None, f"Invalid JSON payload received. {error}") from error


def _object(value: Any, path: str, known: frozenset[str] | None = None) -> dict[str, Any]:
    if type(value) is not dict:
        raise Violation(path or None, f"Invalid value at '{path}', a JSON object was expected.")
    if known is not None and not known.issuperset(value):
        name = next(name for name in value if name not in known)
        where = f' at \'{path}\'' if path else ""
        raise Violation(
            path or None, f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
        )
    return value


def _target(message: dict[str, Any]) -> tuple[TargetKind, str]:
    found: tuple[TargetKind, str] | None = None
    for kind, name in _TARGETS:
        if message.get(name) is not None:
            if found is not None:
                raise Violation(
                    "message",
                    f"Invalid value at 'message' (oneof), oneof field 'target' is already set. Cannot set '{name}'",
                )
            found = kind, message[name]
    if found is None or found[1] == "":
        raise Violation("message", "Recipient of the message is not set.", as_fcm=True)
    if type(found[1]) is not str:
        raise Violation(f"message.{found[0]}", f"Invalid value at 'message.{found[0]}' (TYPE_STRING)")
    if found[0] is TargetKind.TOPIC and not _TOPIC.fullmatch(found[1].removeprefix("/topics/")):
        raise Violation("message.topic", f"Invalid topic name: {found[1]}", as_fcm=True)
    return found


def _check_data(data: Any, path: str) -> None:
    pairs = _object(data, path)
    for index, (key, value) in enumerate(pairs.items()):
        if type(value) is not str:
            shown = orjson.dumps(value).decode()
            field = f"{path}[{index}].value"
            raise Violation(field, f"Invalid value at '{field}' (TYPE_STRING), {shown}")
        if key in _RESERVED_KEYS or key.startswith(("google.", "gcm.")):
            raise Violation(path, f"Invalid data payload key: {key}", as_fcm=True)


def _check_android(android: Any, data: Any) -> tuple[bool, str | None, Any]:
    """Whether it shows something, its tag, and the data an Android device gets."""
    config = _object(android, "message.android", _ANDROID_FIELDS)
    ttl = config.get("ttl")
    if ttl is not None:
        match = _DURATION.fullmatch(ttl) if type(ttl) is str else None
        if match is None:
            shown = orjson.dumps(ttl).decode()
            kind = "type.googleapis.com/google.protobuf.Duration"
            raise Violation("message.android.ttl", f"Invalid value at 'message.android.ttl' ({kind}), {shown}")
        if int(match[1]) > _MAX_TTL_S:
            raise Violation("message.android.ttl", "Invalid TTL: must be between 0 and 2419200 seconds", as_fcm=True)
    priority = config.get("priority")
    if priority is not None and (type(priority) not in (str, int) or priority not in _PRIORITIES):
        raise Violation("message.android.priority", f"Invalid value at 'message.android.priority', {priority!r}")
    if config.get("data") is not None:
        data = config["data"]
        _check_data(data, "message.android.data")
    notification = config.get("notification")
    if notification is None:
        return False, None, data
    tag = _object(notification, "message.android.notification").get("tag")
    if tag is not None and type(tag) is not str:
        raise Violation(
            "message.android.notification.tag", "Invalid value at 'message.android.notification.tag' (TYPE_STRING)"
        )
    return True, tag or None, data


def _check_apns(apns: Any) -> tuple[bool, str | None]:
    """Whether it shows an alert, and its apns-collapse-id."""
    config = _object(apns, "message.apns")
    headers = _object(config.get("headers", {}), "message.apns.headers")
    payload = _object(config.get("payload", {}), "message.apns.payload")
    aps = _object(payload.get("aps", {}), "message.apns.payload.aps")
    collapse_id = headers.get("apns-collapse-id")
    if collapse_id is not None and type(collapse_id) is not str:
        raise Violation("message.apns.headers[0].value", "Invalid value at 'message.apns.headers' (TYPE_STRING)")
    return bool(aps.get("alert")), collapse_id or None


def _check_size(message: dict[str, Any], kind: TargetKind) -> None:
    limit = _MAX_TOPIC_BYTES if kind in (TargetKind.TOPIC, TargetKind.CONDITION) else _MAX_BYTES
    android = message.get("android") or {}
    data = _text_bytes(message.get("data"))
    notification = _text_bytes(message.get("notification"))
    own = data if android.get("data") is None else _text_bytes(android["data"])
    if own + notification + _text_bytes(android.get("notification")) > limit:
        raise Violation("message", "Android message is too big")
    payload = (message.get("apns") or {}).get("payload")
    if payload and len(orjson.dumps(payload)) + data + notification > limit:
        raise Violation("message", "APNS message is too big")


def _text_bytes(value: Any) -> int:
    """Bytes of all keys and values below `value`, in UTF-8."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(len(key.encode()) + _text_bytes(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(_text_bytes(inner) for inner in value)
    return 0 if value is None else len(orjson.dumps(value))
