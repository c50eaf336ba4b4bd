"""Sets time fields of messages in place, by integer arithmetic.

The plain versions are `Timestamp.FromDatetime` and `FromMicroseconds` of both. Paid for by the figures `hint_vs_echo`
and `firehose_cpu_ms`: a page of changes has one timestamp for each.
"""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def set_timestamp(field: Timestamp, moment: datetime) -> None:
    """Set a field to a moment, to the microsecond."""
    since = moment - _EPOCH
    field.seconds = since.days * 86_400 + since.seconds
    field.nanos = since.microseconds * 1000


def set_unix_time(field: Timestamp, at: float) -> None:
    """Set a field to a moment in unix seconds, to the microsecond."""
    micros = round(at * 1e6)
    field.seconds = micros // 1_000_000
    field.nanos = micros % 1_000_000 * 1000


def set_duration(field: Duration, seconds: float) -> None:
    """Set a field to a span in seconds, to the microsecond; a negative span counts as none."""
    micros = round(seconds * 1e6) if seconds > 0.0 else 0
    field.seconds = micros // 1_000_000
    field.nanos = micros % 1_000_000 * 1000
