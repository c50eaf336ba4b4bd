"""TLS credentials of the listeners, reloaded when their files change, and the names in a client's certificate."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.ops.files import read_file

_log = logging.getLogger(__name__)

# Properties under which gRPC lists the names of a verified certificate. Not the common name, which has no kind.
_NAMES = ("peer_dns", "peer_uri")


@dataclass(frozen=True)
class TlsFiles:
    """The paths of the PEM files. With `client_ca` every client must show a certificate issued by it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class _KeyMaterial:
    certificate: bytes
    key: bytes
    client_ca: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


def server_credentials(files: TlsFiles, listener: str = "") -> grpc.ServerCredentials:
    """Return the credentials of a listener, which use for each new handshake what the files hold by then.

    Files that have become unusable are reported in the log as trouble of `listener`; the certificate in use stays.

    Raises:
        ConfigurationError: the files cannot be used now.
    """
    try:
        first = _read(files)
        _check(first)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_TLS_CERTIFICATE, TLS_KEY, MTLS_CLIENT_CA: {error}") from None
    reloader = _Reloader(files, first, listener)
    return grpc.dynamic_ssl_server_credentials(
        first.configuration(),
        reloader.configuration,  # type: ignore[arg-type]  # None is allowed and means: no change
        require_client_authentication=files.client_ca is not None,
    )


def certificate_names(context: grpc.aio.ServicerContext[bytes, bytes]) -> tuple[str, ...]:
    """Return the DNS names and URIs of the client's verified certificate; empty if it has shown none."""
    properties = context.auth_context()
    return tuple(name.decode(errors="replace") for kind in _NAMES for name in properties.get(kind, ()))


class _Reloader:
    """Reads the files at each handshake, in a thread of gRPC, and checks them when their content has changed.

    Modification times would miss two changes within one tick. Reading takes 50 us of a handshake's millisecond.
    """

    def __init__(self, files: TlsFiles, first: _KeyMaterial, listener: str) -> None:
        self._files = files
        self._listener = listener
        self._in_use = first
        self._last_checked = first
        self._lock = threading.Lock()
        self._trouble = FaultLog(
            _log,
            "the new certificate cannot be used, the old one stays",
            "the certificate can be used again",
            listener=listener,
        )

    def configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration; None if the files have not changed, or cannot be used."""
        with self._lock:  # or a thread with an older reading could put back what another has replaced
            try:
                return self._adopt(_read(self._files))
            except Exception as error:  # noqa: BLE001  # cryptography raises many kinds; in gRPC's thread none may escape
                self._trouble.report(str(error) if isinstance(error, ValueError) else type(error).__name__)
                return None

    def _adopt(self, material: _KeyMaterial) -> grpc.ServerCertificateConfiguration | None:
        last_checked, self._last_checked = self._last_checked, material
        if material == self._in_use:
            self._trouble.resolve()
            return None
        if material == last_checked:
            return None  # half of a rotation is reported once, not at every handshake
        _check(material)
        configuration = material.configuration()
        self._in_use = material
        self._trouble.resolve()
        _log.info("the certificate was read anew", extra={"listener": self._listener})
        return configuration


def _read(files: TlsFiles) -> _KeyMaterial:
    client_ca = None if files.client_ca is None else read_file(files.client_ca)
    return _KeyMaterial(read_file(files.certificate), read_file(files.key), client_ca)


def _check(material: _KeyMaterial) -> None:
    """Raise ValueError unless key and certificate belong together."""
    certified = _parse("the certificate is no PEM file", x509.load_pem_x509_certificate, material.certificate)
    private = _parse("the key is no PEM file, or has a password", load_pem_private_key, material.key, None)
    if material.client_ca is not None:
        _parse("the clients' authorities are no PEM file", x509.load_pem_x509_certificates, material.client_ca)
    if certified.public_key() != private.public_key():
        raise ValueError("the key is not that of the certificate")


def _parse(fault: str, parse: Callable[..., Any], *arguments: object) -> Any:
    try:
        return parse(*arguments)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(fault) from None
