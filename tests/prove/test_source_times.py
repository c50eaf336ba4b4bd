"""Many histories of writes with source times, over every path and at once, end in the latest of each key."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.databases import DatabaseUrls
from tests.support.source_time_histories import FIGURES, play_source_time_histories

pytestmark = pytest.mark.prove


@pytest.mark.timeout(3_600)
def test_source_time_histories_in_any_order(
    database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    histories = int(os.environ.get("SOURCE_TIME_HISTORIES", "1000"))
    play_source_time_histories(database_urls, histories=histories)
    record(
        "source-times",
        {"command": "make prove ARGS='-k source_time_histories'", **dict(sorted(FIGURES.items())), "violations": 0},
    )
