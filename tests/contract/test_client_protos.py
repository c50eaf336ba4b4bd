"""clients/protos is the contract without what only the server reads, and the server refuses to start without that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, FileOptions
from google.protobuf.message import Message

from syncbeat.retry import PUBLIC_PATHS
from syncbeat.v1 import sync_service_pb2
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.contract import options
from syncbeat_server.rpc.pipeline.access import access_policies
from syncbeat_server.rpc.server import CONTRACT
from tools.client_protos import SERVER_ONLY, without_own_options

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).with_name("buf")
OWN_OPTION_NUMBERS = range(50_000, 100_000)
"""Field numbers that descriptor.proto leaves to everybody within their own organization."""


def compiled(folder: str) -> dict[str, FileDescriptorProto]:
    """Compile a folder of protos; each file by its name."""
    command = [str(BUF), "build", folder, "--as-file-descriptor-set", "--output", "-"]
    built = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    return {file.name: file for file in FileDescriptorSet.FromString(built).file}


def contract_files() -> dict[str, FileDescriptorProto]:
    shipped = FileDescriptorSet.FromString(options.CONTRACT_FILE.read_bytes())
    return {file.name: file for file in shipped.file if file.package == options.PACKAGE}


def stripped(message: Message) -> Message:
    """Take custom options, which this process knows as no fields, out of a descriptor, and what they leave empty."""
    message.DiscardUnknownFields()
    for field, value in message.ListFields():
        if field.name == "options" and not value.ByteSize():
            message.ClearField("options")
        elif field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                stripped(inner)
    return message


def test_client_protos_equal_the_contract_without_options_message_by_message() -> None:
    clients = {name: file for name, file in compiled("clients/protos").items() if file.package == options.PACKAGE}
    contract = contract_files()
    assert clients.keys() == {name for name in contract if Path(name).name not in SERVER_ONLY}
    compared = 0
    for name, client in clients.items():
        ours = contract[name]
        assert stripped(ours.options) == client.options
        for kind in ("message_type", "enum_type", "service"):
            pairs = zip(getattr(client, kind), getattr(ours, kind), strict=True)
            for theirs, own in pairs:
                assert theirs == stripped(own), theirs.name
                compared += 1
    assert compared > 100


def test_client_protos_import_nothing_that_declares_options() -> None:
    clients = compiled("clients/protos")
    assert {name for name in clients if name.startswith("google/")} == {
        "google/protobuf/duration.proto",
        "google/protobuf/timestamp.proto",
    }
    assert all(not file.extension for file in clients.values())


def test_option_numbers_are_outside_of_what_organizations_use() -> None:
    numbers = [one.number for file in contract_files().values() for one in file.extension]
    assert numbers
    assert not [number for number in numbers if number in OWN_OPTION_NUMBERS]


def file_options(template: Path, out: Path) -> Iterator[tuple[str, FileOptions]]:
    """The options that a generator is given by buf, by file."""
    subprocess.run(
        [str(BUF), "generate", "clients/protos", "--template", str(template), "--output", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    request = CodeGeneratorRequest.FromString((out / "request.binpb").read_bytes())
    for file in request.proto_file:
        if file.package == options.PACKAGE:
            yield file.name, file.options


def test_file_options_are_those_of_bufs_managed_mode(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "Path(sys.argv[1], 'request.binpb').write_bytes(sys.stdin.buffer.read())\n"
    )
    told = {}
    for managed in ("true", "false"):
        out = tmp_path / managed
        out.mkdir()
        template = tmp_path / f"{managed}.yaml"
        template.write_text(
            f"version: v2\nmanaged:\n  enabled: {managed}\nplugins:\n"
            f"  - local: [{sys.executable}, {plugin}, {out}]\n    out: .\n    strategy: all\n"
        )
        told[managed] = dict(file_options(template, out))
    assert len(told["false"]) == len(contract_files()) - len(SERVER_ONLY)
    assert told["true"] == told["false"]
    for one in told["false"].values():  # which managed mode leaves to each module
        assert (one.go_package, one.swift_prefix) == ("syncbeat/v1;syncbeatv1", "SyncbeatV1")


def test_own_options_are_taken_out_and_others_stay() -> None:
    text = """import "syncbeat/v1/access.proto";
option go_package = "a";
service S {
  rpc A(B) returns (C) {
    option (access) = ACCESS_USER;
  }
  rpc D(E) returns (F) {
    option (access) = ACCESS_USER;
    option idempotency_level = IDEMPOTENT;
  }
}
message M {
  string a = 1 [(rules) = {pattern: "],;"}, deprecated = true, (rules).x = {a: [1, 2]}];
  // b is "[(rules).x = 1]".
  string b = 2 [(rules).x = 1];
}
"""
    assert (
        without_own_options(text)
        == """
option go_package = "a";
service S {
  rpc A(B) returns (C);
  rpc D(E) returns (F) {
    option idempotency_level = IDEMPOTENT;
  }
}
message M {
  string a = 1 [deprecated = true];
  // b is "[(rules).x = 1]".
  string b = 2;
}
"""
    )


def test_client_knows_the_public_methods_of_the_contract() -> None:
    public = {name for name, kinds in options.contract_options().access.items() if "PUBLIC" in kinds}
    assert {f"/{name.rpartition('.')[0]}/{name.rpartition('.')[2]}" for name in public} == PUBLIC_PATHS


@pytest.fixture
def contract_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place that the options are read from instead, where there is no file yet."""
    path = tmp_path / "contract.binpb"
    monkeypatch.setattr(options, "CONTRACT_FILE", path)
    options.contract_options.cache_clear()
    yield path
    options.contract_options.cache_clear()


def test_start_is_refused_without_the_descriptor_set(contract_file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"contract\.binpb cannot be read"):
        access_policies(CONTRACT[0])
    contract_file.write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigurationError, match=r"contract\.binpb cannot be read"):
        access_policies(CONTRACT[0])


def test_start_is_refused_for_a_method_without_access(contract_file: Path) -> None:
    contract = FileDescriptorSet.FromString(_shipped())
    for file in contract.file:
        if file.name == "syncbeat/v1/sync_service.proto":
            file.service[0].method[0].ClearField("options")
    contract_file.write_bytes(contract.SerializeToString())
    with pytest.raises(ConfigurationError, match=r"syncbeat\.v1\.SyncService\.GetHint has no access option"):
        access_policies(CONTRACT[0])


def test_start_is_refused_for_a_field_that_the_descriptor_set_lacks(contract_file: Path) -> None:
    contract = FileDescriptorSet.FromString(_shipped())
    for file in contract.file:
        if file.name == "syncbeat/v1/sync_service.proto":
            del next(one for one in file.message_type if one.name == "GetHintRequest").field[-1]
    contract_file.write_bytes(contract.SerializeToString())
    field = sync_service_pb2.GetHintRequest.DESCRIPTOR.fields[-1]
    with pytest.raises(ConfigurationError, match=rf"does not have syncbeat\.v1\.GetHintRequest\.{field.name}"):
        options.rules_of(field)


def _shipped() -> bytes:
    return (Path(options.__file__).with_name("contract.binpb")).read_bytes()
