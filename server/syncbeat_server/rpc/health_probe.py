"""Asks a running server for its health over gRPC, as an orchestrator would.

It speaks just as much HTTP/2 as one call takes. An orchestrator asks every few seconds, and loading gRPC and protobuf
would cost half a second of CPU each time.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.files import FileFault, read_file

SERVING = "SERVING"
_STATUSES = ("UNKNOWN", SERVING, "NOT_SERVING", "SERVICE_UNKNOWN")  # by number, as in health.proto

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7  # RFC 9113, section 6
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8
_FRAME_HEAD, _MESSAGE_HEAD = 9, 5
_MOST_BYTES = 65_536  # the answer takes a hundred
_STREAM = 1


class _NoAnswer(Exception):
    """The server broke off, or does not speak gRPC."""


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
    """Return the serving status at `address`: SERVING, NOT_SERVING, or the gRPC code that stands for what came instead.

    `certificate` is the server's own (PEM), if it serves by TLS; no other is accepted. A proxy that the environment
    names is not used: the server runs on this machine.
    """
    ends_at_s = time.monotonic() + timeout_s  # noqa: TID251  # a bound on real time, in a process that only asks
    try:
        with _connect(address, timeout_s, certificate) as connection:
            connection.sendall(_request(address, "http" if certificate is None else "https"))
            message = _read_message(connection, ends_at_s)
    except TimeoutError:
        return "DEADLINE_EXCEEDED"
    except (OSError, ValueError, _NoAnswer):
        return "UNAVAILABLE"
    number = message[1] if len(message) == 2 and message[0] == 8 else 0  # its only field, `status`
    return _STATUSES[number] if number < len(_STATUSES) else _STATUSES[0]


def _connect(address: str, timeout_s: float, certificate: bytes | None) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        connection.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        connection = socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), timeout_s)
    return connection if certificate is None else _secure(connection, certificate)


def _secure(connection: socket.socket, certificate: bytes) -> socket.socket:
    import ssl

    own = ssl.PEM_cert_to_DER_cert(_first_certificate(certificate.decode("ascii", "replace")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the local address is not among the names in the certificate
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusted though it is no authority
    context.load_verify_locations(cadata=own)
    context.set_alpn_protocols(["h2"])
    secured = context.wrap_socket(connection)
    if secured.getpeercert(binary_form=True) != own:
        secured.close()
        raise _NoAnswer
    return secured


def _first_certificate(chain: str) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return begin + chain.partition(begin)[2].partition(end)[0] + end


def _request(address: str, scheme: str) -> bytes:
    """Return all that the client sends: the preface, empty settings, the headers and an empty message."""
    authority = "localhost" if address.startswith("unix:") else address[:100]
    # Header fields by RFC 7541: indexes of the static table, and literals that are neither compressed nor indexed.
    headers = b"".join(
        (
            b"\x83",  # :method: POST
            b"\x86" if scheme == "http" else b"\x87",  # :scheme
            b"\x04" + _text("/grpc.health.v1.Health/Check"),  # :path
            b"\x01" + _text(authority),  # :authority
            b"\x0f\x10" + _text("application/grpc"),  # content-type
            b"\x00" + _text("te") + _text("trailers"),
        )
    )
    empty_message = bytes(_MESSAGE_HEAD)
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, _STREAM, headers),
            _frame(_DATA, _END_STREAM, _STREAM, empty_message),
        )
    )


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("ascii", "replace")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _read_message(connection: socket.socket, ends_at_s: float) -> bytes:
    """Return the message of the answer; empty if the call ended without one."""
    received, body = bytearray(), b""
    for number in range(_MOST_BYTES):  # each frame has nine octets at least
        kind, flags, stream, payload = _read_frame(connection, received, ends_at_s)
        if number == 0 and kind != _SETTINGS:
            raise _NoAnswer  # this is no HTTP/2
        if kind == _GOAWAY or (kind == _RST_STREAM and stream == _STREAM):
            raise _NoAnswer
        if kind == _DATA and stream == _STREAM:
            body += payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
        if kind in (_DATA, _HEADERS) and stream == _STREAM and flags & _END_STREAM:
            return body[_MESSAGE_HEAD:]
    raise _NoAnswer


def _read_frame(connection: socket.socket, received: bytearray, ends_at_s: float) -> tuple[int, int, int, bytes]:
    _read_until(connection, received, _FRAME_HEAD, ends_at_s)
    end = _FRAME_HEAD + int.from_bytes(received[:3])
    _read_until(connection, received, end, ends_at_s)
    kind, flags, stream = received[3], received[4], int.from_bytes(received[5:9])
    payload = bytes(received[_FRAME_HEAD:end])
    del received[:end]
    return kind, flags, stream, payload


def _read_until(connection: socket.socket, received: bytearray, length: int, ends_at_s: float) -> None:
    if length > _MOST_BYTES:
        raise _NoAnswer
    while len(received) < length:
        left_s = ends_at_s - time.monotonic()  # noqa: TID251  # a bound on real time, in a process that only asks
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        part = connection.recv(_MOST_BYTES)
        if not part:
            raise _NoAnswer
        received += part
