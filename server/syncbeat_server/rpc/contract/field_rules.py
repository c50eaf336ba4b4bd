"""Reads the rules of request fields, which are `buf.validate` and what `field_rules.proto` adds, into plain values.

A rule that the server does not evaluate is refused here, at start: it would be a promise that nobody keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from syncbeat_server.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class FieldRules:
    """Bounds of what a field may hold. Those of texts are of each item of a list, and of each value of a map."""

    required: bool = False
    not_empty: bool = False
    """Refuses an empty text where the field is there, or is an item."""
    max_bytes: int | None = None
    multiline: bool = False
    visible_ascii: bool = False
    json: bool = False
    max_depth: int = 0
    max_items: int | None = None
    max_key_bytes: int = 0
    min_value: int | None = None
    max_value: int | None = None
    min_millis: int | None = None
    max_millis: int | None = None
    acting_user: bool = False


@dataclass(frozen=True, slots=True)
class RuleExtensions:
    """The options of `field_rules.proto` and of protovalidate, as the descriptor pool has them."""

    field: Any
    json: Any
    acting_user: Any


def read_rules(options: Any, extensions: RuleExtensions) -> FieldRules:
    """Return the rules that the options of a field state.

    Raises:
        ConfigurationError: the server does not evaluate one of them.
    """
    rules = FieldRules(acting_user=options.Extensions[extensions.acting_user])
    if options.HasExtension(extensions.json):
        rules = replace(rules, json=True, max_depth=options.Extensions[extensions.json].max_depth)
    for name, value in _stated(options.Extensions[extensions.field]):
        match name:
            case "required":
                rules = replace(rules, required=value)
            case "string":
                rules = _with_text(rules, _stated(value))
            case "repeated":
                rules = _with_items(rules, _stated(value))
            case "map":
                rules = _with_entries(rules, _stated(value))
            case "int32" | "int64":
                bounds = _bounds(name, _stated(value))
                rules = replace(rules, min_value=bounds.get("gte"), max_value=bounds.get("lte"))
            case "duration":
                bounds = _bounds(name, _stated(value))
                rules = replace(rules, min_millis=_millis(bounds["gte"]), max_millis=_millis(bounds["lte"]))
            case "enum":
                _only(name, _stated(value), {"defined_only": True})
            case _:
                raise _unsupported(name)
    return rules


def _stated(rules: Any) -> list[tuple[str, Any]]:
    return [(rule.name, value) for rule, value in rules.ListFields()]


def _unsupported(rule: str) -> ConfigurationError:
    return ConfigurationError(f"the contract has the rule {rule}, which this server does not evaluate")


def _only(kind: str, stated: Iterable[tuple[str, Any]], allowed: dict[str, Any]) -> None:
    for name, value in stated:
        if allowed.get(name) != value:
            raise _unsupported(f"{kind}.{name}")


def _bounds(kind: str, stated: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    bounds = dict(stated)
    for name in bounds.keys() - {"gte", "lte"}:
        raise _unsupported(f"{kind}.{name}")
    return bounds


def _with_text(rules: FieldRules, stated: Iterable[tuple[str, Any]]) -> FieldRules:
    for name, value in stated:
        match name:
            case "max_bytes" | "line_bytes":
                rules = replace(rules, max_bytes=value)
            case "text_bytes":
                rules = replace(rules, max_bytes=value, multiline=True)
            case "ascii_bytes":
                rules = replace(rules, max_bytes=value, visible_ascii=True)
            case "min_len" if value == 1:
                rules = replace(rules, not_empty=True)
            case _:
                raise _unsupported(f"string.{name}")
    return rules


def _with_items(rules: FieldRules, stated: Iterable[tuple[str, Any]]) -> FieldRules:
    for name, value in stated:
        match name:
            case "max_items":
                rules = replace(rules, max_items=value)
            case "items":
                for text in _texts(value):
                    rules = _with_text(rules, text)
            case _:
                raise _unsupported(f"repeated.{name}")
    return rules


def _with_entries(rules: FieldRules, stated: Iterable[tuple[str, Any]]) -> FieldRules:
    for name, value in stated:
        match name:
            case "max_pairs":
                rules = replace(rules, max_items=value)
            case "keys":
                # Keys are one line and not empty; no rule says otherwise.
                stated_keys = [one for text in _texts(value) for one in text]
                bounds = {name: bound for name, bound in stated_keys if name == "line_bytes"}
                _only("map.keys.string", stated_keys, {"min_len": 1, **bounds})
                rules = replace(rules, max_key_bytes=bounds["line_bytes"])
            case "values":
                for text in _texts(value):
                    rules = _with_text(rules, text)
            case _:
                raise _unsupported(f"map.{name}")
    return rules


def _texts(rules: Any) -> Iterator[list[tuple[str, Any]]]:
    for name, value in _stated(rules):
        if name != "string":
            raise _unsupported(name)
        yield _stated(value)


def _millis(span: Any) -> int:
    return int(span.seconds) * 1000 + int(span.nanos) // 1_000_000
