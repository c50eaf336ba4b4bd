"""Reads the time that is embedded in push ids.

A push id has 20 characters, of which the first eight are milliseconds since 1970, six bits each, in an alphabet in
order of ASCII: https://firebase.blog/posts/2015/02/the-2120-ways-to-ensure-unique_68
"""

from __future__ import annotations

import binascii
import re
import string
from datetime import UTC, datetime, timedelta

_ALPHABET = "-" + string.digits + string.ascii_uppercase + "_" + string.ascii_lowercase
# The digits of base64 have the same values in another alphabet.
_TO_BASE64 = str.maketrans(_ALPHABET, string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")
_PUSH_ID = re.compile(r"[-0-9A-Z_a-z]{20}")
_TIME_LENGTH = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def push_id_time(key: str) -> datetime | None:
    """Return when a push id was made, by the clock of its maker; None if the key is no push id."""
    if _PUSH_ID.fullmatch(key) is None:
        return None
    milliseconds = int.from_bytes(binascii.a2b_base64(key[:_TIME_LENGTH].translate(_TO_BASE64)), "big")
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:  # 48 bits of milliseconds reach beyond the year 9999
        return None
