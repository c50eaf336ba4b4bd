"""Bounds the connections of the server: their age and keepalive, their calls at once, and the size of metadata."""

from __future__ import annotations

from dataclasses import dataclass

from syncbeat_server.auth.tokens.verify import MAX_TOKEN_BYTES
from syncbeat_server.rpc.servicers.health import MAX_WATCHES
from syncbeat_server.rpc.validation.compression import COMPRESSION_OPTIONS, MAX_REQUEST_BYTES

MAX_METADATA_BYTES = 2 * MAX_TOKEN_BYTES
"""The most metadata of a call, as HTTP/2 counts it; grpc-core refuses more with RESOURCE_EXHAUSTED. It is twice the
longest token, so that a token somewhat too long is still refused with a reason."""

MAX_CONCURRENT_CALLS = 100
"""The most calls at once on a connection, which clients are told and keep: they let others wait, or connect again.
RFC 9113 wants no fewer, and proxies have as many (ADR 117)."""
MAX_UNFREED_CALLS = 100
"""The calls of a connection beside those that may have ended and are not freed yet. As many as may be open, since all
of them may end in one turn of the loop, and an honest client has begun others before they are freed."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    *COMPRESSION_OPTIONS,
    # The same: between a soft and a hard limit (8 and 16 KiB by default) grpc-core refuses at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # grpc-core's defaults (1,000 and 3,000) refuse a reconnect storm with CANCELLED.
    ("grpc.server.max_pending_requests", 50_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # A call that no handler has taken by then ends CANCELLED too, after 30 s by default.
    ("grpc.server_max_unrequested_time_in_server", 120),
    # A call that its client has reset counts until it is freed here, so that a flood of resets is refused at the sum of
    # both (overload_protection is on by default, and relied on: without it such a flood held 1.2 GB after 18 s).
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_CALLS),
    ("grpc.http2.max_deallocating_streams", MAX_UNFREED_CALLS),
    ("grpc.http.overload_protection", 1),
    # Ends TCP connections that send nothing, or do not finish their TLS handshake; two minutes by default.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Phones ping through NATs; a client may do so every 20 s, also between calls.
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
"""The channel options that bound every connection, whatever the settings say."""

_STREAM_MARGIN_S = 60.0  # for a stream to open, and to send its last checkpoint, while the database is slow


@dataclass(frozen=True)
class ConnectionAge:
    """The age in seconds at which a connection takes no more calls (gRPC varies it by 10 %), and that of a stream.

    A stream may be the last call that a connection takes, so calls open at that age get the whole time of a stream.
    """

    age_s: float
    stream_age_s: float

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return the channel options of a server with these ages."""
        grace_s = self.stream_age_s + _STREAM_MARGIN_S
        ages = ("grpc.max_connection_age_ms", self.age_s), ("grpc.max_connection_age_grace_ms", grace_s)
        return tuple((name, round(seconds * 1000)) for name, seconds in ages)


@dataclass(frozen=True)
class ServerRule:
    """Bounds of a server that no setting changes."""

    silence_s: float = 60.0
    """Seconds after which a connection that sends nothing is pinged."""
    answer_s: float = 20.0
    """Seconds within which it has to answer, or the kernel of its peer to acknowledge (TCP_USER_TIMEOUT)."""
    max_health_watches: int = MAX_WATCHES

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return the channel options that end connections of peers which are gone."""
        answer_ms = round(self.answer_s * 1000)
        return (
            ("grpc.keepalive_time_ms", round(self.silence_s * 1000)),
            ("grpc.keepalive_timeout_ms", answer_ms),
            ("grpc.http2.ping_timeout_ms", answer_ms),
        )
