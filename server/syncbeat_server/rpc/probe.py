"""Asks a running server for its health, as an orchestrator would."""

from __future__ import annotations

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc


def probe(address: str, timeout_s: float, certificate: bytes | None = None) -> str:
    """The serving status at `address`: SERVING, NOT_SERVING, or the gRPC code that came instead.

    `certificate`: the server's own (PEM), where it serves by TLS; no other is accepted.
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
        return grpc.insecure_channel(address)
    # On this machine the server goes by another name than those in its certificate.
    override = [("grpc.ssl_target_name_override", name) for name in _names(certificate)[:1]]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options=override)


def _names(certificate: bytes) -> list[str]:
    read = x509.load_pem_x509_certificate(certificate)
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    dns: list[str] = names.get_values_for_type(x509.DNSName)
    return [*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress))]
