"""Converts what a notification shows; `notification_faults` has what no push service could deliver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from syncbeat.v1 import core_pb2
from syncbeat_server.errors import FieldViolation
from syncbeat_server.push.content.templates import Template, render_all
from syncbeat_server.push.model import Content
from syncbeat_server.rpc.convert.notification_faults import (
    RESERVED,
    link_faults,
    reserved_name_faults,
    size_faults,
    template_faults,
)


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
    reserved: frozenset[str] = RESERVED,
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
    problems = template_faults(shown, path, templates)
    versions = [shown]
    if shown.template and not problems:
        template = templates[shown.template]
        versions = list(render_all(shown, template))
        texts = {locale: (one.title, one.body) for locale, one in zip(template.texts, versions, strict=True)}
        shown = replace(shown, texts=texts)
    faults += problems or size_faults(versions, path)
    if shown.image_url or shown.click_action or shown.badge is not None:
        faults += link_faults(shown, path)
    faults += reserved_name_faults(shown, path, reserved)
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
