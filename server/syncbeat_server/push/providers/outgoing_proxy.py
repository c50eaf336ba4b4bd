"""Finds the proxy that leads to a URL: for FCM, its access tokens and webhooks alike."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

DIRECT = "direct"
_SCHEMES = ("http", "https")


class NoProxy(ValueError):
    """Raised for a proxy setting that is no URL of an HTTP proxy. It does not repeat it: it may hold a password."""


def proxy_for(url: str, setting: str) -> str | None:
    """Return the URL of the proxy to go through, or None for a direct connection.

    `setting` is such a URL, `direct`, or empty: then HTTPS_PROXY, HTTP_PROXY and ALL_PROXY decide, as for most
    programs. NO_PROXY excepts hosts from either. Read once, when a provider is made.

    Raises:
        NoProxy: it is no URL of an HTTP proxy.
    """
    if setting == DIRECT:
        return None
    parts = urlsplit(url)
    known = urllib.request.getproxies()
    proxy = setting or known.get(parts.scheme) or known.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    _check(proxy)
    return proxy


def _check(proxy: str) -> None:
    """Raise NoProxy unless it is the URL of an HTTP proxy."""
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise NoProxy("want http://host:port or https://host:port, with user:password@ where it asks for them")
