"""Where a process listens for RPCs, and with which certificates."""

from __future__ import annotations

from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.rpc.server import Listener
from syncbeat_server.rpc.tls import TlsFiles, server_credentials


def listeners(settings: Settings) -> list[Listener]:
    """The listener of everybody, then that of services which show a certificate.

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
