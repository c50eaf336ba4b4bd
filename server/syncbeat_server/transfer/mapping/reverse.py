"""Finds the path that a target comes from, so that an export has the tree of the import."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from syncbeat_server.directory.model import Member, MemberRole, Preferences, Registration
from syncbeat_server.transfer.mapping.rules import (
    DeviceRule,
    MemberRule,
    PreferencesRule,
    TimeUnit,
    TransferMap,
    ValueRule,
    variable_places,
    variables_of,
)
from syncbeat_server.transfer.mapping.templates import Template
from syncbeat_server.transfer.model import Json, Path
from syncbeat_server.transfer.rtdb.keys import escape_key, is_key
from syncbeat_server.transfer.rtdb.path_tree import variable_name

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNIT_DIGITS = {TimeUnit.MILLISECONDS: 3, TimeUnit.SECONDS: 6}
"""Of each unit the decimal places that a microsecond is of it."""


def path_of_value(transfer_map: TransferMap, scope: str, key: str) -> Path | None:
    """Return the path at which the value of a key stands; None if no rule makes this key, or RTDB has no such path."""
    found = _rule_of_value(transfer_map, scope, key)
    if found is None:
        return None
    path = filled_path(transfer_map, found[0].tree_path, found[1])
    return path if all(is_key(path[place]) for place, _ in variable_places(found[0].tree_path)) else None


def source_time_entry(transfer_map: TransferMap, scope: str, key: str, made_at: datetime) -> tuple[Path, Json] | None:
    """Return path and value of the field that says when a value was made, where it stands beside the value.

    None if the rule of the key names no such field, or the field is in a value itself, which has it already.
    """
    found = _rule_of_value(transfer_map, scope, key)
    if found is None:
        return None
    rule, variables = found
    if rule.source_time is None or not rule.source_time.field:
        return None
    pattern = (*rule.path, *rule.source_time.field.split("/"))
    for other in transfer_map.value_rules:
        shared = min(len(pattern), len(other.tree_path))
        if other.path == rule.path and pattern[:shared] == other.tree_path[:shared]:
            return None
    return filled_path(transfer_map, pattern, variables), _time_value(rule.source_time.unit, made_at)


def _time_value(unit: TimeUnit, made_at: datetime) -> Json:
    if unit is TimeUnit.ISO:
        digits = "microseconds" if made_at.microsecond % 1_000 else "milliseconds"
        return made_at.astimezone(UTC).isoformat(timespec=digits).removesuffix("+00:00") + "Z"
    digits_of_unit = _UNIT_DIGITS[unit]
    whole, rest = divmod((made_at - _EPOCH) // _MICROSECOND, 10**digits_of_unit)
    return Decimal(f"{whole}.{rest:0{digits_of_unit}}".rstrip("0")) if rest else whole


def pattern_of_value(transfer_map: TransferMap, scope: str, key: str) -> Path | None:
    """Return the pattern of the path at which the value of a key stands; None if no rule makes this key."""
    found = _rule_of_value(transfer_map, scope, key)
    return None if found is None else found[0].tree_path


def is_ambiguous(
    transfer_map: TransferMap, rule: ValueRule, scope: str, key: str, variables: Mapping[str, str]
) -> bool:
    """Return True if scope and key would be taken for those of another path."""
    for other in transfer_map.value_rules:
        if other is rule:
            return not rule.is_readable and _variables_of_value(rule, scope, key) != variables
        can_meet = rule.scope.can_meet(other.scope) and rule.key.can_meet(other.key)
        if can_meet and _variables_of_value(other, scope, key) is not None:
            return True
    return False


def _rule_of_value(transfer_map: TransferMap, scope: str, key: str) -> tuple[ValueRule, dict[str, str]] | None:
    for rule in transfer_map.value_rules:
        variables = _variables_of_value(rule, scope, key)
        if variables is not None:
            return rule, variables
    return None


def _variables_of_value(rule: ValueRule, scope: str, key: str) -> dict[str, str] | None:
    of_scope, of_key = rule.scope.read(scope), rule.key.read(key)
    if of_scope is None or of_key is None:
        return None
    if any(of_scope[name] != of_key[name] for name in of_scope.keys() & of_key.keys()):
        return None
    return of_scope | of_key


def member_entry(transfer_map: TransferMap, member: Member) -> tuple[Path, Json] | None:
    """Return path and value of a membership: true where the rule takes no role from it; None if no rule makes it."""
    for rule in transfer_map.rules:
        if not isinstance(rule, MemberRule):
            continue
        role = _role_text(rule, member.role)
        names = ((rule.scope, member.scope), (rule.user, member.user_id))
        entry = None if role is None else _entry(transfer_map, rule.path, (*names, (rule.role, role)))
        if entry is not None:
            return entry
    return None


def registration_entry(transfer_map: TransferMap, device: Registration) -> tuple[Path, Json] | None:
    """Return path and value of a device with its token; None if no rule makes it."""
    for rule in transfer_map.rules:
        if not isinstance(rule, DeviceRule):
            continue
        for platform in (device.platform, device.platform.lower()):
            names = [(rule.user, device.user_id), (rule.token, device.registration_token), (rule.platform, platform)]
            optional = (
                (rule.device, device.device_id),
                (rule.time_zone, device.time_zone),
                (rule.locale, device.locale),
            )
            names += [(template, name) for template, name in optional if template is not None and name]
            entry = _entry(transfer_map, rule.path, names)
            if entry is not None:
                return entry
    return None


def preferences_entry(transfer_map: TransferMap, user_id: str, wanted: Preferences) -> tuple[Path, Json] | None:
    """Return path and value of a user's preferences; None if no rule makes them, or nothing is set."""
    for rule in transfer_map.rules:
        if isinstance(rule, PreferencesRule):
            entry = _entry(transfer_map, rule.path, [(rule.user, user_id)])
            if entry is not None:
                value = _preference_fields(rule, wanted)
                return (entry[0], value) if value else None
    return None


def filled_path(transfer_map: TransferMap, pattern: Path, variables: Mapping[str, str]) -> Path:
    """Return a pattern with its variables filled in, escaped where the map says so."""
    keys = []
    for key in pattern:
        name = variable_name(key)
        if name is None:
            keys.append(key)
        else:
            keys.append(escape_key(variables[name]) if transfer_map.unescape_keys else variables[name])
    return tuple(keys)


def _entry(
    transfer_map: TransferMap, path: Path, names: list[tuple[Template, str]] | tuple[tuple[Template, str], ...]
) -> tuple[Path, Json] | None:
    """Return path and value from templates and what they came to; None if these templates do not make that."""
    variables: dict[str, str] = {}
    value: dict[str, Json] = {}
    whole: Json = True
    for template, name in names:
        if template.fields:
            if len(template.parts) > 1:
                return None  # a field with text around it is not taken apart again
            field = template.fields[0]
            if field:
                _set(value, field, name)
            else:
                whole = name
            continue
        found = template.read(name)
        if found is None or any(variables.get(key, inner) != inner for key, inner in found.items()):
            return None
        variables |= found
    if not set(variables_of(path)) <= variables.keys():
        return None
    return filled_path(transfer_map, path, variables), value or whole


def _set(value: dict[str, Json], path: str, member: Json) -> None:
    *above, last = path.split("/")
    for key in above:
        inner = value.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        value = inner
    value[last] = member


def _role_text(rule: MemberRule, role: MemberRole) -> str | None:
    if not rule.roles:
        return role.value
    return next((text for text, meant in rule.roles.items() if meant is role), None)


def _preference_fields(rule: PreferencesRule, wanted: Preferences) -> dict[str, Json]:
    value: dict[str, Json] = {}
    if rule.max_per_day and wanted.max_per_day is not None:
        _set(value, rule.max_per_day, wanted.max_per_day)
    if rule.muted_types and wanted.muted_types:
        _set(value, rule.muted_types, {str(place): name for place, name in enumerate(wanted.muted_types)})
    quiet = wanted.quiet_hours
    if quiet is not None:
        for path, member in ((rule.quiet_start, quiet.start_minute), (rule.quiet_end, quiet.end_minute)):
            if path:
                _set(value, path, member)
        if rule.time_zone and quiet.zone:
            _set(value, rule.time_zone, quiet.zone)
    return value
