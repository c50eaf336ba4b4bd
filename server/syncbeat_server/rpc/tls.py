"""TLS for the listeners: certificates that are read anew when their files change, and whom a client's names."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.ops.files import read_file

_log = logging.getLogger(__name__)

# What gRPC tells of a certificate that it has verified, by kind of name. Not the common name: it has no kind.
_NAMES = ("peer_dns", "peer_uri")


@dataclass(frozen=True)
class TlsFiles:
    """Where the PEM files are. With `client_ca` every client must show a certificate of it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class _Read:
    certificate: bytes
    key: bytes
    client_ca: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


def server_credentials(files: TlsFiles, listener: str = "") -> grpc.ServerCredentials:
    """Credentials of a listener. New handshakes take what the files hold then; what they cannot take is left alone,
    and told as trouble of `listener`.

    Raises:
        ConfigurationError: the files cannot be used now.
    """
    try:
        first = _read(files)
        _check(first)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_TLS_CERTIFICATE, _KEY or MTLS_CLIENT_CA cannot be used: {error}") from None
    reload = _Reload(files, first, listener)
    return grpc.dynamic_ssl_server_credentials(
        first.configuration(),
        reload.configuration,  # type: ignore[arg-type]  # None is allowed and means: nothing new
        require_client_authentication=files.client_ca is not None,
    )


def certificate_names(context: grpc.aio.ServicerContext[bytes, bytes]) -> tuple[str, ...]:
    """The DNS names and URIs of the client's certificate, which gRPC has verified; empty when it has shown none."""
    known = context.auth_context()
    return tuple(name.decode(errors="replace") for kind in _NAMES for name in known.get(kind, ()))


class _Reload:
    """Asked at each handshake, by a thread of gRPC: it reads the files, and judges them when they hold something else.

    It goes by what they hold: times do not tell two changes within one tick apart. Reading takes 50 us, of a handshake
    that takes a millisecond.
    """

    def __init__(self, files: TlsFiles, first: _Read, listener: str) -> None:
        self._files = files
        self._listener = listener
        self._in_use = first
        self._judged = first
        self._lock = threading.Lock()
        self._trouble = FaultLog(
            _log,
            "the new certificate cannot be used, the old one stays",
            "the certificate can be used again",
            listener=listener,
        )

    def configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new; None when nothing is, or when it cannot be used."""
        with self._lock:  # or one who read before another would put back what the other replaced
            try:
                return self._judge(_read(self._files))
            except Exception as error:  # noqa: BLE001  # cryptography raises many kinds, gRPC's thread can take none
                self._trouble.report(str(error) if isinstance(error, ValueError) else type(error).__name__)
                return None

    def _judge(self, read: _Read) -> grpc.ServerCertificateConfiguration | None:
        known, self._judged = self._judged, read
        if read == self._in_use:
            self._trouble.resolve()
            return None
        if read == known:
            return None  # half of a rotation is judged once, not at every handshake
        _check(read)
        configuration = read.configuration()
        self._in_use = read
        self._trouble.resolve()
        _log.info("the certificate was read anew", extra={"listener": self._listener})
        return configuration


def _read(files: TlsFiles) -> _Read:
    client_ca = None if files.client_ca is None else read_file(files.client_ca)
    return _Read(read_file(files.certificate), read_file(files.key), client_ca)


def _check(read: _Read) -> None:
    """Raise ValueError unless they belong together."""
    try:
        matching = x509.load_pem_x509_certificate(read.certificate).public_key() == _public(read.key)
        if read.client_ca is not None:
            x509.load_pem_x509_certificates(read.client_ca)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("want PEM files, the key without a password") from None
    if not matching:
        raise ValueError("the key is not that of the certificate")


def _public(key: bytes) -> object:
    return load_pem_private_key(key, None).public_key()
