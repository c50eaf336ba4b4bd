"""Validates the URLs of a notification: of its image, and of the action that a tap opens. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from syncbeat_server.push.model import link_scheme

# With an authority, as in myapp://chat/1. Schemes of scripts, mail, calls and the like have none, and belong to no app.
_OWN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\\]+")
# Schemes of browsers and systems, which may have an authority too: they run scripts, read files, use unencrypted
# connections, or open the content of other apps.
_FOREIGN = frozenset(
    (
        *("http", "ftp", "ftps", "ws", "wss", "file", "filesystem", "content", "blob", "data", "jar", "resource"),
        *("javascript", "vbscript", "view-source", "about", "chrome", "intent", "android-app", "market"),
        *("tel", "sms", "smsto", "mailto", "facetime"),
    )
)


def image_fault(url: str) -> str | None:
    """Return a description of the fault in an image's URL; None if it is fine."""
    return None if not url or _is_https(url) else "want an https URL"


def action_fault(action: str) -> str | None:
    """Return a description of the fault in the action of a tap; None if it is fine."""
    scheme = link_scheme(action)
    if scheme is None:
        # Browsers and apps parse leniently: text that looks like a name must not become a URL in them.
        strange = any(letter in ":\\/" or letter.isspace() for letter in action)
        return "want the name of an intent or category, or a URL" if strange else None
    if scheme.lower() == "https":
        return None if _is_https(action) else "want a URL with a host"
    own = scheme.lower() not in _FOREIGN and _OWN.fullmatch(action)
    return None if own else "want an https URL, or one of the app's own scheme"


def _is_https(url: str) -> bool:
    if any(letter.isspace() or letter == "\\" for letter in url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
