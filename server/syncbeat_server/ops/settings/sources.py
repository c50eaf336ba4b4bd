"""Reads the sources of settings: the environment, `.env`, a file for each secret, the apps file. Validates nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.files import FileFault, decode_text, loggable_path, read_file, read_text

PREFIX = "SYNCBEAT_"


class GivenText(NamedTuple):
    """The text of a setting, and its place if that is not the environment, such as ".env line 3"."""

    text: str
    place: str = ""


class AppsDocument(NamedTuple):
    """The tables of the apps file by the app's name, and its text."""

    tables: dict[str, dict[str, Any]]
    text: str


class _Assignment(NamedTuple):
    variable: str
    text: str
    in_file: bool
    place: str


class GivenValues(NamedTuple):
    """The text of each setting that is set, the faults of the sources, a line each, and the files of NAME_FILE."""

    texts: dict[str, GivenText]
    faults: list[str]
    files: dict[str, Path]


def read_values(
    environment: Mapping[str, str], env_file: Path | None, known: Collection[str], *, ignore_others: bool = False
) -> GivenValues:
    """Return the text of each setting in `known` that is set: by NAME or NAME_FILE, the environment before `.env`.

    A setting is at fault if it is unknown or given twice, or its file cannot be read; a line of `.env`, if it is not
    NAME=value. With `ignore_others` neither variables of other settings nor such lines are looked at.
    """
    faults: list[str] = []
    given = {variable: GivenText(text) for variable, text in environment.items()}
    assigned = _assignments(given, known, faults, ignore_others=ignore_others)
    if env_file is not None:
        # By setting, not by variable: NAME in the environment goes before NAME_FILE in `.env` too.
        variables = _env_variables(env_file, faults, ignore_others=ignore_others)
        in_file = _assignments(variables, known, faults, ignore_others=ignore_others)
        assigned = {**in_file, **assigned}
    texts = {}
    for setting, one in assigned.items():
        try:
            texts[setting] = GivenText(_text(one), one.place)
        except ConfigurationError as error:
            faults.append(error.message)
    files = {setting: Path(one.text) for setting, one in assigned.items() if one.in_file and setting in texts}
    return GivenValues(texts, faults, files)


def read_setting_file(setting: str, path: Path) -> str:
    """Return the text of a setting that is given by NAME_FILE. Raises ConfigurationError when it cannot be used."""
    return _text(_Assignment(f"{PREFIX}{setting.upper()}_FILE", str(path), True, ""))


def read_app_tables(path: Path, content: bytes | None = None) -> AppsDocument:
    """Read the apps file; `content` saves reading it again.

    Raises:
        ConfigurationError: it cannot be read, or holds something else.
    """
    import tomllib

    setting = f"{PREFIX}APPS_FILE"
    try:
        text = decode_text(read_file(path) if content is None else content, path)
        document = tomllib.loads(text)
    except FileFault as fault:
        raise ConfigurationError(f"{setting}: cannot read it: {fault}") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at [a-z0-9, ]+\)$", str(error))  # the rest may repeat the file's content
        where = f" {place[0]}" if place else ""
        raise ConfigurationError(f"{setting}: cannot read {loggable_path(path)}: it is no TOML{where}") from None
    except RecursionError:
        raise ConfigurationError(f"{setting}: cannot read {loggable_path(path)}: it is nested too deep") from None
    except ValueError:  # a number of more digits than Python reads
        raise ConfigurationError(f"{setting}: cannot read {loggable_path(path)}: a value of it is too long") from None
    if not document:  # a file that was cut off looks like this, and must not shut out everybody
        raise ConfigurationError(f"{setting}: there is nothing in it; no apps but the environment's are written [apps]")
    apps = document.get("apps")
    if not isinstance(apps, dict) or set(document) != {"apps"} or not all(isinstance(t, dict) for t in apps.values()):
        raise ConfigurationError(f"{setting}: want tables [apps.NAME] and nothing else")
    return AppsDocument(apps, text)


def _assignments(
    variables: Mapping[str, GivenText], known: Collection[str], faults: list[str], *, ignore_others: bool
) -> dict[str, _Assignment]:
    found: dict[str, _Assignment] = {}
    for variable, (text, place) in variables.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        in_file = name not in known and name.endswith("_file")
        setting = name.removesuffix("_file") if in_file else name
        if setting not in known:
            if not ignore_others:
                faults.append(f"{f'{place}: ' if place else ''}{_shown_variable(variable)}: {_unknown(name, known)}")
            continue
        other = found.get(setting)
        if other is not None and other.text and text:
            first, second = sorted((other.variable, variable))
            faults.append(f"{first} and {second}: both are set, and say the same setting: set one of them")
        # An empty variable counts as unset: compose files pass on variables that may be missing.
        elif other is None or text:
            found[setting] = _Assignment(variable, text, in_file and bool(text), place)
    return found


def _unknown(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    instead = f"did you mean {PREFIX}{close[0].upper()}?" if close else "see 'syncbeat-server check-config --list'"
    return f"no such setting; {instead}"


def _env_variables(path: Path, faults: list[str], *, ignore_others: bool) -> dict[str, GivenText]:
    try:
        text = read_text(path)
    except FileFault as fault:
        if not fault.missing or path.is_symlink():
            faults.append(f".env: cannot read it: {fault}")
        return {}
    import io

    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    lines = {}
    well_formed = []
    for statement in parse_stream(io.StringIO(text)):
        raw = statement.original.string  # with the empty lines before it
        number = statement.original.line + raw[: len(raw) - len(raw.lstrip())].count("\n")
        if not statement.error and (statement.key is None or statement.value is not None):
            well_formed.append(raw)
            lines[statement.key] = f".env line {number}"
        elif not ignore_others or PREFIX in raw:
            faults.append(f".env: line {number} is not NAME=value")
    # Without the others, of which it would warn in words of its own.
    values = dotenv_values(stream=io.StringIO("".join(well_formed)))
    return {name: GivenText(value, lines[name]) for name, value in values.items() if value is not None}


def _text(assignment: _Assignment) -> str:
    text, variable = assignment.text, assignment.variable
    if assignment.in_file:
        path = Path(text)
        try:
            text = read_text(path).strip()
        except FileFault as fault:
            raise ConfigurationError(f"{variable}: cannot read it: {fault}") from None
        if not text:
            raise ConfigurationError(f"{variable}: {loggable_path(path)} is empty")
    if "\0" in text or not _is_utf8(text):
        raise ConfigurationError(f"{variable}: want text in UTF-8")
    return text


def _is_utf8(text: str) -> bool:
    # Python passes on environment variables in other encodings as lone surrogates.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown_variable(variable: str) -> str:
    return variable if re.fullmatch(r"[A-Za-z0-9_]{1,64}", variable) else f"{PREFIX}..."
