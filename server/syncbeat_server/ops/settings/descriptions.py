"""Describes settings in words, read from their fields: for `check-config --list` and the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from syncbeat_server.ops.settings.load import APPS_FILE_ONLY
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.settings.sources import PREFIX

_SCALARS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_FORMATS = {"path": "file or folder", "password": "secret text", "ipv4network": "network", "ipv6network": "network"}
_PORT = r":\d{1,5}"
_ENTRIES = {
    "TokenEntry": "`name:sha256-hex:methods:apps`",
    "CertificateEntry": "`name:methods:apps:san`",
    "FigureEntry": "`name>warn>rollback`",
}


@dataclass(frozen=True)
class SettingDescription:
    """Describes one setting.

    Attributes:
        name: The field's name, as in the apps file; in capitals and after SYNCBEAT_ the environment variable.
        kind: The form of its text, such as `host:port`.
        default: The text of its default; empty when it is unset.
        bounds: The range of a number, such as "1 to 64"; empty when there is none.
        text: The meaning, in sentences.
    """

    name: str
    kind: str
    default: str
    bounds: str
    text: str

    @property
    def wanted(self) -> str:
        """Return the form of its text in words, such as "whole number, 1 to 64"."""
        choices = "one of " if "`, `" in self.kind else ""
        return choices + ", ".join(filter(None, (self.kind.replace("`", ""), self.bounds)))


def describe_settings(model: type[BaseModel]) -> list[SettingDescription]:
    """Return the settings of `model`, those of the classes it inherits from first."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return [_description(name, field, definitions) for name, field in schema["properties"].items()]


def format_settings() -> str:
    """Return a `.env` file of all defaults, each below a comment that describes the setting."""
    return "\n\n".join(_env_entry(one) for one in describe_settings(Settings) if one.name not in APPS_FILE_ONLY)


def _env_entry(setting: SettingDescription) -> str:
    return f"# {setting.text} ({setting.wanted})\n{PREFIX}{setting.name.upper()}={setting.default}"


def _description(name: str, field: Mapping[str, Any], definitions: Mapping[str, Any]) -> SettingDescription:
    value = _set_form(field)
    return SettingDescription(
        name=name,
        kind=_kind(value, definitions),
        default=_text(field.get("default")),
        bounds=_bounds(value if value.get("type") != "array" else _set_form(value["items"])),
        text=" ".join(field.get("description", "").split()),
    )


def _set_form(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the form of an optional field that is set, which comes first."""
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
        each = _kind(_set_form(value["items"]), definitions)
        return "tables" if each == "table" else f"{each}; several by commas"
    if value["type"] == "object":
        secret = value["additionalProperties"].get("format") == "password"
        return "`kid=secret`; several by commas" if secret else "tables"
    choices = value.get("pattern", "").removeprefix("^(").removesuffix(")$").split("|")
    if len(choices) > 1:
        return ", ".join(f"`{one}`" for one in choices)
    if _PORT in value.get("pattern", ""):
        return "`host:port`"
    return _FORMATS.get(value.get("format", ""), _SCALARS[value["type"]])


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
