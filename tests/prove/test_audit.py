"""No pinned package has a vulnerability that is known, as far as the service that knows them can be reached."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.prove.tools import proof_programs, reason_missing, require

ROOT = Path(__file__).parents[2]
PINS = ("requirements/dev.txt", "requirements/prove.txt")  # the first holds the other files too
_AUDIT_S = 300.0
_SHOWN = 200
PIN = f"idna==3.6 --hash=sha256:{'0' * 64}\nurllib3==2.0.0 --hash=sha256:{'0' * 64}\n"

pytestmark = [pytest.mark.prove, pytest.mark.timeout(2 * _AUDIT_S)]


class Audit(NamedTuple):
    """The result of an audit: vulnerabilities as `package version id`, and the reason if it was not run to its end."""

    vulnerable: list[str]
    lacks: str


async def audit(pins: Path, *options: str) -> Audit:
    """Ask about each pinned package."""
    quiet = ("--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off", "--timeout", "5")
    process = await asyncio.create_subprocess_exec(
        *map(str, (proof_programs() / "pip-audit", *quiet, "--requirement", pins, *options)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), _AUDIT_S)
    try:
        packages = json.loads(out)["dependencies"]
    except ValueError:
        last = (err.decode(errors="replace").strip().splitlines() or [f"it exited {process.returncode}"])[-1]
        return Audit([], f"not run: {last[:_SHOWN]}")
    # What the service does not know is left out, and the audit ends well all the same.
    left_out = sum("skip_reason" in one for one in packages)
    lacks = f"not run: its service knows {len(packages) - left_out} of {len(packages)} packages" if left_out else ""
    found = [f"{one['name']} {one['version']} {fault['id']}" for one in packages for fault in one.get("vulns", ())]
    return Audit(found, lacks)


@pytest.mark.parametrize("pins", PINS)
async def test_audit_finds_no_known_vulnerability_in_pinned_packages(
    request: pytest.FixtureRequest, pins: str, tmp_path: Path
) -> None:
    require(request, "pip-audit", reason_missing("patroni"))
    found = await audit(ROOT / pins, "--cache-dir", str(tmp_path))
    assert found.vulnerable == []
    require(request, "pip-audit", found.lacks)


@pytest.fixture
async def service(request: pytest.FixtureRequest) -> AsyncIterator[TestServer]:
    """Answers as OSV does; one package has a vulnerability."""
    require(request, "pip-audit", reason_missing("patroni"))
    affected = {
        "package": {"name": "urllib3", "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0.7"}]}],
        "versions": ["2.0.0"],
    }
    fault = {"id": "PYSEC-2023-1", "details": "made up", "published": "2023-01-01T00:00:00Z", "affected": [affected]}

    async def query(asked: web.Request) -> web.Response:
        package = (await asked.json())["package"]["name"]
        return web.json_response({"vulns": [fault]} if package == "urllib3" else {})

    app = web.Application()
    app.router.add_post("/v1/query", query)
    server = TestServer(app)
    async with server:
        yield server


async def test_audit_fails_on_a_package_that_is_vulnerable(service: TestServer, tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text(PIN)
    url = str(service.make_url("/v1/query"))
    found = await audit(tmp_path / "pins.txt", "--vulnerability-service", "osv", "--osv-url", url)
    assert found == Audit(["urllib3 2.0.0 PYSEC-2023-1"], "")


async def test_audit_without_its_service_is_reported_as_not_run(service: TestServer, tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text(PIN)
    url = str(service.make_url("/v1/query"))
    await service.close()
    found = await audit(tmp_path / "pins.txt", "--vulnerability-service", "osv", "--osv-url", url)
    assert found.vulnerable == []
    assert found.lacks.startswith("not run: ")
