"""Defines the delays, bounds and channel options of a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from syncbeat.retry import MAX_CONNECTIONS

CHANNEL_OPTIONS: Mapping[str, int | str] = MappingProxyType(
    {
        # The largest request that the server accepts; a request above the buffer is never retried.
        "grpc.per_rpc_retry_buffer_size": 1_310_720,
        # A checkpoint of all scopes from a server without tokens has up to 100,000 cursors.
        "grpc.max_receive_message_length": 32 << 20,
        # Finds dead connections under streams. The server refuses pings more often than every 20 s.
        "grpc.keepalive_time_ms": 30_000,
        # The latter ends a connection whose ping is not answered in time; the former is the kernel's limit for bytes
        # that are not acknowledged (TCP_USER_TIMEOUT).
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.http2.ping_timeout_ms": 10_000,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.max_connections_per_subchannel_cap": MAX_CONNECTIONS,
        # Channels to the same server would share a connection; a new channel has to be a new connection.
        "grpc.use_local_subchannel_pool": 1,
        # The default waits up to two minutes before it reconnects.
        "grpc.initial_reconnect_backoff_ms": 500,
        "grpc.max_reconnect_backoff_ms": 20_000,
    }
)


@dataclass(frozen=True)
class ClientRule:
    """The delays and bounds by which a client reconnects, asks and stores; the defaults suit phones and backends."""

    first_delay_s: float = 0.5
    """The longest delay before a stream that failed once is opened again; it doubles with each failure in a row."""
    max_delay_s: float = 30.0
    """The bound of that delay."""
    connection_spacing_s: float = 10.0
    """The least time from one new connection to the next, in case the connection is not what is wrong."""
    max_cursors_beside_token: int = 10_000
    """The scopes whose changes may come again after the last token of a watch: twenty pages of the server's."""
    page_size: int = 1_000
    """The changes that `SmartSync` asks for at once."""
    channel_options: Mapping[str, int | str] = field(default_factory=lambda: CHANNEL_OPTIONS)
    """Options of the gRPC channels."""


DEFAULT_RULE = ClientRule()
