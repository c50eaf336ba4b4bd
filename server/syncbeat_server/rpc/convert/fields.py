"""Converts the fields that several services share: times, cursors, enums, and the digest of a request."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from syncbeat.v1 import core_pb2
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.rpc.fastpath.time_fields import set_duration, set_timestamp
from syncbeat_server.sync.model import Cursor

E = TypeVar("E", bound=Enum)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """Return a moment as a message; None stays None."""
    if moment is None:
        return None
    made = Timestamp()
    set_timestamp(made, moment)
    return made


def moment(given: Timestamp) -> datetime:
    """Return the moment of a checked message, to the microsecond."""
    return _EPOCH + timedelta(seconds=given.seconds, microseconds=given.nanos // 1_000)


def duration(seconds: float) -> Duration:
    """Return a span in seconds as a message, to the microsecond."""
    made = Duration()
    set_duration(made, seconds)
    return made


def seconds(span: Duration) -> float:
    """Return the seconds of a span."""
    return span.seconds + span.nanos / 1e9


def cursor(message: core_pb2.ScopeCursor) -> Cursor:
    """Return the cursor of a request; without a sequence it stands for the scope's start."""
    sequence: int | None = message.sequence
    if not sequence and not message.HasField("sequence"):  # asked for a zero alone: to ask costs as much as two fields
        sequence = None
    return tuple.__new__(Cursor, (message.scope, message.epoch, sequence))  # half of what `Cursor()` takes


def cursor_message(value: Cursor) -> core_pb2.ScopeCursor:
    """Return a cursor as a message."""
    return core_pb2.ScopeCursor(scope=value.scope, epoch=value.epoch, sequence=value.sequence)


class EnumNames(Protocol):
    """A protobuf enum wrapper, which knows the names of its numbers."""

    def Name(self, number: Any, /) -> str:
        """Return the name of a number."""
        ...


def enum_member(kind: type[E], wrapper: EnumNames, prefix: str, number: int) -> E | None:
    """Return the domain's member for an enum number of a request; None when it is unspecified."""
    return None if number == 0 else kind[wrapper.Name(number).removeprefix(prefix)]


def uuid_text(text: str, path: str) -> str:
    """Return an id of ours in its canonical spelling.

    Raises:
        InvalidRequest: the field at `path` is no id that this service gave out.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidRequest(
            FieldViolation(path, "not an id that this service gave out", FieldReason.MALFORMED)
        ) from None


def content_hash(request: Message) -> bytes:
    """Return a digest of everything a request says, which tells a replay from a reused request_id."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
