"""Provides the long proofs with their stage, and with a place for their results."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.prove.tools import UNPROVEN
from tests.support.databases import DatabaseUrls

_RESULTS = Path(__file__).parents[2] / "docs" / "proof"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Tell in the last line what could not be proven here; the run has failed for it if REQUIRE_ALL=1."""
    if unproven := config.stash.get(UNPROVEN, {}):
        print("prove: not proven, no", "; no ".join(f"{name}: {reason}" for name, reason in unproven.items()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the vectors where a folder of them is named, and not half an hour of other proofs."""
    if config.getoption("--jose-vectors") is not None:
        items[:] = [item for item in items if item.path.name == "test_jose_vectors.py"]


@pytest.fixture
def soak_s() -> float:
    """Return how long a proof goes on, in seconds (SOAK_S)."""
    return float(os.environ.get("SOAK_S", "60"))


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    """The fake FCM and what to start servers with, on a database of its own."""
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


@pytest.fixture(scope="session")
def record() -> Callable[[str, dict[str, object]], None]:
    """Writes a proof's figures to docs/proof/NAME.json."""

    def write(name: str, figures: dict[str, object]) -> None:
        machine = {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
        _RESULTS.mkdir(parents=True, exist_ok=True)
        (_RESULTS / f"{name}.json").write_text(json.dumps({**figures, "machine": machine}, indent=2) + "\n")

    return write


@pytest.fixture
def two_ports() -> list[int]:
    """Two TCP ports that nobody has."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in (first, second)]
