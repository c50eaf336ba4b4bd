"""The delays, bounds and channel options that a client goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from syncbeat.retry import MAX_CONNECTIONS

CHANNEL_OPTIONS: Mapping[str, int | str] = MappingProxyType(
    {
        # The largest request the server takes; what does not fit into the buffer is never sent twice.
        "grpc.per_rpc_retry_buffer_size": 1_310_720,
        # A checkpoint of all scopes from a server without tokens has up to 100,000 cursors.
        "grpc.max_receive_message_length": 32 << 20,
        # Finds dead connections under streams. The server refuses pings that come more often than every 20 s.
        "grpc.keepalive_time_ms": 30_000,
        # A ping that is not answered in time ends the connection by the latter; the former is what the kernel is told,
        # for octets that nobody acknowledges (TCP_USER_TIMEOUT).
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.http2.ping_timeout_ms": 10_000,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.max_connections_per_subchannel_cap": MAX_CONNECTIONS,
        # Channels to the same server would share a connection, and so its end: a new one is to be a new connection.
        "grpc.use_local_subchannel_pool": 1,
        # The default waits up to two minutes before it tries a server again that was away.
        "grpc.initial_reconnect_backoff_ms": 500,
        "grpc.max_reconnect_backoff_ms": 20_000,
    }
)


@dataclass(frozen=True)
class ClientRule:
    """Sets how a client reconnects, and how much it asks for and keeps; the defaults suit phones and backends."""

    first_delay_s: float = 0.5
    """The longest delay before a stream that failed once is opened again; it doubles with each failure in a row."""
    max_delay_s: float = 30.0
    """The bound of that delay."""
    connection_spacing_s: float = 10.0
    """From one new connection to the next, where silence is not the connection's fault."""
    max_cursors_beside_token: int = 10_000
    """What may come again after the last token of a watch of all scopes: twenty pages of the server's."""
    page_size: int = 1_000
    """How many changes `SmartSync` asks for at once."""
    channel_options: Mapping[str, int | str] = field(default_factory=lambda: CHANNEL_OPTIONS)
    """Options of the gRPC channels."""


DEFAULT_RULE = ClientRule()
