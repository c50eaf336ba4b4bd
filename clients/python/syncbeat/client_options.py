"""Defines the delays, bounds and channel options of a client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from syncbeat.retry import MAX_CONNECTIONS

MOST_SECONDS = 86_400.0
LEAST_TIMEOUT_S = 0.001

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
    least_heartbeat_s: float = 5.0
    """The shortest heartbeat that a watch may ask for: the server refuses shorter ones."""
    channel_options: Mapping[str, int | str] = field(default_factory=lambda: CHANNEL_OPTIONS)
    """Options of the gRPC channels."""

    def __post_init__(self) -> None:
        for name in ("first_delay_s", "max_delay_s", "connection_spacing_s"):
            require_number(name, getattr(self, name), 0.0, MOST_SECONDS)
        require_number("max_cursors_beside_token", self.max_cursors_beside_token, 0, math.inf)
        require_number("page_size", self.page_size, 1, 1_000)


def require_number(name: str, value: float, least: float, most: float) -> None:
    """Raise ValueError, which names the argument, unless `value` is a number from `least` to `most`."""
    if type(value) not in (int, float) or not least <= value <= most:
        wanted = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
        raise ValueError(f"{name}: want a number, {wanted}")


def require_timeout(timeout_s: float) -> None:
    """Raise ValueError unless `timeout_s` can be a call's deadline."""
    require_number("timeout_s", timeout_s, LEAST_TIMEOUT_S, MOST_SECONDS)


DEFAULT_RULE = ClientRule()
