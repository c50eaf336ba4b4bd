"""Dual writes, imports and deletions in any order end in the latest by source time: a few histories of many.

`make prove` plays many more (tests/prove/test_source_times.py).
"""

from __future__ import annotations

import pytest

from tests.support.databases import DatabaseUrls
from tests.support.source_time_histories import FIGURES, play_source_time_histories

pytestmark = pytest.mark.store


def test_source_times_in_any_order_end_in_the_latest(database_urls: DatabaseUrls) -> None:
    play_source_time_histories(database_urls, histories=40)
    assert FIGURES["histories"] == 40
