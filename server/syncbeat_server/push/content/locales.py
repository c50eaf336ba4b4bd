"""Which of an app's texts a device's locale gets. Pure (ADR 93).

Tags are those of BCP 47. What was replaced, the script that a region writes, and how near two tags are, is data of CLDR
and of the IANA registry, which langcodes keeps.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from langcodes import Language
from langcodes.data_dicts import MACROLANGUAGES

MOST_KEPT = 4_000  # of pairs of a locale and an app's texts: a megabyte or two, and more than there are in use


def canonical(tag: str) -> str:
    """The tag of a text as it is compared. Raises ValueError for one that names no language."""
    if Language.get(tag).language is None:
        raise ValueError(f"{tag!r} names no language")
    return _spelled(tag)


def broad_first(offered: Collection[str]) -> tuple[str, ...]:
    """The tags of an app's texts, so that of two that are equally near the broader one is taken."""
    return tuple(sorted(offered, key=lambda tag: (tag.count("-"), tag)))


@lru_cache(maxsize=MOST_KEPT)
def nearest(locale: str, offered: tuple[str, ...]) -> str | None:
    """The nearest to a device's locale of an app's tags; None when there is none that its user reads.

    That is one of the same language in the same script: who reads Serbian in Latin letters need not read it in Cyrillic
    ones, and who speaks Ukrainian does not want Russian. Languages that share a macrolanguage count as one, as Bokmål
    and Nynorsk do.
    """
    if (tag := _spelled(locale)) in offered:
        return tag
    _bound_what_langcodes_keeps()
    wanted = _language(locale)
    if wanted is None:
        return None
    readable = [(tag, text) for tag in offered if _reads(wanted, text := Language.get(tag))]
    if not readable:
        return None
    variants = set(wanted.variants or ())
    nearness = {tag: (wanted.distance(text), len(variants ^ set(text.variants or ()))) for tag, text in readable}
    return min(nearness, key=nearness.__getitem__)


def _spelled(tag: str) -> str:
    return tag.replace("_", "-").lower()


def _reads(wanted: Language, text: Language) -> bool:
    left, right = (one.prefer_macrolanguage().maximize() for one in (wanted, text))
    return (_macrolanguage(left), left.script) == (_macrolanguage(right), right.script)


def _macrolanguage(language: Language) -> str:
    code = language.language or ""
    return MACROLANGUAGES.get(code, code)


def _language(locale: str) -> Language | None:
    """A device's locale, of which as much as makes sense; POSIX and Java write some of it in ways of their own."""
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


def _bound_what_langcodes_keeps() -> None:
    # It keeps all that it ever read, and devices say what they like.
    if max(len(Language._PARSE_CACHE), len(Language._INSTANCES)) > MOST_KEPT:
        Language._PARSE_CACHE.clear()
        Language._INSTANCES.clear()
