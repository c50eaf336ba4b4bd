"""Converts the messages of the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.audit.model import AuditAction, AuditEntry, AuditFilter, EntryPlace
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.rpc.convert.fields import enum_member, moment, timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PREFIX = "AUDIT_ACTION_"


def audit_filter(request: pb.ListAuditEntriesRequest) -> AuditFilter:
    """Return the filter of a request."""
    action = enum_member(AuditAction, pb.AuditAction, _PREFIX, request.action)
    return AuditFilter(
        actor=request.actor,
        action=action.value if action is not None else "",
        subject=request.subject,
        since=_time(request, "since_time"),
        until=_time(request, "until_time"),
    )


def filter_texts(request: pb.ListAuditEntriesRequest) -> tuple[str, ...]:
    """Return what page tokens of the list are bound to."""
    times = (_micros(_time(request, "since_time")), _micros(_time(request, "until_time")))
    return request.actor, str(request.action), request.subject, *times


def entry_place(after: str) -> EntryPlace | None:
    """Return the place in a list that a page's key names; None: the start.

    Raises:
        InvalidRequest: it is no key of `entry_key`.
    """
    if not after:
        return None
    try:
        micros, entry_id = orjson.loads(after)
        return EntryPlace(_EPOCH + timedelta(microseconds=micros), str(UUID(entry_id)))
    except (ValueError, TypeError, OverflowError, AttributeError):
        fault = FieldViolation("page_token", "not a token that this list answered", FieldReason.MALFORMED)
        raise InvalidRequest(fault) from None


def entry_key(entry: AuditEntry) -> str:
    """Return the key of an entry in a list."""
    return orjson.dumps([(entry.occurred_at - _EPOCH) // timedelta(microseconds=1), entry.entry_id]).decode()


def entry_list(entries: Sequence[AuditEntry], next_page_token: str) -> pb.ListAuditEntriesResponse:
    """Return the answer to ListAuditEntries."""
    return pb.ListAuditEntriesResponse(entries=map(_entry_message, entries), next_page_token=next_page_token)


def _entry_message(entry: AuditEntry) -> pb.AuditEntry:
    known = entry.action in AuditAction.__members__
    return pb.AuditEntry(
        entry_id=entry.entry_id,
        app_id=entry.app_id,
        occurred_time=timestamp(entry.occurred_at),
        action=pb.AuditAction.Value(f"{_PREFIX}{entry.action}") if known else pb.AUDIT_ACTION_UNSPECIFIED,
        actor=entry.actor,
        address=entry.address,
        subject=entry.subject,
        request_id=entry.request_id,
        details_json=entry.details,
    )


def _time(request: pb.ListAuditEntriesRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type]  # the stub wants a literal
        return None
    return moment(getattr(request, field))


def _micros(time: datetime | None) -> str:
    return "" if time is None else str((time - _EPOCH) // timedelta(microseconds=1))
