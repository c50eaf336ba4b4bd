"""Texts of notifications by locale, with variables. Pure; checked when they are loaded.

A text has its variables in braces, `{name}`; `{{` and `}}` are braces. Nothing else is evaluated.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace

from syncbeat_server.push.content import locales
from syncbeat_server.push.model import Content

DEFAULT_LOCALE = "default"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_Piece = tuple[str, str]  # a literal, and the variable after it; '' for none


@dataclass(frozen=True, slots=True)
class Text:
    """One line of text, parsed."""

    pieces: tuple[_Piece, ...]

    @classmethod
    def parse(cls, text: str) -> Text:
        """Read a text. Raises ValueError for braces that are no variable."""
        pieces = []
        for literal, name, spec, conversion in string.Formatter().parse(text):
            if name is not None and (not _VARIABLE.fullmatch(name) or spec or conversion):
                raise ValueError(f"{{{name}}} is no variable: want a name in braces, and {{{{ for a brace")
            pieces.append((literal, name or ""))
        return cls(tuple(pieces))

    @property
    def variables(self) -> frozenset[str]:
        """What it needs."""
        return frozenset(name for _, name in self.pieces if name)

    def filled(self, variables: Mapping[str, str]) -> str:
        """The text with its variables. Raises KeyError for one that is missing."""
        return "".join(literal + (variables[name] if name else "") for literal, name in self.pieces)


@dataclass(frozen=True, slots=True)
class Template:
    """Title and body by locale; the locale 'default' is for all others."""

    texts: Mapping[str, tuple[Text, Text]]
    offered: tuple[str, ...]

    @classmethod
    def parse(cls, texts: Mapping[str, tuple[str, str]]) -> Template:
        """Read a template: (title, body) by locale. Raises ValueError when it is wrong, or has no default."""
        if DEFAULT_LOCALE not in texts:
            raise ValueError(f"want a text for the locale {DEFAULT_LOCALE!r}, for devices of any other")
        parsed = {_tag(locale): (Text.parse(title), Text.parse(body)) for locale, (title, body) in texts.items()}
        return cls(parsed, locales.broad_first(parsed.keys() - {DEFAULT_LOCALE}))

    @property
    def variables(self) -> frozenset[str]:
        """What any of its texts needs."""
        return frozenset().union(*(text.variables for pair in self.texts.values() for text in pair))

    def told(self, locale: str, variables: Mapping[str, str]) -> tuple[str, str]:
        """Title and body in a locale, or the nearest to it. Raises KeyError."""
        title, body = self.texts[locales.nearest(locale, self.offered) or DEFAULT_LOCALE]
        return title.filled(variables), body.filled(variables)


def in_locale(content: Content, templates: Mapping[str, Template], locale: str) -> Content:
    """What a device shows. Raises KeyError: the template, or a variable of it, is not there (any more)."""
    if not content.template:
        return content
    title, body = templates[content.template].told(locale, content.variables)
    return replace(content, title=title, body=body, template="", variables={})


def as_accepted(content: Content, texts: Mapping[str, tuple[str, str]], locale: str) -> Content:
    """Return the content as it was accepted, for a template that does not fit any more."""
    title, body = texts[locales.nearest(locale, locales.broad_first(texts.keys() - {DEFAULT_LOCALE})) or DEFAULT_LOCALE]
    return replace(content, title=title, body=body, template="", variables={})


def in_all_locales(content: Content, template: Template) -> list[Content]:
    """What it comes to in each locale of its template. Raises KeyError for a variable that is missing."""
    return [in_locale(content, {content.template: template}, locale) for locale in template.texts]


def _tag(locale: str) -> str:
    if locale == DEFAULT_LOCALE:
        return locale
    try:
        return locales.canonical(locale)
    except ValueError:
        raise ValueError(f"{locale!r} is no locale: want a tag of BCP 47, as zh-Hant") from None
