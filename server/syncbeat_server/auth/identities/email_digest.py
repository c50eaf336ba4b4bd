"""Digests verified e-mail addresses, so that users can be found by one without the addresses being kept. Pure."""

from __future__ import annotations

import hashlib

_LABEL = b"syncbeat verified email v1"


def email_digest(app_id: str, address: str) -> bytes:
    """Return the digest of an address within an app.

    Addresses are compared as they are written: neither case nor dots nor tags are folded, since whether two spellings
    are one mailbox is for its provider to say. Who has a list of addresses can still try them against the digests.
    """
    parts = (_LABEL, app_id.encode(), address.encode("utf-8", "surrogatepass"))
    return hashlib.sha256(b"\0".join(parts)).digest()
