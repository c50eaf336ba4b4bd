"""Finds the address of a caller: that of its connection, or the one that a trusted proxy forwards."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import unquote

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FORWARDED = "x-forwarded-for"
_MAX_HOPS = 16  # read from the right; the rest of a longer header is ignored
_SUBSCRIBER_BITS = 64  # RFC 6177: a site has a /64 at the least, and each of its hosts as many addresses as it likes


def caller_address(peer: str, forwarded: Iterable[str], trusted: tuple[Network, ...]) -> str:
    """Return the address that rate limits count a caller by: its IPv4 address, or the /64 of its IPv6 address.

    All who can open a Unix socket count as one caller. Takes what `connection_address` takes.
    """
    address = connection_address(peer, forwarded, trusted)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address), _SUBSCRIBER_BITS), strict=False))
    return str(address)


def connection_address(peer: str, forwarded: Iterable[str], trusted: tuple[Network, ...]) -> Address | str:
    """Return the address of a caller; of one without, such as a Unix socket, the scheme.

    `peer` is as gRPC spells it (`ipv4:192.0.2.1:54321`, `ipv6:%5B2001:db8::1%5D:54321`); `forwarded` holds the values
    of `x-forwarded-for` in order. Each proxy appends the address that it was called from, so they are read from the
    right, and only while the hop that added one is in `trusted`. The first hop that is not is the caller: whatever
    stands left of it, the caller may have made up. A hop that is no address ends the walk at the one that added it.
    """
    scheme, _, rest = peer.partition(":")
    address = _address(unquote(rest)) if scheme in ("ipv4", "ipv6") else None
    if address is None:
        return scheme
    for hop in reversed(",".join(forwarded).rsplit(",", _MAX_HOPS)[-_MAX_HOPS:] if trusted else ()):
        previous = _address(hop.strip()) if any(address in network for network in trusted) else None
        if previous is None:
            break
        address = previous
    return address


def full_address(peer: str, forwarded: Iterable[str], trusted: tuple[Network, ...]) -> str:
    """Return the caller's address in canonical form (RFC 5952); of a Unix socket its kind."""
    return str(connection_address(peer, forwarded, trusted))


def forwarded(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[str]:
    """Return the values of `x-forwarded-for` in order."""
    return [value for key, value in metadata or () if key == _FORWARDED and isinstance(value, str)]


def _address(text: str) -> Address | None:
    """Parse an address with or without port: `192.0.2.1:80`, `[2001:db8::1]:80`, `2001:db8::1`."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 callers as mapped IPv6 addresses, all of them in one /64.
    return getattr(address, "ipv4_mapped", None) or address
