"""Defines the rules that a map consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, cached_property
from typing import TypeAlias

from syncbeat_server.directory.model import MemberRole
from syncbeat_server.transfer.mapping.templates import Template
from syncbeat_server.transfer.model import Path, spelled
from syncbeat_server.transfer.rtdb.path_tree import PathNode, path_tree, variable_name


class TimeUnit(StrEnum):
    """Names the forms in which a field says when a value was written."""

    MILLISECONDS = "ms"
    SECONDS = "s"
    ISO = "iso"


@dataclass(frozen=True)
class SourceTime:
    """Says where the source time of a value comes from: a push id of the path, or a field of the value."""

    push_id: str = ""
    """The variable of the path that is a push id; empty: a field says the time."""
    field: str = ""
    unit: TimeUnit = TimeUnit.MILLISECONDS


@dataclass(frozen=True)
class ValueRule:
    """Makes the subtree at a path the value of a key in a scope's feed; `part`: only this field of it."""

    path: Path
    scope: Template
    key: Template
    part: str = ""
    source_time: SourceTime | None = None

    @cached_property
    def tree_path(self) -> Path:
        """Return the pattern of the path at which the value itself stands."""
        return (*self.path, *self.part.split("/")) if self.part else self.path

    @cached_property
    def is_readable(self) -> bool:
        """Return True if any scope and key tell their variables, since neither template has two to tell apart."""
        return all(sum(kind == "variable" for kind, _ in one.parts) <= 1 for one in (self.scope, self.key))


@dataclass(frozen=True)
class MemberRule:
    """Makes a path a membership. `roles`: the role by what `role` comes to; empty: it is the role itself."""

    path: Path
    scope: Template
    user: Template
    role: Template
    roles: Mapping[str, MemberRole]


@dataclass(frozen=True)
class DeviceRule:
    """Makes a path a device with a registration token. Without `device` its id is a digest of the token."""

    path: Path
    user: Template
    token: Template
    platform: Template
    device: Template | None = None
    time_zone: Template | None = None
    locale: Template | None = None


@dataclass(frozen=True)
class PreferencesRule:
    """Makes a path the preferences of a user, by the paths of its fields; empty: there is no such field."""

    path: Path
    user: Template
    max_per_day: str = ""
    muted_types: str = ""
    quiet_start: str = ""
    quiet_end: str = ""
    time_zone: str = ""


@dataclass(frozen=True)
class IgnoreRule:
    """Leaves the subtree at a path where it is, so that it is not reported."""

    path: Path


Rule: TypeAlias = ValueRule | MemberRule | DeviceRule | PreferencesRule | IgnoreRule


@dataclass(frozen=True)
class TransferMap:
    """Holds the rules of a map. `unescape_keys`: keys of paths are %-escaped, and variables are not.

    `text`: the map as it was written, which an import is known by.
    """

    rules: tuple[Rule, ...]
    unescape_keys: bool = False
    text: str = ""

    @cached_property
    def root(self) -> PathNode:
        """Return the tree of the patterns of all rules."""
        return path_tree([rule.path for rule in self.rules])

    @cached_property
    def value_rules(self) -> tuple[ValueRule, ...]:
        """Return the rules whose targets are values."""
        return tuple(rule for rule in self.rules if isinstance(rule, ValueRule))

    def values_only(self) -> TransferMap:
        """Return the map with what it makes members, devices and preferences ignored."""
        rules = (rule if isinstance(rule, ValueRule) else IgnoreRule(rule.path) for rule in self.rules)
        return replace(self, rules=tuple(rules))

    def without_source_times(self) -> TransferMap:
        """Return the map with all that its values are, and not when they were made, so that no time is a misfit."""
        rules = (replace(rule, source_time=None) if isinstance(rule, ValueRule) else rule for rule in self.rules)
        return replace(self, rules=tuple(rules))


@cache
def variable_places(path: Path) -> tuple[tuple[int, str], ...]:
    """Return the places of the variables of a pattern in it, with their names."""
    return tuple((place, name) for place, key in enumerate(path) if (name := variable_name(key)) is not None)


def variables_of(path: Path) -> tuple[str, ...]:
    """Return the names of the variables of a pattern."""
    return tuple(name for _, name in variable_places(path))


def label(rule: Rule) -> str:
    """Return the pattern of a rule as reports name it."""
    return spelled(rule.path)
