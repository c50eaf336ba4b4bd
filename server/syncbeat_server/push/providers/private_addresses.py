"""Keeps a webhook's name from leading into the private network, unless the operator allows it (SSRF)."""

from __future__ import annotations

import ipaddress
import logging
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

_log = logging.getLogger(__name__)

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four octets are an IPv4 address


class PublicOnly(AbstractResolver):
    """Resolves names to public addresses only, at each connection, because a name may change at any time."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the public addresses of a name. Raises OSError: it has none."""
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if is_public(one["host"])]
        if not public:
            _log.warning("a webhook's name leads to private addresses only: see WEBHOOK_PRIVATE", extra={"host": host})
            raise OSError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        """Close the resolver inside."""
        await self._resolver.close()


def is_public(address: str) -> bool:
    """Return True if an IP address is public; one embedded in an IPv6 address counts by itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast
