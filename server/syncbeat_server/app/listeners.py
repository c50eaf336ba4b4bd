"""Wires the listeners of a process: their addresses and certificates."""

from __future__ import annotations

from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.rpc.server import Listener
from syncbeat_server.rpc.tls import TlsFiles, server_credentials


def rpc_listeners(settings: Settings) -> list[Listener]:
    """Return the listener for all callers, then the one for services with a client certificate.

    Raises:
        ConfigurationError: the certificates cannot be used.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return [Listener("SYNCBEAT_LISTEN", settings.listen)]
    found = [
        Listener("SYNCBEAT_LISTEN", settings.listen, server_credentials(TlsFiles(certificate, key), "SYNCBEAT_LISTEN"))
    ]
    if settings.mtls_listen:
        credentials = server_credentials(TlsFiles(certificate, key, settings.mtls_client_ca), "SYNCBEAT_MTLS_LISTEN")
        found.append(Listener("SYNCBEAT_MTLS_LISTEN", settings.mtls_listen, credentials))
    return found
