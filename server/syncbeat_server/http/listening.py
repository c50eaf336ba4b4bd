"""Opens the port of an HTTP endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from syncbeat_server.errors import ConfigurationError


async def listen(
    setting: str, address: str, connection: Callable[[], asyncio.BaseProtocol], *, share_port: bool
) -> asyncio.Server:
    """Listen on host:port, where an IPv6 address stands in brackets; several processes may share the port.

    Raises:
        ConfigurationError: nobody can listen there; the message names the setting.
    """
    host, _, port = address.rpartition(":")
    plain = host.removeprefix("[").removesuffix("]")
    try:
        return await asyncio.get_running_loop().create_server(connection, plain, int(port), reuse_port=share_port)
    except OSError:
        raise ConfigurationError(f"{setting}: cannot listen on {address}; is the port taken?") from None
