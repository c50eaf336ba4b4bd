"""A Python process imports Syncbeat and a proto with options of its own at 50001 to 50003, in either order.

So it does with a copy of protovalidate's options of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "tools" / "clients" / "own_options.proto"
VALIDATE = "buf/validate/validate.proto"
IMPORTS = {
    "own": "import own_options_pb2 as own; from buf.validate import validate_pb2",
    "client": "import syncbeat; from syncbeat.v1 import sync_service_pb2, push_service_pb2",
    "server": "import syncbeat_server.rpc.server; from syncbeat_server.rpc.contract.options import contract_options",
}
READS = """
field = own.Own.DESCRIPTOR.fields_by_name["name"]
assert field.GetOptions().Extensions[own.label] == "name"
assert field.containing_oneof.GetOptions().Extensions[own.one] is True
method = own.DESCRIPTOR.services_by_name["OwnService"].methods_by_name["Get"]
assert method.GetOptions().Extensions[own.audit] == "read"
assert [field.number for field, _ in method.GetOptions().ListFields()] == [own.audit.number]
"""
SERVED = 'assert contract_options().access["syncbeat.v1.SyncService.GetHint"] == ("USER", "SERVICE")'


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module of the other proto."""
    folder = tmp_path_factory.mktemp("own")
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{OWN.parent}",
        f"-I{ROOT}/protos",
        f"--python_out={folder}",
    ]
    subprocess.run([*command, OWN.name, VALIDATE], check=True)
    return folder


@pytest.mark.parametrize("order", ["own client", "client own", "own server", "server own"])
def test_own_options_are_read_beside_syncbeat(generated: Path, order: str) -> None:
    program = "\n".join([IMPORTS[one] for one in order.split()] + [READS] + [SERVED] * ("server" in order))
    ran = subprocess.run([sys.executable, "-c", program], cwd=generated, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
