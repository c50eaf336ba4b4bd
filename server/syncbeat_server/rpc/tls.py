"""TLS for the listeners: certificates that are read anew when their files change, and whom a client's names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from syncbeat_server.errors import ConfigurationError

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
    stamp: tuple[tuple[int, int, int], ...]
    key: bytes
    certificate: bytes
    client_ca: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials of a listener. New handshakes take what the files hold then; what they cannot take is left alone.

    Raises:
        ConfigurationError: the files cannot be used now.
    """
    try:
        first = _read(files)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"SYNCBEAT_TLS_CERTIFICATE, _KEY or MTLS_CLIENT_CA cannot be used: {error}") from None
    reload = _Reload(files, first)
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
    """Asked at each handshake, by a thread of gRPC: it looks at the files, and reads them when they have changed."""

    def __init__(self, files: TlsFiles, first: _Read) -> None:
        self._files = files
        self._stamp = first.stamp

    def configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new; None when nothing is, or when it cannot be used."""
        try:
            stamp = _stamp(self._files)
            if stamp == self._stamp:
                return None
            # One look at each state of the files: half of a rotation is not complained of at every handshake.
            self._stamp = stamp
            read = _read(self._files)
        except (OSError, ValueError) as error:
            _log.warning("the new certificate cannot be used, the old one stays", extra={"error": str(error)})
            return None
        self._stamp = read.stamp
        _log.info("the certificate was read anew")
        return read.configuration()


def _paths(files: TlsFiles) -> Sequence[Path]:
    return [path for path in (files.certificate, files.key, files.client_ca) if path is not None]


def _stamp(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    stats = [path.stat() for path in _paths(files)]
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def _read(files: TlsFiles) -> _Read:
    stamp = _stamp(files)
    certificate, key = files.certificate.read_bytes(), files.key.read_bytes()
    client_ca = files.client_ca.read_bytes() if files.client_ca is not None else None
    try:
        matching = x509.load_pem_x509_certificate(certificate).public_key() == _public(key)
        if client_ca is not None:
            x509.load_pem_x509_certificates(client_ca)
    except (ValueError, TypeError):
        raise ValueError("want PEM files, the key without a password") from None
    if not matching:
        raise ValueError("the key is not that of the certificate")
    return _Read(stamp, key, certificate, client_ca)


def _public(key: bytes) -> object:
    return load_pem_private_key(key, None).public_key()
