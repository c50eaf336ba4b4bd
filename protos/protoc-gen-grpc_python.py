"""A protoc plugin around the gRPC generator of grpcio-tools, which is built into its protoc: no command of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet


def main() -> None:
    """Read a CodeGeneratorRequest from stdin, write the CodeGeneratorResponse to stdout."""
    request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    with_services = [file.name for file in request.proto_file if file.service and file.name in request.file_to_generate]
    response = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    with tempfile.TemporaryDirectory() as folder:
        image, out = Path(folder, "image.binpb"), Path(folder, "out")
        out.mkdir()
        image.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={image}"]
        # Its own stdout is the response: what protoc says goes to stderr.
        subprocess.run([*command, f"--grpc_python_out={out}", *with_services], check=True, stdout=sys.stderr)
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text(encoding="utf-8"))
    sys.stdout.buffer.write(response.SerializeToString())


if __name__ == "__main__":
    main()
