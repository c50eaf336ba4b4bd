"""Tries mappings of sources on payloads, without a store: the samples at a start, and files of `events try`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from syncbeat_server.app.app_configuration import CredentialsFile, templates_of
from syncbeat_server.app.webhooks.ingest import checked_event, event_document
from syncbeat_server.app.webhooks.sources import make_source, place_of, require_receipts
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import AccessDenied, ConfigurationError, InvalidRequest
from syncbeat_server.events.policy.effect_methods import effect_methods
from syncbeat_server.http.webhooks.mapping import map_payload
from syncbeat_server.http.webhooks.model import Delivery, MappedEvent, MappingFault, Source
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.server import Settings

_SAMPLE_ID = "sample"


def require_sources(keep_events_days: float, apps: Mapping[str, AppSettings]) -> None:
    """Raise ConfigurationError, with a line for each fault, unless all sources can be used and fit their samples.

    A start and each reload go by it, in every process that serves RPCs, whether it serves the door or not: a file that
    one of them adopted and another refused would be two configurations of one deployment.
    """
    faults = [
        fault
        for app_id, app in apps.items()
        for name in app.sources
        for fault in source_faults(app_id, name, app, keep_events_days)
    ]
    if faults:
        raise ConfigurationError("\n".join(faults))


def source_faults(app_id: str, name: str, app: AppSettings, keep_events_days: float) -> Iterator[str]:
    """Yield the faults of a source: of its settings, or of each sample that does not fit its mapping."""
    try:
        require_receipts(app_id, name, app.sources[name], keep_events_days)
        source = make_source(app_id, name, app.sources[name], CredentialsFile.read)
    except ConfigurationError as error:
        yield error.message
        return
    mapped = 0
    for number, sample in enumerate(app.sources[name].samples, start=1):
        try:
            event = map_sample(source, sample.encode(), SystemClock().now())
            if event is not None:
                mapped += 1
                checked_event(source, event, templates_of(app_id, app))
        except (MappingFault, InvalidRequest, AccessDenied) as fault:
            yield f"{place_of(app_id, name)}: sample {number}: {fault}"
            return
    if not mapped:
        yield f"{place_of(app_id, name)}: no sample has effects, so that nothing shows what the mapping makes"


def map_sample(source: Source, body: bytes, now: datetime) -> MappedEvent | None:
    """Return the event of a payload as if its sender had just signed it; however old it is.

    Raises:
        MappingFault: it does not fit.
    """
    digest = hashlib.sha256(body).hexdigest()
    delivery = Delivery(_SAMPLE_ID, int(now.timestamp()), digest)
    return map_payload(source.mapping.without_max_age(), body, delivery, now)


def try_payload(settings: Settings, source: str, app_id: str | None, body: bytes) -> dict[str, Any] | None:
    """Return what would come of a payload; None: nothing, since its mapping has no effects for it.

    Raises:
        ConfigurationError: there is no such source, it cannot be used, or the payload does not fit it.
        InvalidRequest, AccessDenied: what would come of it is refused.
    """
    app_id, app = _app_of(settings.all_apps(), source, app_id)
    made = make_source(app_id, source, app.sources[source], None)
    try:
        event = map_sample(made, body, SystemClock().now())
    except MappingFault as fault:
        raise ConfigurationError(str(fault)) from None
    if event is None:
        return None
    checked = checked_event(made, event, templates_of(app_id, app))
    document = {name: value for name, value in event_document(made, event).items() if value != ""}
    document.pop("payload_json", None)
    return {**document, "methods": sorted(effect_methods(checked.effects))}


def _app_of(apps: Mapping[str, AppSettings], source: str, app_id: str | None) -> tuple[str, AppSettings]:
    found = [name for name, app in apps.items() if source in app.sources and app_id in (None, name)]
    if len(found) == 1:
        return found[0], apps[found[0]]
    if found:
        raise ConfigurationError(f"several apps have a source {source!r}: name one of {', '.join(found)} by --app")
    known = sorted(f"{name} {source}" for name, app in apps.items() for source in app.sources)
    raise ConfigurationError(f"no such source; app and source of those there are: {', '.join(known) or 'none'}")
