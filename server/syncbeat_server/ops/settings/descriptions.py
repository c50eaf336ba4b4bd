"""Describes settings in words: type, default, range and meaning of each, read from the fields that are validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

_SCALARS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_FORMATS = {"path": "file or folder", "password": "secret text", "ipv4network": "network", "ipv6network": "network"}
_ENTRIES = {"TokenEntry": "`name:sha256-hex:methods:apps`", "CertificateEntry": "`name:methods:apps:san`"}


@dataclass(frozen=True)
class SettingDescription:
    """One setting.

    Attributes:
        name: The field's name, as in the apps file; in capitals and after SYNCBEAT_ the environment variable.
        kind: What is to be written there.
        default: As it would be written; empty: none.
        bounds: The range of numbers, `1 to 64`; empty: none.
        text: What it does.
    """

    name: str
    kind: str
    default: str
    bounds: str
    text: str


def described_settings(model: type[BaseModel]) -> list[SettingDescription]:
    """Return the settings of `model`, those of the classes it inherits from first."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return [_described(name, field, definitions) for name, field in schema["properties"].items()]


def _described(name: str, field: Mapping[str, Any], definitions: Mapping[str, Any]) -> SettingDescription:
    value = _present(field)
    return SettingDescription(
        name=name,
        kind=_kind(value, definitions),
        default=_text(field.get("default")),
        bounds=_bounds(value if value.get("type") != "array" else _present(value["items"])),
        text=" ".join(field.get("description", "").split()),
    )


def _present(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a field holds where it is set: the first of several forms."""
    forms = field.get("anyOf")
    return field if forms is None else {**field, **forms[0]}


def _kind(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    reference = value.get("$ref", "").rpartition("/")[2]
    if reference in _ENTRIES:
        return _ENTRIES[reference]
    if reference and "enum" in definitions[reference]:
        return ", ".join(f"`{one}`" for one in definitions[reference]["enum"])
    if reference:
        return "table"
    if value["type"] == "array":
        each = _kind(_present(value["items"]), definitions)
        return "tables" if each == "table" else f"{each}; several by commas"
    if value["type"] == "object":
        secret = value["additionalProperties"].get("format") == "password"
        return "`kid=secret`; several by commas" if secret else "tables"
    choices = value.get("pattern", "").removeprefix("^(").removesuffix(")$").split("|")
    if len(choices) > 1:
        return ", ".join(f"`{one}`" for one in choices)
    return "`host:port`" if "pattern" in value else _FORMATS.get(value.get("format", ""), _SCALARS[value["type"]])


def _bounds(value: Mapping[str, Any]) -> str:
    most = value.get("maximum")
    if most is None:
        return ""
    above = value.get("exclusiveMinimum")
    return f"{_text(value['minimum'])} to {_text(most)}" if above is None else f"above {_text(above)}, to {_text(most)}"


def _text(value: object) -> str:
    match value:
        case None | {}:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.15g}"
        case list():
            return ",".join(map(_text, value))
        case _:
            return str(value)
