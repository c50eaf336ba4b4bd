"""Says which proxy leads to a URL: for the sends to FCM, for its access tokens and for a webhook alike."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

DIRECT = "direct"
_SCHEMES = ("http", "https")


class NoProxy(ValueError):
    """What names a proxy names none that is spoken to by HTTP. It is not repeated: it may hold a password."""


def proxy_for(url: str, setting: str) -> str | None:
    """Return the URL of the proxy to go through, or None for straight on.

    `setting` is such a URL, `direct`, or empty: then HTTPS_PROXY, HTTP_PROXY and ALL_PROXY decide, as for most
    programs. NO_PROXY excepts hosts from either. Read once, where a provider is made.

    Raises:
        NoProxy: it is no proxy that is spoken to by HTTP.
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
    """Raise NoProxy for what is no proxy that is spoken to by HTTP."""
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise NoProxy("want http://host:port or https://host:port, with user:password@ where it asks for them")
