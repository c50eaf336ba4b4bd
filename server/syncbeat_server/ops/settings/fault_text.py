"""Says in words which settings are wrong: the place of each, its name, and the text it wants. Repeats no value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.ops.settings.sources import PREFIX

_SHOWN_PART = 31  # characters: keys of tables may be secrets in the wrong place, and those have 32 or more
_OWN_WORDS = "value_error"  # pydantic's type of what our validators raise
_HEADER = re.compile(r"\s*(\[\[?)([^\]]+)\]")
_KEY = re.compile(r"\s*([\w.\"'-]+)\s*=")
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")

TomlPath = tuple[str | int, ...]


class Sources(NamedTuple):
    """Sources of settings: the place of each in `.env` (empty: the environment), and the text of the apps file."""

    places: Mapping[str, str]
    apps_document: str = ""


def describe_faults(error: ValidationError, sources: Sources, *, one_by_one: bool = False) -> list[str]:
    """Return a line for each fault; with `one_by_one` leave out those of settings that do not go together."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return [
        _line(tuple(fault["loc"]), fault["type"], own, sources)
        for fault in found
        if fault["loc"] or not one_by_one
        for own in fault["msg"].removeprefix("Value error, ").splitlines()
    ]


def _line(path: TomlPath, kind: str, own: str, sources: Sources) -> str:
    if path and path[0] in ("apps", "issuers", "templates", "tiers", "sources"):
        inside = path if path[0] == "apps" else ("apps", DEFAULT_APP, *path)
        text, named = (own, _named_first(own)) if kind == _OWN_WORDS else (_wanted(inside, kind, own), ())
        number = find_line(sources.apps_document, (*inside, *named))
        return f"{PREFIX}APPS_FILE: {f'line {number}: ' if number else ''}{_shown(inside)}: {text}"
    if not path:
        mentioned = [name.lower() for name in re.findall(r"\b[A-Z][A-Z0-9_]{2,}\b", own)]
        places = dict.fromkeys(sources.places[name] for name in mentioned if sources.places.get(name))
        return "".join(f"{place}: " for place in places) + PREFIX + own
    place = sources.places.get(str(path[0]), "")
    text = own if kind == _OWN_WORDS else _wanted(path, kind, own)
    return (f"{place}: " if place else "") + f"{PREFIX}{str(path[0]).upper()}{_entry(path)}: {text}"


def _named_first(message: str) -> tuple[str, ...]:
    """Return the setting that a sentence begins with, as in "TLS_KEY: ..." or "TLS_KEY and ..."."""
    named = re.match(r"[A-Z][A-Z0-9_]+", message)
    return (named[0].lower(),) if named else ()


def _entry(path: TomlPath) -> str:
    return f", entry {path[1] + 1}" if len(path) > 1 and isinstance(path[1], int) else ""


def _shown(path: TomlPath) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else part[:_SHOWN_PART] for part in path)


def _wanted(path: TomlPath, kind: str, message: str) -> str:
    # Costs some milliseconds, and only a start that fails pays for them.
    from syncbeat_server.ops.settings.descriptions import describe_settings
    from syncbeat_server.ops.settings.server import Settings
    from syncbeat_server.ops.settings.tiers import LimitSettings, expected_keys

    if kind == "string_too_short":
        return "want text that is not empty"
    if "tiers" in path:
        path = path[path.index("tiers") :]
    if kind == "extra_forbidden" and path[0] == "tiers":
        return f"want {', '.join(expected_keys(len(path)))}"
    if "sources" in path:
        return _wanted_of_source(path, kind, message)
    if kind == "extra_forbidden":
        return "no such setting of an app; see 'syncbeat-server check-config --list'"
    described = {one.name: one for model in (Settings, LimitSettings) for one in describe_settings(model)}
    names = [part for part in path if isinstance(part, str) and part in described]
    return f"want {described[names[-1]].wanted}" if names else message


def _wanted_of_source(path: TomlPath, kind: str, message: str) -> str:
    from syncbeat_server.ops.settings.descriptions import describe_settings
    from syncbeat_server.ops.settings.event_sources import SourceSettings

    described = {one.name: one for one in describe_settings(SourceSettings)}
    if kind == "extra_forbidden":
        return f"want {', '.join(described)}"
    if kind == "missing":
        return "is required"
    names = [part for part in path[path.index("sources") + 2 :] if isinstance(part, str) and part in described]
    return f"want {described[names[0]].wanted}" if names and kind == "enum" else message


def find_line(document: str, path: TomlPath) -> int:
    """Return the line of a TOML document that sets `path`, or the table nearest above it; 0 if there is none."""
    best, best_length = 0, 0
    table: TomlPath = ()
    tables: dict[TomlPath, int] = {}
    for number, line in enumerate(document.splitlines(), start=1):
        here = table
        if header := _HEADER.match(line):
            table = _parts(header[2])
            if header[1] == "[[":
                tables[table] = tables.get(table, -1) + 1
                table = (*table, tables[table])
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_parts(key[1]))
        length = _common_length(here, path)
        if length > best_length and length == len(here):
            best, best_length = number, length
    return best


def _parts(text: str) -> TomlPath:
    return tuple("".join(groups) for groups in _PART.findall(text))


def _common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
