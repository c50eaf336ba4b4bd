"""Reads a map from TOML; faults are sentences that name table and line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from syncbeat_server.directory.model import MemberRole
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.mapping.rules import (
    DeviceRule,
    IgnoreRule,
    MemberRule,
    PreferencesRule,
    Rule,
    SourceTime,
    TimeUnit,
    TransferMap,
    ValueRule,
    variables_of,
)
from syncbeat_server.transfer.mapping.templates import Template, parse_path, parse_template
from syncbeat_server.transfer.model import Path
from syncbeat_server.transfer.rtdb.path_tree import NestedPatternsError, path_tree
from syncbeat_server.transfer.rtdb.reading import MAX_DEPTH

MAX_MAP_OCTETS = 1 << 20
_MAX_RULES = 1_000
_VERSION = 1
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*([a-z_]+)[ \t]*\]\]", re.MULTILINE)
_TEXT = Field(min_length=1, max_length=4_096)
_FIELD = Field(default="", max_length=4_096)
_STRICT = ConfigDict(extra="forbid", frozen=True)


class _SourceTime(BaseModel):
    model_config = _STRICT
    push_id: str = _FIELD
    field: str = _FIELD
    unit: TimeUnit | None = None


class _Value(BaseModel):
    model_config = _STRICT
    path: str = _TEXT
    scope: str = _TEXT
    key: str = _TEXT
    part: str = _FIELD
    source_time: _SourceTime | None = None


class _Member(BaseModel):
    model_config = _STRICT
    path: str = _TEXT
    scope: str = _TEXT
    user: str = _TEXT
    role: str = Field(default=MemberRole.WRITER.value, min_length=1)
    roles: dict[str, MemberRole] = Field(default={}, max_length=_MAX_RULES)


class _Device(BaseModel):
    model_config = _STRICT
    path: str = _TEXT
    user: str = _TEXT
    token: str = _TEXT
    platform: str = _TEXT
    device: str = _FIELD
    time_zone: str = _FIELD
    locale: str = _FIELD


class _Preferences(BaseModel):
    model_config = _STRICT
    path: str = _TEXT
    user: str = _TEXT
    max_per_day: str = _FIELD
    muted_types: str = _FIELD
    quiet_start: str = _FIELD
    quiet_end: str = _FIELD
    time_zone: str = _FIELD


class _Ignore(BaseModel):
    model_config = _STRICT
    path: str = _TEXT


class _Map(BaseModel):
    model_config = _STRICT
    version: int
    unescape_keys: bool = False
    value: list[_Value] = Field(default=[], max_length=_MAX_RULES)
    member: list[_Member] = Field(default=[], max_length=_MAX_RULES)
    device: list[_Device] = Field(default=[], max_length=_MAX_RULES)
    preferences: list[_Preferences] = Field(default=[], max_length=_MAX_RULES)
    ignore: list[_Ignore] = Field(default=[], max_length=_MAX_RULES)


_Table = _Value | _Member | _Device | _Preferences | _Ignore


@dataclass(frozen=True)
class _Places:
    """Finds the line of a table: of each kind the lines of its headers, in order."""

    name: str
    lines: Mapping[str, Sequence[int]]

    def of(self, kind: str, number: int) -> str:
        lines = self.lines.get(kind, ())
        line = f", line {lines[number]}" if number < len(lines) else ""
        return f"{self.name}{line}, [[{kind}]] {number + 1}"


def parse_map(text: str, name: str = "map") -> TransferMap:
    """Return the rules of a map. `name` is the file's, for what is said of it.

    Raises:
        ConfigurationError: the map is at fault; one sentence a fault, each with table and line.
    """
    if len(text.encode()) > MAX_MAP_OCTETS:
        raise ConfigurationError(f"{name}: the map is larger than {MAX_MAP_OCTETS} bytes")
    places = _Places(name, _header_lines(text))
    try:
        read = _Map.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{name}: not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError("\n".join(_sentence(places, fault) for fault in error.errors())) from error
    if read.version != _VERSION:
        raise ConfigurationError(f"{name}: version = {read.version}: this server reads maps of version {_VERSION}")
    tables: list[tuple[str, int, _Table]] = [
        (kind, number, table)
        for kind in ("value", "member", "device", "preferences", "ignore")
        for number, table in enumerate(getattr(read, kind))
    ]
    if not tables:
        raise ConfigurationError(f"{name}: the map has no rule: want a [[value]] or another table")
    return TransferMap(_rules(tables, places), read.unescape_keys, text)


def _rules(tables: Sequence[tuple[str, int, _Table]], places: _Places) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    faults: list[str] = []
    for kind, number, table in tables:
        try:
            rules.append(_rule(table))
        except ValueError as error:
            faults.append(f"{places.of(kind, number)}: {error}")
    if not faults:
        try:
            path_tree([rule.path for rule in rules])
        except NestedPatternsError as error:
            outer, inner = tables[error.outer], tables[error.inner]
            faults.append(
                f"{places.of(*inner[:2])}: path {inner[2].path!r} lies inside {outer[2].path!r} of "
                f"{places.of(*outer[:2])}, which takes all that is below as one"
            )
    if faults:
        raise ConfigurationError("\n".join(faults))
    return tuple(rules)


def _rule(table: _Table) -> Rule:
    path = parse_path(table.path)
    if len(path) > MAX_DEPTH:
        raise ValueError(f"path has {len(path)} keys: nothing in RTDB is deeper than {MAX_DEPTH}")
    if isinstance(table, _Value):
        return _value_rule(table, path)
    if isinstance(table, _Member):
        return _member_rule(table, path)
    if isinstance(table, _Device):
        return DeviceRule(
            path,
            user=_template("user", table.user, path),
            token=_template("token", table.token, path),
            platform=_template("platform", table.platform, path),
            device=_template("device", table.device, path) if table.device else None,
            time_zone=_template("time_zone", table.time_zone, path) if table.time_zone else None,
            locale=_template("locale", table.locale, path) if table.locale else None,
        )
    if isinstance(table, _Preferences):
        fields = table.model_dump(exclude={"path", "user"})
        if not any(fields.values()):
            raise ValueError("no preference is named: want max_per_day, muted_types or quiet_start and quiet_end")
        if bool(table.quiet_start) != bool(table.quiet_end):
            raise ValueError("quiet_start and quiet_end: want both or none")
        return PreferencesRule(path, _template("user", table.user, path), **fields)
    return IgnoreRule(path)


def _value_rule(table: _Value, path: Path) -> ValueRule:
    scope, key = _template("scope", table.scope, path), _template("key", table.key, path)
    if scope.fields or key.fields:
        raise ValueError("scope and key are made of variables of the path only, so that an export finds the way back")
    missing = [name for name in variables_of(path) if name not in scope.variables | key.variables]
    if missing:
        raise ValueError(
            f"neither scope nor key has {{{missing[0]}}}: values at several paths would overwrite each other"
        )
    return ValueRule(path, scope, key, table.part.strip("/"), _source_time(table.source_time, path))


def _source_time(table: _SourceTime | None, path: Path) -> SourceTime | None:
    if table is None:
        return None
    if bool(table.push_id) == bool(table.field):
        raise ValueError("source_time: want push_id or field, one of them")
    if table.push_id:
        if table.push_id not in variables_of(path):
            raise ValueError(f"source_time: the path has no variable {{{table.push_id}}}")
        if table.unit is not None:
            raise ValueError("source_time: a push id has its own unit; leave `unit` out")
        return SourceTime(push_id=table.push_id)
    return SourceTime(field=table.field, unit=table.unit or TimeUnit.MILLISECONDS)


def _member_rule(table: _Member, path: Path) -> MemberRule:
    role = _template("role", table.role, path)
    if not table.roles and not role.fields and not role.variables and table.role not in MemberRole.__members__:
        raise ValueError(f"role {table.role!r}: want READER or WRITER, or a table of roles")
    scope, user = _template("scope", table.scope, path), _template("user", table.user, path)
    return MemberRule(path, scope, user, role, table.roles)


def _template(name: str, text: str, path: Path) -> Template:
    try:
        template = parse_template(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    unknown = sorted(template.variables - set(variables_of(path)))
    if unknown:
        raise ValueError(f"{name}: the path has no variable {{{unknown[0]}}}")
    return template


def _header_lines(text: str) -> dict[str, list[int]]:
    lines: dict[str, list[int]] = {}
    for found in _HEADER.finditer(text):
        lines.setdefault(found[1], []).append(text.count("\n", 0, found.start(1)) + 1)
    return lines


def _sentence(places: _Places, fault: Any) -> str:
    where = list(fault["loc"])
    start = places.name
    if len(where) > 1 and isinstance(where[0], str) and isinstance(where[1], int):
        start = places.of(where[0], where[1])
        where = where[2:]
    name = ".".join(map(str, where))
    said = "there is no such key" if fault["type"] == "extra_forbidden" else fault["msg"][:1].lower() + fault["msg"][1:]
    said = "it is missing" if fault["type"] == "missing" else said
    return f"{start}: {name}: {said}" if name else f"{start}: {said}"
