"""Where settings come from: the environment, `.env`, a file for each secret, the apps file. Nothing is judged here."""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.files import FileFault, read_file, read_text, shown_path, text_of

PREFIX = "SYNCBEAT_"


@dataclass(frozen=True)
class _Given:
    variable: str
    text: str
    in_file: bool


def read_values(environment: Mapping[str, str], env_file: Path | None, known: Collection[str]) -> dict[str, str]:
    """Returns what the environment, or else `.env`, says of each setting of `known`, itself or by the file it names.

    Raises:
        ConfigurationError: a setting is unknown or given twice, or a file cannot be read.
    """
    given = _given(environment, known)
    if env_file is not None:
        # By setting, not by variable: NAME in the environment goes before NAME_FILE in `.env` too.
        given = {**_given(_env_variables(env_file), known), **given}
    return {setting: _text(one) for setting, one in given.items()}


def read_app_tables(path: Path, content: bytes | None = None) -> dict[str, dict[str, Any]]:
    """Returns the tables of the apps file by the app's name; `content`: what it was found to hold.

    Raises:
        ConfigurationError: it cannot be read, or holds something else.
    """
    setting = f"{PREFIX}APPS_FILE"
    try:
        document = tomllib.loads(text_of(read_file(path) if content is None else content, path))
    except FileFault as fault:
        raise ConfigurationError(f"{setting}: cannot read it: {fault}") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at [a-z0-9, ]+\)$", str(error))  # the rest may repeat what stands there
        where = f" {place[0]}" if place else ""
        raise ConfigurationError(f"{setting}: cannot read {shown_path(path)}: it is no TOML{where}") from None
    except RecursionError:
        raise ConfigurationError(f"{setting}: cannot read {shown_path(path)}: it is nested too deep") from None
    except ValueError:  # a number of more digits than Python reads
        raise ConfigurationError(f"{setting}: cannot read {shown_path(path)}: a value of it is too long") from None
    apps = document.get("apps")
    if not isinstance(apps, dict) or set(document) != {"apps"} or not all(isinstance(t, dict) for t in apps.values()):
        raise ConfigurationError(f"{setting}: want tables [apps.NAME] and nothing else")
    return apps


def _given(variables: Mapping[str, str], known: Collection[str]) -> dict[str, _Given]:
    found: dict[str, _Given] = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        in_file = name not in known and name.endswith("_file")
        setting = name.removesuffix("_file") if in_file else name
        if setting not in known:
            raise ConfigurationError(
                f"{_shown_variable(variable)}: no such setting; see 'syncbeat-server check-config --list'"
            )
        other = found.get(setting)
        if other is not None and other.text and text:
            first, second = sorted((other.variable, variable))
            raise ConfigurationError(f"{first} and {second}: both are set, and say the same setting: set one of them")
        # An empty one is not set, as where a compose file passes on what may be missing.
        if other is None or text:
            found[setting] = _Given(variable, text, in_file and bool(text))
    return found


def _env_variables(path: Path) -> dict[str, str]:
    try:
        text = read_text(path)
    except FileFault as fault:
        if fault.missing and not path.is_symlink():
            return {}
        raise ConfigurationError(f".env: cannot read it: {fault}") from None
    for statement in parse_stream(io.StringIO(text)):
        if statement.error and PREFIX in statement.original.string:
            raise ConfigurationError(f".env: line {statement.original.line} is not NAME=value")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}


def _text(given: _Given) -> str:
    text = given.text
    if given.in_file:
        try:
            text = read_text(Path(given.text)).strip()
        except FileFault as fault:
            raise ConfigurationError(f"{given.variable}: cannot read it: {fault}") from None
        if not text:
            raise ConfigurationError(f"{given.variable}: {shown_path(Path(given.text))} is empty")
    if "\0" in text or not _is_utf8(text):
        raise ConfigurationError(f"{given.variable}: want text in UTF-8")
    return text


def _is_utf8(text: str) -> bool:
    # What the environment holds in another encoding comes as lone surrogates.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown_variable(variable: str) -> str:
    return variable if re.fullmatch(r"[A-Za-z0-9_]{1,64}", variable) else f"{PREFIX}..."
