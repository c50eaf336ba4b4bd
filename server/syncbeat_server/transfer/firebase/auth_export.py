"""Reads an export of Firebase Auth (`firebase auth:export users.json`) as a stream, user by user.

Of a user only its id, state, verified e-mail address and the names of its providers go on: hashes of passwords, salts,
names, phone numbers and custom claims are dropped where they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import IO

import ijson

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.bounded_numbers import BoundedNumbers
from syncbeat_server.transfer.export_faults import told_faults

_BUFFER_OCTETS = 1 << 17
_PASSWORD = "password"  # noqa: S105  # the name of a way to sign in
_PHONE, _NO_PROVIDER = "phone", "anonymous or custom"


class UserMisfit(StrEnum):
    """Says why a user of an export is not imported."""

    NO_OBJECT = "no object"
    NO_ID = "no localId"
    MALFORMED_ID = "its localId is no user id of the app (SYNCBEAT_JWT_SUBJECTS)"
    TAKEN = "its id is another issuer's user, or its subject is linked to another user"


@dataclass(frozen=True, slots=True)
class FirebaseUser:
    """A user of Firebase Auth.

    Attributes:
        verified_email: The e-mail address, if Firebase has verified it; else empty.
        providers: The ways to sign in, such as `google.com`.
    """

    user_id: str
    disabled: bool
    verified_email: str
    providers: tuple[str, ...]


def read_users(export: IO[bytes]) -> Iterator[FirebaseUser | UserMisfit]:
    """Yield the users of an export, or why one cannot be read.

    Raises:
        ConfigurationError: the file is no such export, or ends too early.
    """
    found = False
    with told_faults(export):
        for entry in ijson.items(BoundedNumbers(export), "users.item", buf_size=_BUFFER_OCTETS):
            found = True
            yield _user(entry)
    if not found:
        raise ConfigurationError("the export has no users: want what `firebase auth:export users.json` writes")


def _user(entry: object) -> FirebaseUser | UserMisfit:
    if not isinstance(entry, dict):
        return UserMisfit.NO_OBJECT
    user_id, email = entry.get("localId"), entry.get("email")
    if not isinstance(user_id, str) or not user_id:
        return UserMisfit.NO_ID
    is_verified = isinstance(email, str) and entry.get("emailVerified") is True
    # What is no plain `false` counts as disabled: it lets nobody in by mistake.
    disabled = entry.get("disabled") not in (None, False)
    return FirebaseUser(user_id, disabled, str(email) if is_verified else "", _providers(entry))


def _providers(entry: dict[str, object]) -> tuple[str, ...]:
    infos = entry.get("providerUserInfo")
    named = {info.get("providerId") for info in infos if isinstance(info, dict)} if isinstance(infos, list) else set()
    found = {name for name in named if isinstance(name, str)}
    found |= {_PASSWORD} if entry.get("passwordHash") else set()
    found |= {_PHONE} if entry.get("phoneNumber") else set()
    return tuple(sorted(found)) or (_NO_PROVIDER,)
