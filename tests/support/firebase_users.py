"""Exports of Firebase Auth as `firebase auth:export` writes them."""

from __future__ import annotations

import json
from typing import Any

PASSWORD_HASH, SALT = "lSrfV15cpx95_sZS2W9c9Kp6i_LVgQNDNC", "42xEC-ixf3L2lw"


def firebase_user(user_id: str, **fields: Any) -> dict[str, Any]:
    """Return a user with a password, whose e-mail address is not verified unless `fields` say so."""
    return {
        "localId": user_id,
        "email": f"{user_id}@example.com",
        "emailVerified": False,
        "passwordHash": PASSWORD_HASH,
        "salt": SALT,
        "displayName": f"Name of {user_id}",
        "phoneNumber": "+4366012345678",
        "lastSignedInAt": "1494942045000",
        "createdAt": "1494881022000",
        "providerUserInfo": [{"providerId": "google.com", "rawId": "1234", "email": f"{user_id}@gmail.com"}],
        "customAttributes": '{"admin":true}',
        **fields,
    }


def export_of(*users: object) -> bytes:
    """Return an export of these users."""
    return json.dumps({"users": users}).encode()
