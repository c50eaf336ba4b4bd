"""Makes and verifies the token by which a device acknowledges a push; it names one delivery (ADR 36)."""

from __future__ import annotations

import base64
import binascii
import hmac
import uuid

_MAC_BYTES = 16


def ack_token(secret: bytes, app_id: str, delivery_id: str) -> str:
    """Return `app.base64url(mac || delivery id)`: 43 characters and the app's name."""
    name = bytes.fromhex(delivery_id.replace("-", ""))  # uuid.UUID would take ten times as long
    return f"{app_id}.{base64.urlsafe_b64encode(_mac(secret, app_id, name) + name).rstrip(b'=').decode()}"


def claimed_app(token: str) -> str:
    """Return the app that a token names, before the token is verified."""
    return token.rpartition(".")[0]


def verify_ack_token(secret: bytes, token: str) -> str | None:
    """Return the id of the delivery that a token was made for; None if we did not make it."""
    app_id, _, packed = token.rpartition(".")
    try:
        raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    mac, name = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if len(name) != 16 or not hmac.compare_digest(mac, _mac(secret, app_id, name)):
        return None
    return str(uuid.UUID(bytes=name))


def _mac(secret: bytes, app_id: str, name: bytes) -> bytes:
    return hmac.digest(secret, b"ack" + app_id.encode() + b"\0" + name, "sha256")[:_MAC_BYTES]
