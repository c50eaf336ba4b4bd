"""Reflection resolves all that it lists, and every symbol in it, under both of its names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.databases import DatabaseUrls
from tests.support.rpc_server import Server, running_server

pytestmark = pytest.mark.rpc

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
OFFERED = {f"syncbeat.v1.{name}Service" for name in ("Sync", "Push", "Directory", "Event", "Auth", "Ops")}
SYMBOLS = [
    *(f"syncbeat.v1.{name}" for name in ("SyncService.GetHint", "GetHintRequest", "GetHintRequest.device_id")),
    *("syncbeat.v1.Priority", "syncbeat.v1.PRIORITY_FAST", "syncbeat.v1.WatchHintsResponse.event"),
    *("syncbeat.v1.Notification.DataEntry", "grpc.health.v1.Health.Check", f"{V1}.ServerReflectionInfo"),
    *("google.rpc.BadRequest.FieldViolation", "google.protobuf.Duration"),
]
UNKNOWN: list[dict[str, str]] = [
    {"file_containing_symbol": "syncbeat.v1.SyncService.Nothing"},
    {"file_containing_symbol": "syncbeat.v1.NothingService"},
    {"file_by_filename": "syncbeat/v1/access.proto"},
    {"all_extension_numbers_of_type": "syncbeat.v1.Nothing"},
    {},
]


@pytest.fixture
async def reflecting(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    """A server with reflection."""
    variables: Any = {"REFLECTION": "true"}
    async with running_server(database_urls, redis_url, **variables) as server:
        yield server


async def reflected(server: Server, name: str, **asked: str) -> Any:
    call: Any = server.channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(timeout=10)
    await call.write(reflection_pb2.ServerReflectionRequest(host="h", **asked))
    answer = await call.read()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert answer.valid_host == answer.original_request.host == "h"
    return answer


async def files_of(server: Server, name: str, **asked: str) -> list[FileDescriptorProto]:
    answer = await reflected(server, name, **asked)
    return [FileDescriptorProto.FromString(one) for one in answer.file_descriptor_response.file_descriptor_proto]


def add_with_imports(pool: DescriptorPool, file: FileDescriptorProto, files: dict[str, FileDescriptorProto]) -> None:
    for name in file.dependency:
        add_with_imports(pool, files[name], files)
    pool.AddSerializedFile(file.SerializeToString())  # which does nothing the second time


async def test_reflection_is_off_unless_asked_for(server: Server) -> None:
    for name in (V1, V1ALPHA):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(server, name, list_services="")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", [V1, V1ALPHA])
async def test_reflection_resolves_all_that_it_lists(reflecting: Server, name: str) -> None:
    listed = (await reflected(reflecting, name, list_services="")).list_services_response.service
    assert {service.name for service in listed} == OFFERED | {"grpc.health.v1.Health", V1, V1ALPHA}
    for service in listed:
        files = await files_of(reflecting, name, file_containing_symbol=service.name)
        pool = DescriptorPool()
        add_with_imports(pool, files[0], {file.name: file for file in files})
        methods = pool.FindServiceByName(service.name).methods
        assert methods
        for method in methods:
            assert await files_of(reflecting, name, file_containing_symbol=method.full_name) == files


async def test_reflection_resolves_symbols_and_files(reflecting: Server) -> None:
    for symbol in SYMBOLS:
        files = await files_of(reflecting, V1, file_containing_symbol=symbol)
        assert symbol.startswith(f"{files[0].package}.")
        assert await files_of(reflecting, V1, file_by_filename=files[0].name) == files


async def test_reflection_refuses_what_is_not_there(reflecting: Server) -> None:
    for asked in UNKNOWN:
        answer = await reflected(reflecting, V1, **asked)
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_reflection_knows_of_no_extensions(reflecting: Server) -> None:
    answer = await reflected(reflecting, V1, all_extension_numbers_of_type="google.protobuf.Duration")
    assert answer.all_extension_numbers_response.base_type_name == "google.protobuf.Duration"
    assert not answer.all_extension_numbers_response.extension_number
