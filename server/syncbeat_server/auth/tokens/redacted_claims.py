"""Shows claims of tokens as a log may hold them: in one line of ASCII, bounded, without what may be a secret. Pure.

Nobody has verified these claims, and whoever confuses two settings of a client puts a token or a secret into one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MOST_SHOWN = 100
_MOST_OF_ITEM = 90
_MOST_KNOWN = 300
_MOST_READ = 2_000  # characters: enough to find a secret in what is shown, and no work for what is longer
_KEPT_OF_SECRET = 4  # tells kids apart, and gives away a tenth of the shortest secret
_LEAST_SECRET = 20
_RUN = re.compile(rf"[A-Za-z0-9_+~=-]{{{_LEAST_SECRET},}}")
# In a URL a slash separates names; elsewhere it is a character of base64.
_RUN_WITH_SLASH = re.compile(rf"[A-Za-z0-9_+~=/-]{{{_LEAST_SECRET},}}")
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_.=-]*")  # base64 of `{"`, with which each part of a JWT begins
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_KINDS = (re.compile("[a-z]"), re.compile("[A-Z]"), re.compile("[0-9]"))
_HEX = re.compile("[0-9a-fA-F]+")


def show(value: object) -> str:
    """Return a claim's value: texts and lists of texts masked and cut, numbers as they are, of others the type."""
    if isinstance(value, str):
        return _quoted(value, _MOST_SHOWN)
    if isinstance(value, list):
        texts = (_quoted(one, _MOST_OF_ITEM) if isinstance(one, str) else "an object" for one in value)
        return _listed(texts, _MOST_SHOWN)
    if value is None or isinstance(value, bool | int | float):
        return ascii(value)[:_MOST_SHOWN]
    return "an object"


def show_known(names: Iterable[str]) -> str:
    """Return names of the settings or of an issuer's published keys, as many as fit into a line."""
    return _listed((ascii(name) for name in names), _MOST_KNOWN)


def _listed(shown: Iterable[str], most: int) -> str:
    text = ""
    for one in shown:
        longer = f"{text}, {one}" if text else one
        if len(longer) > most - len("[, ...]"):
            return f"[{text}, ...]" if text else "[...]"
        text = longer
    return f"[{text}]"


def _quoted(text: str, most: int) -> str:
    """Return `text` in quotes, which close also where it is cut."""
    masked = _masked(text[:_MOST_READ])
    whole = ascii(masked)
    if len(whole) <= most and len(text) <= _MOST_READ:
        return whole
    kept = masked[:most]
    while len(cut := ascii(f"{kept}...")) > most:
        kept = kept[: len(kept) - max(1, (len(cut) - most) // len("\\U0001f600"))]
    return cut


def _masked(text: str) -> str:
    text = _TOKEN.sub(_without_end, text)
    runs = _RUN if "://" in text else _RUN_WITH_SLASH
    return runs.sub(lambda found: _without_end(found) if _may_be_secret(found[0]) else found[0], text)


def _may_be_secret(run: str) -> bool:
    if _UUID.fullmatch(run):
        return False
    return _HEX.fullmatch(run) is not None or all(kind.search(run) for kind in _KINDS)


def _without_end(found: re.Match[str]) -> str:
    return f"{found[0][:_KEPT_OF_SECRET]}<{len(found[0])} characters>"
