"""Tells URLs from names in what a tap opens, and which URLs a notification may have. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# With an authority, as in myapp://chat/1: scripts, mail, calls and the like have none, and are nobody's own.
_OWN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\\]+")
# Those of browsers and systems may have one too: they run scripts, read files, go over the net in the clear, or open
# what another app holds.
_FOREIGN = frozenset(
    (
        *("http", "ftp", "ftps", "ws", "wss", "file", "filesystem", "content", "blob", "data", "jar", "resource"),
        *("javascript", "vbscript", "view-source", "about", "chrome", "intent", "android-app", "market"),
        *("tel", "sms", "smsto", "mailto", "facetime"),
    )
)


def is_link(action: str) -> bool:
    """Return whether what a tap opens is a URL, and not the name of an intent or of a category."""
    return _SCHEME.match(action) is not None


def image_fault(url: str) -> str | None:
    """Return what is wrong with the URL of an image; None for nothing."""
    return None if not url or _is_https(url) else "want an https URL"


def action_fault(action: str) -> str | None:
    """Return what is wrong with what a tap opens; None for nothing."""
    scheme = _SCHEME.match(action)
    if scheme is None:
        # Browsers and apps are lenient: what only looks like a name must not become a URL in them.
        strange = any(letter in ":\\/" or letter.isspace() for letter in action)
        return "want the name of an intent or category, or a URL" if strange else None
    if scheme[1].lower() == "https":
        return None if _is_https(action) else "want a URL with a host"
    own = scheme[1].lower() not in _FOREIGN and _OWN.fullmatch(action)
    return None if own else "want an https URL, or one of the app's own scheme"


def _is_https(url: str) -> bool:
    if any(letter.isspace() or letter == "\\" for letter in url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
