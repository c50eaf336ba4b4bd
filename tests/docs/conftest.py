"""Starts a deployment and a fake FCM as the pages say, for the programs of pages to run against."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.docs.commands import Serving, serving
from tests.docs.pages import ROOT


@pytest.fixture(scope="session")
def make_run() -> Iterator[Serving]:
    """The stage of `make run`, on a port of its own."""
    with serving(["demo", "--serve"], "RevokeUser", {"SYNCBEAT_LISTEN": "127.0.0.1:0"}) as running:
        yield running


@pytest.fixture(scope="session")
def fake_fcm() -> Iterator[Serving]:
    """The fake FCM with TLS, as docs/fake-fcm.md starts it."""
    with serving(["fake-fcm", "--tls"], "serving on ", {}) as running:
        yield running


@pytest.fixture(scope="session")
def reader_environment(make_run: Serving, fake_fcm: Serving) -> dict[str, str]:
    """The environment of a reader who has done what the pages say."""
    return {
        **{name: value for name, value in os.environ.items() if not re.match("SYNCBEAT_|.*_PROXY$", name.upper())},
        **make_run.exports(),
        "FAKE_FCM": fake_fcm.after("serving on "),
        "REQUESTS_CA_BUNDLE": fake_fcm.after("its CA certificate is "),
        "PYTHONPATH": str(ROOT / "tests" / "docs" / "stubs"),  # of packages that are Firebase's own
    }
