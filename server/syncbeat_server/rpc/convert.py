"""Between messages and values: what more than one servicer needs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Protocol, TypeVar

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from syncbeat.v1 import core_pb2
from syncbeat_server.errors import FieldViolation, InvalidRequest
from syncbeat_server.push.content.templates import Template, render_all
from syncbeat_server.push.links import action_fault, image_fault
from syncbeat_server.push.model import Content
from syncbeat_server.rpc.call_context import Call
from syncbeat_server.sync.model import Cursor

DEFAULT_PAGE_SIZE = 50
# FCM takes 4,096 bytes of payload; what we add (ids, a cursor, an ack token, JSON around it all) stays below the rest.
MAX_CONTENT_BYTES = 3_072
_QUOTES = len('""')
_ENTRY_BYTES = len('"":"",')

# FCM's own, from its reference of `data` and what it refuses, and those that every delivery of ours carries.
_RESERVED = frozenset({"from", "message_type", "gcm", "collapse_key", "delivery_id", "ack_token", "syncbeat"})
_RESERVED_BEGINNINGS = ("google.", "gcm.")
RESERVED_OF_TRIGGER = _RESERVED | {"type", "scope", "epoch", "sequence", "other_scopes"}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

E = TypeVar("E", bound=Enum)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment as a message; None stays None."""
    if moment is None:
        return None
    made = Timestamp()
    set_timestamp(made, moment)
    return made


def duration(seconds: float) -> Duration:
    """A span as a message, to the microsecond."""
    made = Duration()
    set_duration(made, seconds)
    return made


def set_timestamp(field: Timestamp, moment: datetime) -> None:
    """Set a field to a moment: on the busiest path cheaper than making a message that is then copied."""
    since = moment - _EPOCH
    field.seconds = since.days * 86_400 + since.seconds
    field.nanos = since.microseconds * 1000


def set_duration(field: Duration, seconds: float) -> None:
    """Set a field to a span, to the microsecond; see `set_timestamp`."""
    field.seconds, micros = divmod(round(max(0.0, seconds) * 1e6), 1_000_000)
    field.nanos = micros * 1000


def seconds(span: Duration) -> float:
    """The seconds of a span."""
    return span.seconds + span.nanos / 1e9


def cursor(message: core_pb2.ScopeCursor) -> Cursor:
    """A cursor from a request."""
    return Cursor(message.scope, message.epoch, message.sequence if message.HasField("sequence") else None)


def cursor_message(value: Cursor) -> core_pb2.ScopeCursor:
    """A cursor for an answer."""
    return core_pb2.ScopeCursor(scope=value.scope, epoch=value.epoch, sequence=value.sequence)


class EnumNames(Protocol):
    """An enum of the contract, which knows the names of its numbers."""

    def Name(self, number: Any, /) -> str:
        """The name of a number."""
        ...


def enum_member(kind: type[E], wrapper: EnumNames, prefix: str, number: int) -> E | None:
    """The domain's member for an enum number of a request; None when it is unspecified."""
    return None if number == 0 else kind[wrapper.Name(number).removeprefix(prefix)]


def content_hash(request: Message) -> bytes:
    """A digest of everything a request says, by which a reused request_id is told from a replay."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


class Paged(Protocol):
    """A request that asks for a page."""

    page_size: int
    page_token: str


def page_size(request: Paged) -> int:
    """How many items to answer."""
    return request.page_size or DEFAULT_PAGE_SIZE


def page_start(request: Paged, call: Call, *asked: str) -> str | None:
    """The key after which the page starts; None for the first. `asked` is what the list was filtered by.

    Raises:
        InvalidRequest: the token is not one of ours, or belongs to another caller or another list.
    """
    if not request.page_token:
        return None
    try:
        binding, after = orjson.loads(base64.urlsafe_b64decode(request.page_token))
    except (ValueError, TypeError):
        binding, after = "", ""
    # U+0000 is in no key, and PostgreSQL takes it in no text.
    if binding != _binding(call, asked) or not isinstance(after, str) or "\0" in after:
        raise InvalidRequest(FieldViolation("page_token", "not a token that this list answered"))
    return after


def next_page_token(call: Call, after: str | None, *asked: str) -> str:
    """The token of the page after `after`; empty when there is none."""
    if after is None:
        return ""
    return base64.urlsafe_b64encode(orjson.dumps([_binding(call, asked), after])).decode()


def _binding(call: Call, asked: Sequence[str]) -> str:
    return hashlib.sha256(orjson.dumps([call.method, call.caller, *asked])).hexdigest()[:16]


class Templates(Protocol):
    """What an app's notifications may say; see `push.templates.Template`."""

    def __call__(self, app_id: str) -> Mapping[str, Template]:
        """The app's templates by name, as they are configured now."""
        ...


def content(
    given: core_pb2.Notification,
    path: str,
    templates: Mapping[str, Template],
    faults: list[FieldViolation],
    reserved: frozenset[str] = _RESERVED,
) -> Content:
    """What a notification shows.

    `faults` hears of a template that is not there, a variable of it that is missing, data under a reserved name, URLs
    that no notification may have, and of one that is too large.
    """
    shown = Content(
        title=given.title,
        body=given.body,
        data=dict(given.data),
        image_url=given.image_url,
        sound=given.sound,
        badge=given.badge if given.HasField("badge") else None,
        click_action=given.click_action,
        channel_id=given.channel_id,
        template=given.template,
        variables=dict(given.variables),
    )
    wrong = _template_faults(shown, path, templates)
    if shown.template and not wrong:
        template = templates[shown.template]
        told = render_all(shown, template)
        texts = {locale: (one.title, one.body) for locale, one in zip(template.texts, told, strict=True)}
        shown = replace(shown, texts=texts)
    else:
        told = [shown]
    faults += wrong or _size_faults(told, path)
    if shown.image_url or shown.click_action or shown.badge is not None:
        faults += _link_faults(shown, path)
    faults += [
        FieldViolation(f'{path}.data["{name}"]', "a reserved name")
        for name in sorted(shown.data)
        if name in reserved or name.startswith(_RESERVED_BEGINNINGS)
    ]
    return shown


def _link_faults(shown: Content, path: str) -> list[FieldViolation]:
    told = {"image_url": image_fault(shown.image_url), "click_action": action_fault(shown.click_action)}
    faults = [FieldViolation(f"{path}.{name}", fault) for name, fault in told.items() if fault is not None]
    # Where a platform has no field for them, they go to the app among its data.
    beside = {"click_action": bool(shown.link), "badge": shown.badge_only}
    return faults + [
        FieldViolation(f'{path}.data["{name}"]', "stands for the field of this name")
        for name, given in beside.items()
        if given and name in shown.data
    ]


def _template_faults(shown: Content, path: str, templates: Mapping[str, Template]) -> list[FieldViolation]:
    if not shown.template:
        return [FieldViolation(f"{path}.variables", "only with a template")] if shown.variables else []
    template = templates.get(shown.template)
    if template is None:
        return [FieldViolation(f"{path}.template", "there is no such template")]
    faults = [
        FieldViolation(f'{path}.variables["{name}"]', "the template needs it")
        for name in sorted(template.variables - set(shown.variables))
    ]
    if shown.title or shown.body:
        faults.append(FieldViolation(f"{path}.template", "want no title and no body beside it"))
    return faults


def _size_faults(told: Sequence[Content], path: str) -> list[FieldViolation]:
    if max(map(_size, told)) > MAX_CONTENT_BYTES:
        return [FieldViolation(path, f"at most {MAX_CONTENT_BYTES} bytes in all, as JSON")]
    return []


def _size(shown: Content) -> int:
    """Count bytes as APNs and web push do, which are sent JSON: a quote or a line break in a text is two."""
    texts = [shown.title, shown.body, shown.image_url, shown.click_action, shown.sound, shown.channel_id]
    data = {**shown.data, "click_action": shown.link} if shown.link else shown.data  # browsers get a link twice
    for name, value in data.items():
        texts += (name, value)
    return sum(len(orjson.dumps(text)) - _QUOTES for text in texts if text) + len(data) * _ENTRY_BYTES
