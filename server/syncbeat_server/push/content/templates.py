"""Renders the texts of notifications by locale, with variables. Pure; templates are checked when they are loaded.

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
    """A parsed line of text."""

    pieces: tuple[_Piece, ...]

    @classmethod
    def parse(cls, text: str) -> Text:
        """Parse a text. Raises ValueError for braces that are no variable."""
        pieces = []
        for literal, name, spec, conversion in string.Formatter().parse(text):
            if name is not None and (not _VARIABLE.fullmatch(name) or spec or conversion):
                raise ValueError(f"{{{name}}} is no variable: want a name in braces, and {{{{ for a brace")
            pieces.append((literal, name or ""))
        return cls(tuple(pieces))

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables that the text needs."""
        return frozenset(name for _, name in self.pieces if name)

    def fill(self, variables: Mapping[str, str]) -> str:
        """Return the text with the values of its variables. Raises KeyError for one that is missing."""
        return "".join(literal + (variables[name] if name else "") for literal, name in self.pieces)


@dataclass(frozen=True, slots=True)
class Template:
    """Title and body by locale; the locale 'default' is for all others."""

    texts: Mapping[str, tuple[Text, Text]]
    offered: tuple[str, ...]

    @classmethod
    def parse(cls, texts: Mapping[str, tuple[str, str]]) -> Template:
        """Parse a template: (title, body) by locale. Raises ValueError if it is malformed, or has no default."""
        if DEFAULT_LOCALE not in texts:
            raise ValueError(f"want a text for the locale {DEFAULT_LOCALE!r}, for devices of any other")
        parsed = {_tag(locale): (Text.parse(title), Text.parse(body)) for locale, (title, body) in texts.items()}
        return cls(parsed, locales.broad_first(parsed.keys() - {DEFAULT_LOCALE}))

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables that any of its texts needs."""
        return frozenset().union(*(text.variables for pair in self.texts.values() for text in pair))

    def render(self, locale: str, variables: Mapping[str, str]) -> tuple[str, str]:
        """Return title and body in a locale, or in the nearest to it. Raises KeyError for a missing variable."""
        title, body = self.texts[locales.nearest(locale, self.offered) or DEFAULT_LOCALE]
        return title.fill(variables), body.fill(variables)


def render(content: Content, templates: Mapping[str, Template], locale: str) -> Content:
    """Return the content as a device shows it. Raises KeyError if the template, or a variable of it, is gone."""
    if not content.template:
        return content
    title, body = templates[content.template].render(locale, content.variables)
    return replace(content, title=title, body=body, template="", variables={})


def render_stored(content: Content, texts: Mapping[str, tuple[str, str]], locale: str) -> Content:
    """Return the content with its texts of acceptance, for a template that does not fit any more."""
    title, body = texts[locales.nearest(locale, locales.broad_first(texts.keys() - {DEFAULT_LOCALE})) or DEFAULT_LOCALE]
    return replace(content, title=title, body=body, template="", variables={})


def render_all(content: Content, template: Template) -> list[Content]:
    """Return the content in each locale of its template. Raises KeyError for a variable that is missing."""
    return [render(content, {content.template: template}, locale) for locale in template.texts]


def _tag(locale: str) -> str:
    if locale == DEFAULT_LOCALE:
        return locale
    try:
        return locales.canonical(locale)
    except ValueError:
        raise ValueError(f"{locale!r} is no locale: want a tag of BCP 47, as zh-Hant") from None
