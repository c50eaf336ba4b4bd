"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import pytest

from tests import ports


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody has."""
    return ports.free_port()
