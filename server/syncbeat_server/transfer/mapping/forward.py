"""Turns entries of an export into targets, by the rules of a map."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from syncbeat_server.directory.model import Member, MemberRole, Platform, Preferences, QuietHours, Registration
from syncbeat_server.directory.policy import time_zones
from syncbeat_server.transfer.mapping.reverse import is_ambiguous
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
    label,
    variable_places,
)
from syncbeat_server.transfer.mapping.templates import Template, field_of
from syncbeat_server.transfer.model import FeedValue, Json, Misfit, MisfitReason, Target, UserPreferences, spelled
from syncbeat_server.transfer.rtdb.keys import is_key, unescape_key
from syncbeat_server.transfer.rtdb.push_ids import push_id_time
from syncbeat_server.transfer.rtdb.reading import Entry
from syncbeat_server.transfer.rtdb.shapes import is_number

NAME_OCTETS = 128
"""The most octets of a name, as the contract has it (`line_bytes`)."""
TOKEN_OCTETS = 4_096
DEVICE_ID_DIGITS = 32
"""The hexadecimal digits of a device id that is a digest of its token: 128 bits, so that no two ever meet."""

_MOST_PER_DAY, _MOST_MUTED, _MINUTES_OF_DAY = 10_000, 100, 1_440
_CLOCK_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_MICROSECONDS = {TimeUnit.MILLISECONDS: 1_000, TimeUnit.SECONDS: 1_000_000}


class _MisfitError(Exception):
    """Carries the reason for which an entry fits no target."""

    def __init__(self, reason: MisfitReason) -> None:
        super().__init__(reason)
        self.reason = reason


def targets_of(transfer_map: TransferMap, app_id: str, entry: Entry) -> list[Target | Misfit]:
    """Return what an entry becomes by each rule of its place, or why it does not."""
    if entry.fault is not None:
        pattern = entry.node.pattern
        if entry.fault is MisfitReason.UNMATCHED:
            # The keys of the root are few, and their names tell; below may be one of millions.
            pattern = (*pattern, "*") if pattern else entry.path[:1]
        return [Misfit(spelled(pattern), entry.path, entry.fault)]
    return [
        target
        for number in entry.node.rules
        if (target := _target(transfer_map, transfer_map.rules[number], app_id, entry)) is not None
    ]


def _target(transfer_map: TransferMap, rule: Rule, app_id: str, entry: Entry) -> Target | Misfit | None:
    if isinstance(rule, IgnoreRule) or entry.value is None:
        return None
    try:
        variables = _variables(transfer_map, rule, entry)
        if isinstance(rule, ValueRule):
            found = _feed_value(transfer_map, rule, variables, entry.value)
            if not all(is_key(entry.path[place]) for place, _ in variable_places(rule.path)):
                raise _MisfitError(MisfitReason.KEY)
            return found
        if isinstance(rule, MemberRule):
            return _member(rule, variables, entry.value)
        if isinstance(rule, DeviceRule):
            return _registration(rule, app_id, variables, entry.value)
        return _preferences(rule, variables, entry.value)
    except _MisfitError as error:
        return Misfit(label(rule), entry.path, error.reason)


def _variables(transfer_map: TransferMap, rule: Rule, entry: Entry) -> dict[str, str]:
    variables: dict[str, str] = {}
    for place, name in variable_places(rule.path):
        plain = unescape_key(entry.path[place]) if transfer_map.unescape_keys else entry.path[place]
        if not plain:
            raise _MisfitError(MisfitReason.ESCAPE if plain is None else MisfitReason.NAME_EMPTY)
        variables[name] = plain
    return variables


def _feed_value(
    transfer_map: TransferMap, rule: ValueRule, variables: Mapping[str, str], whole: Json
) -> FeedValue | None:
    value = field_of(whole, rule.part)
    if value is None:  # this part is absent here, as any path may be
        return None
    scope = _name(rule.scope, variables)
    key = _name(rule.key, variables)
    if is_ambiguous(transfer_map, rule, scope, key, variables):
        raise _MisfitError(MisfitReason.AMBIGUOUS)
    when = None if rule.source_time is None else _source_time(rule.source_time, variables, whole)
    return FeedValue(scope, key, value, when)


def _source_time(source: SourceTime, variables: Mapping[str, str], value: Json) -> datetime:
    if source.push_id:
        made = push_id_time(variables[source.push_id])
        if made is None:
            raise _MisfitError(MisfitReason.NOT_PUSH_ID)
        return made
    return _time(source.unit, _required(value, source.field))


def _time(unit: TimeUnit, written: Json) -> datetime:
    try:
        if unit is TimeUnit.ISO:
            if not isinstance(written, str):
                raise _MisfitError(MisfitReason.FIELD_TYPE)
            made = datetime.fromisoformat(written)
            if made.tzinfo is None:
                raise _MisfitError(MisfitReason.TIME)
        else:
            if not is_number(written):
                raise _MisfitError(MisfitReason.FIELD_TYPE)
            made = _EPOCH + timedelta(microseconds=int(Decimal(str(written)) * _UNIT_MICROSECONDS[unit]))
    except (ValueError, ArithmeticError) as error:
        raise _MisfitError(MisfitReason.TIME) from error
    if made < _EPOCH:
        raise _MisfitError(MisfitReason.TIME)
    return made.astimezone(UTC)


def _member(rule: MemberRule, variables: Mapping[str, str], value: Json) -> Member:
    if value is False:
        raise _MisfitError(MisfitReason.NOT_A_MEMBER)
    role = _filled(rule.role, variables, value)
    found = rule.roles.get(role) if rule.roles else _known_role(role)
    if found is None:
        raise _MisfitError(MisfitReason.ROLE)
    return Member(_name(rule.scope, variables, value), _name(rule.user, variables, value), found)


def _known_role(role: str) -> MemberRole | None:
    return MemberRole(role) if role in MemberRole.__members__ else None


def _registration(rule: DeviceRule, app_id: str, variables: Mapping[str, str], value: Json) -> Registration:
    token = _filled(rule.token, variables, value)
    if not token or len(token) > TOKEN_OCTETS:
        raise _MisfitError(MisfitReason.NAME_TOO_LONG if token else MisfitReason.NAME_EMPTY)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise _MisfitError(MisfitReason.NAME_CHARACTERS)
    platform = _filled(rule.platform, variables, value).upper()
    if platform not in Platform.__members__:
        raise _MisfitError(MisfitReason.PLATFORM)
    digest = hashlib.sha256(token.encode()).hexdigest()[:DEVICE_ID_DIGITS]
    return Registration(
        app_id=app_id,
        user_id=_name(rule.user, variables, value),
        device_id=digest if rule.device is None else _name(rule.device, variables, value),
        platform=Platform(platform),
        registration_token=token,
        time_zone="" if rule.time_zone is None else _optional_name(rule.time_zone, variables, value),
        locale="" if rule.locale is None else _optional_name(rule.locale, variables, value),
    )


def _preferences(rule: PreferencesRule, variables: Mapping[str, str], value: Json) -> UserPreferences:
    preferences = Preferences(
        quiet_hours=_quiet_hours(rule, value),
        max_per_day=_bounded(value, rule.max_per_day, _MOST_PER_DAY),
        muted_types=_muted_types(field_of(value, rule.muted_types) if rule.muted_types else None),
    )
    return UserPreferences(_name(rule.user, variables, value), preferences)


def _quiet_hours(rule: PreferencesRule, value: Json) -> QuietHours | None:
    start, end = (field_of(value, path) if path else None for path in (rule.quiet_start, rule.quiet_end))
    if start is None and end is None:
        return None
    zone = field_of(value, rule.time_zone) if rule.time_zone else None
    if zone is not None and not (isinstance(zone, str) and time_zones.is_known(zone)):
        raise _MisfitError(MisfitReason.PREFERENCE)
    return QuietHours(_minute(start), _minute(end), zone or "")


def _minute(written: Json | None) -> int:
    found = _CLOCK_TIME.fullmatch(written) if isinstance(written, str) else None
    if found is not None:
        return int(found[1]) * 60 + int(found[2])
    if type(written) is int and 0 <= written < _MINUTES_OF_DAY:
        return written
    raise _MisfitError(MisfitReason.PREFERENCE)


def _bounded(value: Json, path: str, most: int) -> int | None:
    found = field_of(value, path) if path else None
    if found is None:
        return None
    if type(found) is not int or not 0 <= found <= most:
        raise _MisfitError(MisfitReason.PREFERENCE)
    return found


def _muted_types(found: Json | None) -> tuple[str, ...]:
    """Return the types of an object: the texts that are its members, as of an array, or the keys that are true."""
    if found is None:
        return ()
    if not isinstance(found, dict):
        raise _MisfitError(MisfitReason.PREFERENCE)
    texts = [member for member in found.values() if isinstance(member, str)]
    types = texts or [key for key, member in found.items() if member is True]
    if len(types) > _MOST_MUTED:
        raise _MisfitError(MisfitReason.PREFERENCE)
    for name in types:
        check_name(name)
    return tuple(sorted(set(types)))


def _name(template: Template, variables: Mapping[str, str], value: Json | None = None) -> str:
    name = _filled(template, variables, value)
    check_name(name)
    return name


def _optional_name(template: Template, variables: Mapping[str, str], value: Json) -> str:
    name = template.filled(variables, value)
    if isinstance(name, MisfitReason):
        return ""
    check_name(name)
    return name


def check_name(name: str) -> None:
    """Raise a misfit if the contract does not let in such a name."""
    if not name:
        raise _MisfitError(MisfitReason.NAME_EMPTY)
    if len(name) > NAME_OCTETS or (not name.isascii() and len(name.encode()) > NAME_OCTETS):
        raise _MisfitError(MisfitReason.NAME_TOO_LONG)
    if not name.isprintable() and any(character < " " or character == "\x7f" for character in name):
        raise _MisfitError(MisfitReason.NAME_CHARACTERS)


def _filled(template: Template, variables: Mapping[str, str], value: Json | None) -> str:
    name = template.filled(variables, value)
    if isinstance(name, MisfitReason):
        raise _MisfitError(name)
    return name


def _required(value: Json, path: str) -> Json:
    found = field_of(value, path)
    if found is None:
        raise _MisfitError(MisfitReason.FIELD_MISSING)
    return found
