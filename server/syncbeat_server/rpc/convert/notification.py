"""Converts what a notification shows, and finds what no push service could deliver: size, reserved names, links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from syncbeat.v1 import core_pb2
from syncbeat_server.errors import FieldReason, FieldViolation
from syncbeat_server.push.content.links import action_fault, image_fault
from syncbeat_server.push.content.payload_size import MAX_CONTENT_BYTES, payload_bytes
from syncbeat_server.push.content.templates import Template, render_all
from syncbeat_server.push.model import Content

# Reserved by FCM (its reference of `data`, and what it refuses), and set by us in every delivery.
_RESERVED = frozenset({"from", "message_type", "gcm", "collapse_key", "delivery_id", "ack_token", "syncbeat"})
_RESERVED_PREFIXES = ("google.", "gcm.")
RESERVED_IN_TRIGGER = _RESERVED | {"type", "scope", "epoch", "sequence", "other_scopes"}
"""Names of `data` that a sync trigger cannot set: a wake-up carries them itself."""


class Templates(Protocol):
    """Returns the notification templates of an app; see `push.content.templates.Template`."""

    def __call__(self, app_id: str) -> Mapping[str, Template]:
        """Return the app's templates by name, as they are configured now."""
        ...


def content(
    given: core_pb2.Notification,
    path: str,
    templates: Mapping[str, Template],
    faults: list[FieldViolation],
    reserved: frozenset[str] = _RESERVED,
) -> Content:
    """Return the content of a notification, and append to `faults` what is wrong with it.

    Faults are a template that does not exist, a missing variable of it, data under a reserved name, URLs that a
    notification may not have, and content that is too large. `path` is the field of the request they are told by.
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
    template_faults = _template_faults(shown, path, templates)
    versions = [shown]
    if shown.template and not template_faults:
        template = templates[shown.template]
        versions = list(render_all(shown, template))
        texts = {locale: (one.title, one.body) for locale, one in zip(template.texts, versions, strict=True)}
        shown = replace(shown, texts=texts)
    faults += template_faults or _size_faults(versions, path)
    if shown.image_url or shown.click_action or shown.badge is not None:
        faults += _link_faults(shown, path)
    faults += [
        FieldViolation(f'{path}.data["{name}"]', "a reserved name", FieldReason.RESERVED)
        for name in sorted(shown.data)
        if name in reserved or name.startswith(_RESERVED_PREFIXES)
    ]
    return shown


def content_message(shown: Content) -> core_pb2.Notification:
    """Return the content of a notification as a message."""
    return core_pb2.Notification(
        title=shown.title,
        body=shown.body,
        data=shown.data,
        image_url=shown.image_url,
        sound=shown.sound,
        badge=shown.badge,
        click_action=shown.click_action,
        channel_id=shown.channel_id,
        template=shown.template,
        variables=shown.variables,
    )


def _link_faults(shown: Content, path: str) -> list[FieldViolation]:
    by_field = {"image_url": image_fault(shown.image_url), "click_action": action_fault(shown.click_action)}
    faults = [
        FieldViolation(f"{path}.{name}", fault, FieldReason.MALFORMED)
        for name, fault in by_field.items()
        if fault is not None
    ]
    # Where a platform has no field for them, they reach the app among its data.
    sent_as_data = {"click_action": bool(shown.link), "badge": shown.badge_only}
    return faults + [
        FieldViolation(f'{path}.data["{name}"]', "stands for the field of this name", FieldReason.CONFLICT)
        for name, given in sent_as_data.items()
        if given and name in shown.data
    ]


def _template_faults(shown: Content, path: str, templates: Mapping[str, Template]) -> list[FieldViolation]:
    if not shown.template:
        return (
            [FieldViolation(f"{path}.variables", "only with a template", FieldReason.CONFLICT)]
            if shown.variables
            else []
        )
    template = templates.get(shown.template)
    if template is None:
        return [FieldViolation(f"{path}.template", "there is no such template", FieldReason.UNKNOWN_VALUE)]
    faults = [
        FieldViolation(f'{path}.variables["{name}"]', "the template needs it", FieldReason.REQUIRED)
        for name in sorted(template.variables - set(shown.variables))
    ]
    if shown.title or shown.body:
        faults.append(FieldViolation(f"{path}.template", "want no title and no body beside it", FieldReason.CONFLICT))
    return faults


def _size_faults(versions: Sequence[Content], path: str) -> list[FieldViolation]:
    if max(map(payload_bytes, versions)) > MAX_CONTENT_BYTES:
        return [FieldViolation(path, f"at most {MAX_CONTENT_BYTES} bytes in all, as JSON", FieldReason.TOO_LONG)]
    return []
