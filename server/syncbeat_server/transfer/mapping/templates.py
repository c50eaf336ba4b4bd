"""Fills templates of names, such as `chat:{chat}`, and reads the variables back out of a name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from syncbeat_server.transfer.model import Json, MisfitReason, Path

_PART = re.compile(r"\{([^{}]*)\}|([^{}]+)|(.)", re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Template:
    """Holds the parts of a name: literal text, variables of the path, and fields of the value.

    `{chat}` is a variable; `{.}` the value itself; `{.meta/owner}` a field of it, by its path.
    """

    text: str
    parts: tuple[tuple[str, str], ...]
    """Pairs of a kind, `text`, `variable` or `field`, and what it names."""

    @cached_property
    def variables(self) -> frozenset[str]:
        """Return the names of the variables of the path."""
        return frozenset(name for kind, name in self.parts if kind == "variable")

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Return the paths of the fields of the value."""
        return tuple(name for kind, name in self.parts if kind == "field")

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Return the pattern that a filled template without fields matches, with a group for each variable."""
        seen: set[str] = set()
        pattern = ""
        for kind, name in self.parts:
            if kind == "text":
                pattern += re.escape(name)
            elif name in seen:
                pattern += f"(?P={name})"
            else:
                pattern += f"(?P<{name}>.+)"
                seen.add(name)
        return re.compile(pattern, re.DOTALL)

    def filled(self, variables: Mapping[str, str], value: Json | None = None) -> str | MisfitReason:
        """Return the name for these variables and this value, or why there is none."""
        text = ""
        for kind, name in self.parts:
            if kind == "text":
                text += name
            elif kind == "variable":
                text += variables[name]
            else:
                found = text_of(value, name)
                if isinstance(found, MisfitReason):
                    return found
                text += found
        return text

    def read(self, name: str) -> dict[str, str] | None:
        """Return the variables of a name that this template without fields makes; None if it makes none such."""
        found = self.pattern.fullmatch(name)
        return None if found is None else found.groupdict()

    def can_meet(self, other: Template) -> bool:
        """Return False if no name can come of both, as their literal beginnings or ends tell."""
        for place in (0, -1):
            (own_kind, own), (kind, theirs) = self.parts[place], other.parts[place]
            if own_kind == kind == "text":
                length = min(len(own), len(theirs))
                ends = (own[:length], theirs[:length]) if place == 0 else (own[-length:], theirs[-length:])
                if ends[0] != ends[1]:
                    return False
        only_text = len(self.parts) == len(other.parts) == 1 and self.parts[0][0] == other.parts[0][0] == "text"
        return not only_text or self.text == other.text


def parse_template(text: str) -> Template:
    """Return the template of a text.

    Raises:
        ValueError: it is empty, or its braces hold no variable and no field.
    """
    parts: list[tuple[str, str]] = []
    for braced, plain, stray in _PART.findall(text):
        if stray or not (braced or plain):
            raise ValueError(f"{text!r}: braces hold the name of a variable, or a dot and the path of a field")
        if plain:
            parts.append(("text", plain))
        elif braced.startswith("."):
            parts.append(("field", braced[1:]))
        elif _VARIABLE.fullmatch(braced):
            parts.append(("variable", braced))
        else:
            raise ValueError(f"{text!r}: {{{braced}}} is no name of a variable")
    if not parts:
        raise ValueError("it is empty")
    return Template(text, tuple(parts))


def field_of(value: Json | None, path: str) -> Json | None:
    """Return the field of a value by its path, the value itself for an empty path; None if it is not there."""
    for key in path.split("/") if path else ():
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def text_of(value: Json | None, path: str) -> str | MisfitReason:
    """Return a field as text: a text itself, or a number or boolean as JSON has it."""
    found = field_of(value, path)
    if isinstance(found, str):
        return found
    if found is None:
        return MisfitReason.FIELD_MISSING
    if isinstance(found, dict):
        return MisfitReason.FIELD_TYPE
    if isinstance(found, bool):
        return "true" if found else "false"
    return str(found)


def parse_path(text: str) -> Path:
    """Return the keys of a path pattern.

    Raises:
        ValueError: a key is empty, or its braces hold no name of a variable, or a name occurs twice.
    """
    keys = tuple(text.strip("/").split("/"))
    names: list[str] = []
    for key in keys:
        if not key:
            raise ValueError(f"{text!r} has an empty key: want keys with a slash between them")
        if "{" in key or "}" in key:
            if not (key[0] == "{" and key[-1] == "}" and _VARIABLE.fullmatch(key[1:-1])):
                raise ValueError(f"{text!r}: want {key!r} to be one variable in braces, or to have none")
            names.append(key[1:-1])
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{text!r} names a variable twice: {', '.join(sorted(twice))}")
    return keys
