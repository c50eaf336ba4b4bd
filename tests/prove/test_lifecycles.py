"""Cancels, token moves, mutes, quiet hours, schedules and lost workers in any order: what devices get stays right."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.prove.lifecycles import FIGURES, Lifecycles
from tests.support.databases import DatabaseUrls

pytestmark = pytest.mark.prove


@pytest.mark.timeout(1800)
def test_lifecycles_mixed_in_any_order(
    database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    examples = int(os.environ.get("LIFECYCLES", "60"))
    Lifecycles.urls = database_urls
    FIGURES.clear()
    run_state_machine_as_test(
        Lifecycles,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    record(
        "lifecycles",
        {
            "command": "make prove ARGS='-k lifecycles'",
            **dict(sorted(FIGURES.items())),
            "violations": 0,
        },
    )
