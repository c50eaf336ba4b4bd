"""Finds what no push service could deliver in a notification: its size, reserved names, links, an unfit template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from syncbeat_server.errors import FieldReason, FieldViolation
from syncbeat_server.push.content.links import action_fault, image_fault
from syncbeat_server.push.content.payload_size import MAX_CONTENT_BYTES, payload_bytes
from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.model import Content

# Reserved by FCM (its reference of `data`, and what it refuses), and set by us in every delivery.
RESERVED = frozenset({"from", "message_type", "gcm", "collapse_key", "delivery_id", "ack_token", "syncbeat"})
_RESERVED_PREFIXES = ("google.", "gcm.")
RESERVED_IN_TRIGGER = RESERVED | {"type", "scope", "epoch", "sequence", "other_scopes"}
"""Names of `data` that a sync trigger cannot set: a wake-up carries them itself."""


def reserved_name_faults(shown: Content, path: str, reserved: frozenset[str]) -> list[FieldViolation]:
    """Return a fault for each name of the data that is reserved, by FCM or by us."""
    return [
        FieldViolation(f'{path}.data["{name}"]', "a reserved name", FieldReason.RESERVED)
        for name in sorted(shown.data)
        if name in reserved or name.startswith(_RESERVED_PREFIXES)
    ]


def link_faults(shown: Content, path: str) -> list[FieldViolation]:
    """Return the faults of the URLs, and of data that stands for a field of the notification."""
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


def template_faults(shown: Content, path: str, templates: Mapping[str, Template]) -> list[FieldViolation]:
    """Return the faults of the template: unknown, without a variable, or beside texts."""
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


def size_faults(versions: Sequence[Content], path: str) -> list[FieldViolation]:
    """Return a fault if one of the versions, which differ by locale, is too large for a push service."""
    if max(map(payload_bytes, versions)) > MAX_CONTENT_BYTES:
        return [FieldViolation(path, f"at most {MAX_CONTENT_BYTES} bytes in all, as JSON", FieldReason.TOO_LONG)]
    return []
