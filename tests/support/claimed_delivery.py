"""A delivery as a worker has claimed it, for tests of what comes after."""

from __future__ import annotations

from datetime import UTC, datetime

from syncbeat_server.push.model import ClaimedDelivery, Content, Kind, Lane

MESSAGE = ClaimedDelivery(
    app_id="default",
    delivery_id="0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a10",
    lease_token="0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a11",
    notification_id="0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a12",
    user_id="ann",
    device_id="phone",
    platform="ANDROID",
    registration_token="a-token",
    token_registered_at=datetime(2030, 1, 1, tzinfo=UTC),
    kind=Kind.MESSAGE,
    type="note",
    scope="",
    epoch="",
    sequence=0,
    content=Content(),
    collapse_key="",
    lane=Lane.HIGH,
    attempt=1,
    ttl_s=3600.0,
    age_s=0.0,
    held_for_stream=False,
    already_seen=False,
    claimed_at=datetime(2030, 1, 1, 12, tzinfo=UTC),
)
