"""Tells hosts of this machine from others: what goes to them needs no encryption."""

from __future__ import annotations

import ipaddress


def is_this_machine(host: str) -> bool:
    """Return True if a name or an address is always this machine's own."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
