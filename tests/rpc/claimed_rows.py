"""A claimed delivery to Bob, for the store functions that take one."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime

from syncbeat_server.push.model import Kind
from tests import claimed
from tests.rpc.isolation import TOKEN

IDS = [str(uuid.uuid4()) for _ in range(3)]
CLAIMED = replace(
    claimed.MESSAGE,
    delivery_id=IDS[0],
    lease_token=IDS[1],
    notification_id=IDS[2],
    user_id="bob",
    device_id="bobs phone",
    registration_token=TOKEN,
    token_registered_at=datetime(2100, 1, 1, tzinfo=UTC),
    kind=Kind.SYNC,
    scope="bobs",
    sequence=1,
)
