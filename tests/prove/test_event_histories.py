"""Many histories of events, shuffled, repeated, failing and retried on two servers, end as the ordered set does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.databases import DatabaseUrls
from tests.support.event_histories import FIGURES, play_event_histories

pytestmark = pytest.mark.prove


@pytest.mark.timeout(3_600)
def test_event_histories_in_any_order(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, record: Callable[[str, dict[str, object]], None]
) -> None:
    histories = int(os.environ.get("EVENT_HISTORIES", "300"))
    play_event_histories(database_urls, redis_url, tmp_path, histories=histories, steps=40)
    record(
        "events",
        {"command": "make prove ARGS='-k event_histories'", **dict(sorted(FIGURES.items())), "violations": 0},
    )
