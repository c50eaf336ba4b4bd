"""Rolling deploys under load: of bare clients' calls none fails that was carried out, or may have been."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from syncbeat_devtools.demo.stage import Stage
from tests.support.databases import DatabaseUrls
from tests.support.ports import free_port
from tests.support.rolling_deploys import roll

pytestmark = pytest.mark.prove

DEPLOYS = int(os.environ.get("DEPLOYS", "30"))


@pytest.mark.timeout(3_600)
async def test_deploys_fail_no_call_that_was_carried_out(
    stage: Stage, database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    deploys = await roll(stage, free_port(), database_urls.admin_url, DEPLOYS)
    figures: dict[str, object] = {
        "deploys": deploys.count,
        "mutations_accepted": len(deploys.told.accepted),
        "mutations_failed": len(deploys.told.failed),
        "failed_and_carried_out": len(deploys.carried_out),
        "accepted_and_lost": len(deploys.lost),
        "calls_held_through_sigterm_and_answered": deploys.held_through,
        "statuses": deploys.statuses(),
    }
    assert not deploys.carried_out, figures
    assert not deploys.lost, figures
    record("deploys", figures)
