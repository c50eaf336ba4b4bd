"""Serves gRPC reflection: every service that it lists, and every symbol of their files, methods and fields included.

grpcio-reflection's own servicer does not find methods, and lists a service whose file it does not have.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from syncbeat_server.rpc.validation.compression import decompress
from syncbeat_server.rpc.validation.wire_format import MAX_PUBLIC_BYTES

# grpcio-reflection has no types.
Request: Any = reflection_pb2.ServerReflectionRequest
Response: Any = reflection_pb2.ServerReflectionResponse

_ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"


class ReflectionServicer:
    """Answers what a client asks of the files of these services, of health, and of reflection itself."""

    def __init__(self, files: Iterable[FileDescriptor]) -> None:
        """`files` declare the services that are served."""
        files = tuple(files)
        served = [_proto(file) for file in (*files, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)]
        served.append(_as_v1(_proto(reflection_pb2.DESCRIPTOR)))
        # Details of errors come as Any, whose types clients look up here.
        needed = [*files, health_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR]
        imported = {file.name: _proto(file) for root in needed for file in _with_imports(root)}
        self._files = {**imported, **{file.name: file for file in served}}
        self._file_of = {symbol: file for file in self._files.values() for symbol in _symbols(file)}
        self._services = sorted(f"{file.package}.{one.name}" for file in served for one in file.service)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Return the handlers by path: v1 and v1alpha are the same messages under two names."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._answer_each, request_deserializer=_parse, response_serializer=Response.SerializeToString
        )
        return {f"/{package}.ServerReflection/ServerReflectionInfo": handler for package in (_V1, _ALPHA)}

    async def _answer_each(self, requests: AsyncIterator[Any], _context: object) -> AsyncIterator[Any]:
        async for request in requests:
            answer = self._answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def _answer(self, request: Any) -> Any:
        match request.WhichOneof("message_request"):
            case "list_services":
                names = [reflection_pb2.ServiceResponse(name=name) for name in self._services]
                return Response(list_services_response=reflection_pb2.ListServiceResponse(service=names))
            case "file_by_filename":
                return self._files_response(self._files.get(request.file_by_filename))
            case "file_containing_symbol":
                return self._files_response(self._file_of.get(request.file_containing_symbol))
            case "all_extension_numbers_of_type" if request.all_extension_numbers_of_type in self._file_of:
                found = reflection_pb2.ExtensionNumberResponse(base_type_name=request.all_extension_numbers_of_type)
                return Response(all_extension_numbers_response=found)  # no file here extends anything
            case _:
                return _refusal(grpc.StatusCode.NOT_FOUND, "there is no such file, symbol or extension")

    def _files_response(self, file: FileDescriptorProto | None) -> Any:
        if file is None:
            return self._answer(Request())
        needed, missing = {file.name: file}, list(file.dependency)
        while missing:
            name = missing.pop()
            if name not in needed:
                needed[name] = self._files[name]
                missing += needed[name].dependency
        protos = [one.SerializeToString() for one in needed.values()]
        return Response(file_descriptor_response=reflection_pb2.FileDescriptorResponse(file_descriptor_proto=protos))


def _parse(data: bytes) -> Any:
    return Request.FromString(decompress(data, MAX_PUBLIC_BYTES))


def _refusal(status: grpc.StatusCode, message: str) -> Any:
    error = reflection_pb2.ErrorResponse(error_code=status.value[0], error_message=message)
    return Response(error_response=error)


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    made = FileDescriptorProto()
    file.CopyToProto(made)
    return made


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    yield file
    for imported in file.dependencies:
        yield from _with_imports(imported)


def _as_v1(file: FileDescriptorProto) -> FileDescriptorProto:
    """Return v1alpha's file as that of v1, which the package does not have."""
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _V1
    file.ClearField("options")  # which name packages of v1alpha
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_V1}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_V1}.")
            method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_V1}.")
    return file


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Yield the full name of everything that a file declares."""
    yield from _of_types(file.package, file.message_type, file.enum_type)
    for service in file.service:
        yield f"{file.package}.{service.name}"
        yield from (f"{file.package}.{service.name}.{method.name}" for method in service.method)


def _of_types(scope: str, messages: Sequence[DescriptorProto], enums: Sequence[EnumDescriptorProto]) -> Iterator[str]:
    for enum in enums:
        yield f"{scope}.{enum.name}"
        yield from (f"{scope}.{value.name}" for value in enum.value)  # values are beside their enum, as in C++
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name
        yield from (f"{name}.{field.name}" for field in message.field)
        yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
        yield from _of_types(name, message.nested_type, message.enum_type)
