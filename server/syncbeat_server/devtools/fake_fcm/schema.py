"""The fields of a send, and the check of a request against them as Google's JSON front end makes it.

Source: the reference of `projects.messages` of the HTTP v1 API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import orjson

from syncbeat_server.devtools.fake_fcm.answers import Answer, bad_request, fcm_error, google_error

# Protobuf's JSON parsers take no deeper nesting.
_MAX_DEPTH = 100
_SHOWN_CHARS = 100
_DURATION = re.compile(r"\d{1,12}(\.\d{1,9})?s")


class Violation(Exception):
    """A bad request: 400 INVALID_ARGUMENT.

    Attributes:
        field: path of the bad field, for a BadRequest detail; None for none.
        as_fcm: add FcmError: FCM itself refused it, not the front end that parses requests.
    """

    def __init__(self, field: str | None, description: str, *, as_fcm: bool = False) -> None:
        super().__init__(description)
        self.field = field
        self.description = description
        self.as_fcm = as_fcm

    def answer(self) -> Answer:
        """What Google answers."""
        details = [fcm_error("INVALID_ARGUMENT")] if self.as_fcm else []
        if self.field is not None or not self.as_fcm:
            details.append(bad_request(self.field, self.description))
        return google_error(400, "INVALID_ARGUMENT", self.description, details)


class Type(Enum):
    """Types of fields; the values are the names in Google's messages."""

    STRING = "TYPE_STRING"
    BOOL = "TYPE_BOOL"
    NUMBER = "TYPE_INT32"
    DURATION = "type.googleapis.com/google.protobuf.Duration"
    STRUCT = "type.googleapis.com/google.protobuf.Struct"
    STRINGS = "TYPE_STRING[]"
    DURATIONS = "type.googleapis.com/google.protobuf.Duration[]"
    STRING_MAP = "map<string, string>"


# A type, the names of an enum in upper case, or the fields of a message.
Spec = Type | frozenset[str] | Mapping[str, Any]


def _fields(fields: Mapping[str, Spec]) -> Mapping[str, Spec]:
    """Proto JSON takes a field under its own name or in lowerCamelCase."""
    camel = {re.sub(r"_(.)", lambda match: match[1].upper(), name): spec for name, spec in fields.items()}
    return {**fields, **camel}


def _all(spec: Spec, names: str) -> dict[str, Spec]:
    return dict.fromkeys(names.split(), spec)


_LABEL = _fields(_all(Type.STRING, "analytics_label"))
_LIGHT_SETTINGS = _fields(
    {
        "color": _fields(_all(Type.NUMBER, "red green blue alpha")),
        **_all(Type.DURATION, "light_on_duration light_off_duration"),
    }
)
_ANDROID_NOTIFICATION = _fields(
    {
        **_all(
            Type.STRING,
            "title body icon color sound tag click_action body_loc_key title_loc_key channel_id ticker event_time"
            " image",
        ),
        **_all(
            Type.BOOL,
            "sticky local_only default_sound default_vibrate_timings default_light_settings bypass_proxy_notification",
        ),
        **_all(Type.STRINGS, "body_loc_args title_loc_args"),
        "notification_count": Type.NUMBER,
        "vibrate_timings": Type.DURATIONS,
        "light_settings": _LIGHT_SETTINGS,
        "notification_priority": frozenset(
            f"PRIORITY_{name}" for name in ("UNSPECIFIED", "MIN", "LOW", "DEFAULT", "HIGH", "MAX")
        ),
        "visibility": frozenset({"VISIBILITY_UNSPECIFIED", "PRIVATE", "PUBLIC", "SECRET"}),
        "proxy": frozenset({"PROXY_UNSPECIFIED", "ALLOW", "DENY", "IF_PRIORITY_LOWERED"}),
    }
)
_ANDROID = _fields(
    {
        **_all(Type.STRING, "collapse_key restricted_package_name"),
        **_all(Type.BOOL, "direct_boot_ok bandwidth_constrained_ok restricted_satellite_ok"),
        "priority": frozenset({"NORMAL", "HIGH"}),
        "ttl": Type.DURATION,
        "data": Type.STRING_MAP,
        "notification": _ANDROID_NOTIFICATION,
        "fcm_options": _LABEL,
    }
)
_WEBPUSH = _fields(
    {
        **_all(Type.STRING_MAP, "headers data"),
        "notification": Type.STRUCT,
        "fcm_options": _fields(_all(Type.STRING, "link analytics_label")),
    }
)
_APNS = _fields(
    {
        "headers": Type.STRING_MAP,
        "payload": Type.STRUCT,
        "fcm_options": _fields(_all(Type.STRING, "analytics_label image")),
        "live_activity_token": Type.STRING,
    }
)
_MESSAGE = _fields(
    {
        **_all(Type.STRING, "name token fid topic condition"),
        "data": Type.STRING_MAP,
        "notification": _fields(_all(Type.STRING, "title body image")),
        "android": _ANDROID,
        "webpush": _WEBPUSH,
        "apns": _APNS,
        "fcm_options": _LABEL,
    }
)
_SEND = _fields({"message": _MESSAGE, "validate_only": Type.BOOL})


def parse_send(body: bytes) -> dict[str, Any]:
    """The JSON of a send, all its fields known and of the right type.

    Raises:
        Violation: it is no such thing.
    """
    try:
        root = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Violation(None, f"Invalid JSON payload received. {error}") from error
    if type(root) is not dict:
        raise Violation(None, "Invalid JSON payload received. Root element must be a message.")
    if body.count(b"{") + body.count(b"[") > _MAX_DEPTH:
        _check_depth(root)
    _check_fields(root, _SEND, "")
    return root


def _check_depth(root: Any) -> None:
    level = [root]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if type(value) is dict:
                inner.extend(value.values())
            elif type(value) is list:
                inner.extend(value)
        if not inner:
            return
        level = inner
    raise Violation(None, "Invalid JSON payload received. Message too deep.")


def _check_fields(message: dict[str, Any], fields: Mapping[str, Spec], path: str) -> None:
    for name, value in message.items():
        spec = fields.get(name)
        if spec is None:
            where = f" at '{path}'" if path else ""
            text = f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
            raise Violation(path or None, text)
        if value is None:
            continue  # null is the same as absent
        if isinstance(spec, Type):
            if spec is not Type.STRING or type(value) is not str:
                _check_type(value, spec, f"{path}.{name}" if path else name)
        elif isinstance(spec, frozenset):
            if type(value) is not int and (type(value) is not str or value.upper() not in spec):
                raise _wrong(f"{path}.{name}", "TYPE_ENUM", value)
        elif type(value) is not dict:
            raise _wrong(f"{path}.{name}" if path else name, "TYPE_MESSAGE", value)
        else:
            _check_fields(value, spec, f"{path}.{name}" if path else name)


def _check_type(value: Any, kind: Type, path: str) -> None:
    match kind:
        case Type.STRING_MAP:
            right = type(value) is dict
            for index, item in enumerate(value.values() if right else ()):
                if type(item) is not str:
                    raise _wrong(f"{path}[{index}].value", Type.STRING.value, item)
        case Type.STRUCT:
            right = type(value) is dict
        case Type.DURATION:
            right = type(value) is str and _DURATION.fullmatch(value) is not None
        case Type.STRING:
            right = type(value) is str
        case Type.BOOL:
            right = type(value) is bool
        case Type.NUMBER:
            right = type(value) in (int, float)
        case _:
            right = type(value) is list
            inner = Type.STRING if kind is Type.STRINGS else Type.DURATION
            for index, item in enumerate(value if right else ()):
                _check_type(item, inner, f"{path}[{index}]")
    if not right:
        raise _wrong(path, kind.value, value)


def _wrong(path: str, kind: str, value: Any) -> Violation:
    shown = orjson.dumps(value).decode()[:_SHOWN_CHARS]
    return Violation(path, f"Invalid value at '{path}' ({kind}), {shown}")
