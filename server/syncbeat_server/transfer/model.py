"""Defines the values that move between the Realtime Database (RTDB) and Syncbeat."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from syncbeat_server.directory.model import Member, Preferences, Registration

Path: TypeAlias = tuple[str, ...]
"""The keys from the root of a tree to one of its places. Elements of arrays have their index as key."""

Json: TypeAlias = "dict[str, Json] | str | bool | int | Decimal"
"""A value of RTDB in canonical form: arrays are objects with indexes as keys, nothing is null, no object is empty.

Numbers are exact: an `int` of 64 bits at most, or a `Decimal`.
"""


class MisfitReason(StrEnum):
    """Names the reasons for which a place of a tree cannot be moved, in words for the operator."""

    UNMATCHED = "no rule of the map matches"
    TOO_LARGE = "the value would pass 1 MiB, as JSON or in the form in which PostgreSQL keeps it"
    TOO_DEEP = "nested deeper than 32 levels from the root on, as nothing in RTDB is"
    NUMBER = "a number has more than 34 digits, or an exponent beyond -307 to 308"
    NUL = "a text has the character U+0000, which cannot be stored"
    NAME_EMPTY = "a name of the target would be empty"
    NAME_TOO_LONG = "a name of the target would pass its size: 128 bytes, of a registration token 4096"
    NAME_CHARACTERS = "a name of the target would have control characters, or a registration token spaces"
    ESCAPE = "a key is not escaped as unescape_keys demands: a % that begins none of the escapes"
    KEY = "a key that RTDB cannot have, with one of . $ # [ ] / or a control character"
    AMBIGUOUS = "scope and key would not tell which path they come from"
    FIELD_MISSING = "a field that the rule names is not there"
    FIELD_TYPE = "a field that the rule names is an object, or of another type than its use demands"
    NOT_PUSH_ID = "a key that source_time names is no push id"
    TIME = "the source time is not a time from 1970 to 9999"
    ROLE = "the role is not in the rule's table"
    NOT_A_MEMBER = "the value is false: not a member"
    PLATFORM = "the platform is none of ANDROID, IOS and WEB"
    PREFERENCE = "a preference is out of its bounds"
    REFUSED_SCOPE_FULL = "refused: the scope would have too many members"
    REFUSED_USER_FULL = "refused: the user would be in too many scopes, or have too many devices"
    REFUSED_DELETED = "refused: the user was deleted here"
    REFUSED_VALUE = "refused: PostgreSQL cannot store the value, for a reason that the import does not know"


@dataclass(frozen=True, slots=True)
class FeedValue:
    """Describes the value of a key in the feed of a scope. `source_time`: when it was written where it comes from."""

    scope: str
    key: str
    value: Json
    source_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class UserPreferences:
    """Holds the preferences of one user."""

    user_id: str
    preferences: Preferences


Target: TypeAlias = FeedValue | Member | Registration | UserPreferences
"""One of the things that a place of a tree may become.

A `Registration` has the id of the app; the others are of the app that is imported.
"""


class Misfit(NamedTuple):
    """Names a place that does not fit, by the pattern of its path, its own path, and the reason."""

    pattern: str
    path: Path
    reason: MisfitReason


def spelled(path: Path) -> str:
    """Return a path as the map and the console of RTDB spell it."""
    return "/".join(path)
