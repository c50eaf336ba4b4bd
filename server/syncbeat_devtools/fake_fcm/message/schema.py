"""The fields of a send, and their validation as Google's JSON front end does it.

Source: the reference of `projects.messages` of the HTTP v1 API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from syncbeat_devtools.fake_fcm.responses import Response, bad_request, fcm_error, google_error

# The nesting limit of protobuf's JSON parsers.
_MAX_DEPTH = 100
_SHOWN_CHARS = 100
_DURATION_TEXT = re.compile(r"\d{1,12}(\.\d{1,9})?s")


class Violation(Exception):
    """An invalid request: 400 INVALID_ARGUMENT.

    Attributes:
        field: path of the invalid field, for a BadRequest detail; None: no field.
        as_fcm: add FcmError, because FCM itself refuses the request and not the front end that parses it.
    """

    def __init__(self, field: str | None, description: str, *, as_fcm: bool = False) -> None:
        super().__init__(description)
        self.field = field
        self.description = description
        self.as_fcm = as_fcm

    def response(self) -> Response:
        """Return Google's response."""
        details = [fcm_error("INVALID_ARGUMENT")] if self.as_fcm else []
        if self.field is not None or not self.as_fcm:
            details.append(bad_request(self.field, self.description))
        return google_error(400, "INVALID_ARGUMENT", self.description, details)


@dataclass(frozen=True)
class FieldType:
    """A type of field: its name in Google's messages, a test for values, and the type of its elements."""

    name: str
    accepts: Callable[[Any], bool]
    inner: FieldType | None = None


# A type, or the fields of a message.
FieldSpec = FieldType | Mapping[str, Any]


def _list_of(inner: FieldType) -> FieldType:
    return FieldType(f"{inner.name}[]", lambda value: type(value) is list and all(map(inner.accepts, value)), inner)


def _enum(*names: str) -> FieldType:
    """Return an enum type; its values are given by name, in any case, or by number."""
    known = frozenset(names)
    return FieldType("TYPE_ENUM", lambda value: type(value) is int or (type(value) is str and value.upper() in known))


_STRING = FieldType("TYPE_STRING", lambda value: type(value) is str)
_BOOL = FieldType("TYPE_BOOL", lambda value: type(value) is bool)
_NUMBER = FieldType("TYPE_INT32", lambda value: type(value) in (int, float))
_STRUCT = FieldType("type.googleapis.com/google.protobuf.Struct", lambda value: type(value) is dict)
_STRING_MAP = FieldType(
    "TYPE_MAP", lambda value: type(value) is dict and all(map(_STRING.accepts, value.values())), _STRING
)
_DURATION = FieldType(
    "type.googleapis.com/google.protobuf.Duration",
    lambda value: type(value) is str and _DURATION_TEXT.fullmatch(value) is not None,
)


def _fields(fields: Mapping[str, FieldSpec]) -> Mapping[str, FieldSpec]:
    """Add the lowerCamelCase name of each field, which proto JSON accepts as well."""
    camel = {re.sub(r"_(.)", lambda match: match[1].upper(), name): spec for name, spec in fields.items()}
    return {**fields, **camel}


def _each(spec: FieldSpec, names: str) -> dict[str, FieldSpec]:
    return dict.fromkeys(names.split(), spec)


_LABEL = _fields(_each(_STRING, "analytics_label"))
_LIGHT_SETTINGS = _fields(
    {
        "color": _fields(_each(_NUMBER, "red green blue alpha")),
        **_each(_DURATION, "light_on_duration light_off_duration"),
    }
)
_ANDROID_NOTIFICATION = _fields(
    {
        **_each(
            _STRING,
            "title body icon color sound tag click_action body_loc_key title_loc_key channel_id ticker event_time"
            " image",
        ),
        **_each(
            _BOOL,
            "sticky local_only default_sound default_vibrate_timings default_light_settings bypass_proxy_notification",
        ),
        **_each(_list_of(_STRING), "body_loc_args title_loc_args"),
        "notification_count": _NUMBER,
        "vibrate_timings": _list_of(_DURATION),
        "light_settings": _LIGHT_SETTINGS,
        "notification_priority": _enum(
            *(f"PRIORITY_{name}" for name in ("UNSPECIFIED", "MIN", "LOW", "DEFAULT", "HIGH", "MAX"))
        ),
        "visibility": _enum("VISIBILITY_UNSPECIFIED", "PRIVATE", "PUBLIC", "SECRET"),
        "proxy": _enum("PROXY_UNSPECIFIED", "ALLOW", "DENY", "IF_PRIORITY_LOWERED"),
    }
)
_ANDROID = _fields(
    {
        **_each(_STRING, "collapse_key restricted_package_name"),
        **_each(_BOOL, "direct_boot_ok bandwidth_constrained_ok restricted_satellite_ok"),
        "priority": _enum("NORMAL", "HIGH"),
        "ttl": _DURATION,
        "data": _STRING_MAP,
        "notification": _ANDROID_NOTIFICATION,
        "fcm_options": _LABEL,
    }
)
_WEBPUSH = _fields(
    {
        **_each(_STRING_MAP, "headers data"),
        "notification": _STRUCT,
        "fcm_options": _fields(_each(_STRING, "link analytics_label")),
    }
)
_APNS = _fields(
    {
        "headers": _STRING_MAP,
        "payload": _STRUCT,
        "fcm_options": _fields(_each(_STRING, "analytics_label image")),
        "live_activity_token": _STRING,
    }
)
_MESSAGE = _fields(
    {
        **_each(_STRING, "name token fid topic condition"),
        "data": _STRING_MAP,
        "notification": _fields(_each(_STRING, "title body image")),
        "android": _ANDROID,
        "webpush": _WEBPUSH,
        "apns": _APNS,
        "fcm_options": _LABEL,
    }
)
_SEND = _fields({"message": _MESSAGE, "validate_only": _BOOL})


def parse_send(body: bytes) -> dict[str, Any]:
    """Return the JSON of a send, after checking that all fields are known and of the right type.

    Raises:
        Violation: it is not valid.
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


def _check_fields(message: dict[str, Any], fields: Mapping[str, FieldSpec], path: str) -> None:
    for name, value in message.items():
        spec = fields.get(name)
        if spec is None:
            where = f" at '{path}'" if path else ""
            text = f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
            raise Violation(path or None, text)
        if value is None:
            continue  # null is the same as absent
        if isinstance(spec, FieldType):
            if not spec.accepts(value):
                raise _type_violation(f"{path}.{name}" if path else name, spec, value)
        elif type(value) is dict:
            _check_fields(value, spec, f"{path}.{name}" if path else name)
        else:
            raise _type_violation(f"{path}.{name}" if path else name, _STRUCT, value)


def _type_violation(path: str, kind: FieldType, value: Any) -> Violation:
    """Return the violation of a value of the wrong type; for a list or map, that of its first invalid element."""
    inner = kind.inner
    if inner is not None and type(value) in (dict, list):
        items, suffix = (value.values(), ".value") if type(value) is dict else (value, "")
        for index, item in enumerate(items):
            if not inner.accepts(item):
                return _type_violation(f"{path}[{index}]{suffix}", inner, item)
    shown = orjson.dumps(value).decode()[:_SHOWN_CHARS]
    return Violation(path, f"Invalid value at '{path}' ({kind.name}), {shown}")
