"""Asks a running server for its health over gRPC, as an orchestrator would."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.files import FileFault, read_file

SERVING = "SERVING"

# A proxy that the environment names is not used: the server runs on this machine.
_OPTIONS = [("grpc.enable_http_proxy", 0)]


def local_addresses(listen: str) -> list[str]:
    """Return the addresses at which a server that listens at `listen` is reached locally, the likelier one first.

    For a wildcard address these are the loopback ones; for `[::]` of both families, since one of them may be off.
    """
    host, _, port = listen.rpartition(":")
    try:
        listening = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return [listen]  # a host's name
    if not listening.is_unspecified:
        return [listen]
    return ([f"[::1]:{port}"] if listening.version == 6 else []) + [f"127.0.0.1:{port}"]


def probe_until_serving(
    addresses: Sequence[str], timeout_s: float, certificate_file: Path | None
) -> Iterator[tuple[str, str]]:
    """Yield each address and its status, up to the first that is SERVING. They share `timeout_s`.

    Raises:
        ConfigurationError: the server's certificate cannot be read.
    """
    try:
        certificate = None if certificate_file is None else read_file(certificate_file)
    except FileFault as fault:
        raise ConfigurationError(f"SYNCBEAT_TLS_CERTIFICATE: {fault}") from None
    for address in addresses:
        status = probe(address, timeout_s / len(addresses), certificate)
        yield address, status
        if status == SERVING:
            return


def probe(address: str, timeout_s: float, certificate: bytes | None = None) -> str:
    """Return the serving status at `address`: SERVING, NOT_SERVING, or the gRPC code that came instead.

    `certificate` is the server's own (PEM), if it serves by TLS; no other is accepted.
    """
    with _channel(address, certificate) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=False
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _channel(address: str, certificate: bytes | None) -> grpc.Channel:
    if certificate is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    # The local address is not among the names in the certificate.
    override = [("grpc.ssl_target_name_override", name) for name in _names(certificate)[:1]]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options=[*_OPTIONS, *override])


def _names(certificate: bytes) -> list[str]:
    read = x509.load_pem_x509_certificate(certificate)
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    dns: list[str] = names.get_values_for_type(x509.DNSName)
    return [*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress))]
