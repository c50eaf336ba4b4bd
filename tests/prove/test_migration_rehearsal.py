"""A team with 10,000 users follows the guide from the Realtime Database to its end, while their phones write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.commands import serving
from tests.docs.migration_team import Team

pytestmark = pytest.mark.prove

CHATS, WRITES = 5_001, 300


@pytest.mark.timeout(3_600)
async def test_migration_rehearsal_of_ten_thousand_users(
    tmp_path: Path, record: Callable[[str, dict[str, object]], None]
) -> None:
    with serving(["demo", "--serve"], "RevokeUser", {"SYNCBEAT_LISTEN": "127.0.0.1:0"}) as served:
        team = Team(served, tmp_path, CHATS, WRITES)
        await team.follow()
    record(
        "migration-rehearsal",
        {
            "command": "make prove ARGS='-k migration_rehearsal'",
            "users": 2 * CHATS - 2,
            "values": 4 * CHATS,
            "writes of phones during the import": WRITES,
            "seconds by command": team.reader.seconds,
        },
    )
