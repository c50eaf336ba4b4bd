"""Chooses which of an app's texts a device's locale gets. Pure.

Tags are those of BCP 47. Replaced tags, the script of a region and the distance between two tags are data of CLDR and
of the IANA registry, which langcodes carries.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from langcodes import Language
from langcodes.data_dicts import MACROLANGUAGES

MAX_CACHED = 4_000  # pairs of a locale and an app's texts: a megabyte or two, and more than there are in use


def canonical(tag: str) -> str:
    """Return the tag of a text in the form in which tags are compared. Raises ValueError if it names no language."""
    if Language.get(tag).language is None:
        raise ValueError(f"{tag!r} names no language")
    return _normalized(tag)


def broad_first(offered: Collection[str]) -> tuple[str, ...]:
    """Return an app's tags in an order that prefers the broader one of two that are equally near."""
    return tuple(sorted(offered, key=lambda tag: (tag.count("-"), tag)))


@lru_cache(maxsize=MAX_CACHED)
def nearest(locale: str, offered: tuple[str, ...]) -> str | None:
    """Return the tag of an app that is nearest to a device's locale; None if it has none that the user can read.

    Readable is a text of the same language in the same script: who reads Serbian in Latin letters need not read it in
    Cyrillic ones, and who speaks Ukrainian does not want Russian. Languages that share a macrolanguage count as one, as
    Bokmål and Nynorsk do.
    """
    if (tag := _normalized(locale)) in offered:
        return tag
    _bound_langcodes_caches()
    wanted = _language(locale)
    if wanted is None:
        return None
    readable = [(tag, text) for tag in offered if _is_readable(wanted, text := Language.get(tag))]
    if not readable:
        return None
    variants = set(wanted.variants or ())
    nearness = {tag: (wanted.distance(text), len(variants ^ set(text.variants or ()))) for tag, text in readable}
    return min(nearness, key=nearness.__getitem__)


def _normalized(tag: str) -> str:
    return tag.replace("_", "-").lower()


def _is_readable(wanted: Language, text: Language) -> bool:
    left, right = (one.prefer_macrolanguage().maximize() for one in (wanted, text))
    return (_macrolanguage(left), left.script) == (_macrolanguage(right), right.script)


def _macrolanguage(language: Language) -> str:
    code = language.language or ""
    return MACROLANGUAGES.get(code, code)


def _language(locale: str) -> Language | None:
    """Parse as much of a device's locale as makes sense; POSIX and Java write some of it in ways of their own."""
    tag = re.split("[.@]", locale)[0]  # de_DE.UTF-8, de_AT@euro
    tag, _, script = tag.partition("_#")  # zh_TW_#Hant
    language, _, rest = tag.replace("_", "-").partition("-")
    tag = "-".join(part for part in (language, script[:4], rest) if part)
    while tag:
        try:
            found = Language.get(tag)
        except ValueError:
            tag = tag.rpartition("-")[0]
        else:
            return None if found.language is None else found
    return None


def _bound_langcodes_caches() -> None:
    # langcodes caches every tag that it has parsed, and devices may send any.
    if max(len(Language._PARSE_CACHE), len(Language._INSTANCES)) > MAX_CACHED:
        Language._PARSE_CACHE.clear()
        Language._INSTANCES.clear()
