"""Types of single settings: each parses its text and checks its value."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    model_validator,
)

from syncbeat_server.ops.files import read_file
from syncbeat_server.ops.hosts import is_this_machine

RUNNING = "running"
"""The validation context in which no file is looked for: that of a running process, whose files were read at the start,
and where those missing now are reported by the code that reads them again."""
NAME = r"^[A-Za-z0-9_.-]{1,64}$"
"""The pattern of an app's name and of a token holder's."""
_MAX_PORT = 65_535
_MAPPED_BITS = 96  # of ::ffff:0:0/96, which holds the IPv4 addresses
_DATABASE_SCHEMES = ("postgresql", "postgres")
_SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
_REDIS_SCHEMES = ("redis", "rediss", *_SENTINEL_SCHEMES, "unix")
_ONE_HOST_SCHEMES = ("redis", "rediss")
_SHOWN_KID = 16  # what is longer may be half of a secret
_WILDCARDS = frozenset({"0.0.0.0", "::", "*"})  # noqa: S104  # compared with; gRPC takes both families at each
_T = TypeVar("_T")
_BEARER_FORM = (
    "want name:sha256-hex:methods:apps, of which the second has 64 hex digits in small letters "
    "('syncbeat-server token service NAME' prints one)"
)
_CERTIFICATE_FORM = "want name:methods:apps:san, its name of 1 to 64 of A-Z a-z 0-9 _ . -"
_MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: a key as long as the hash for HS256


class TokenEntry(BaseModel):
    """Entry of a service or admin token: its holder's name, its SHA-256, and the RPCs and apps it is allowed.

    Written `name:sha256-hex:methods:apps`; methods are RPC names joined by `|`, and `*` (None here) allows all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    methods: frozenset[str] | None
    apps: frozenset[str] | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse one entry. Raises ValueError when it is malformed."""
        parts = text.strip().split(":")
        if len(parts) != 4:
            raise ValueError
        return cls(name=parts[0], digest=parts[1], methods=_allow_list(parts[2]), apps=_allow_list(parts[3]))


class CertificateEntry(BaseModel):
    """Entry of a service with a client certificate: its name, the RPCs and apps it is allowed, its certificate's SAN.

    Written `name:methods:apps:san`, as in `backend:*:*:spiffe://example.org/backend`; see `TokenEntry`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    methods: frozenset[str] | None
    apps: frozenset[str] | None
    san: str = Field(min_length=1, max_length=256)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse one entry. Raises ValueError when it is malformed."""
        parts = text.strip().split(":", 3)
        if len(parts) != 4:
            raise ValueError
        return cls(name=parts[0], methods=_allow_list(parts[1]), apps=_allow_list(parts[2]), san=parts[3])


class CheckedTogether(BaseModel):
    """Settings whose rules over several of them are all checked, so that one start tells every fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_flags(cls, given: object) -> object:
        """Refuse true and false of a TOML file where a number is wanted, for which Python takes them."""
        for name, value in given.items() if isinstance(given, Mapping) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{name}: true and false are no value of it")
        return given

    def faults(self) -> Iterator[str]:
        """Yield the faults of settings that are right one by one, each beginning with their names."""
        yield from ()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if faults := list(self.faults()):
            raise ValueError("\n".join(faults))
        return self


def faults_of(check: Callable[..., None], *arguments: object) -> Iterator[str]:
    """Yield the text of the ValueError that a check raises, if it does."""
    try:
        check(*arguments)
    except ValueError as error:
        yield str(error)


def token_digest(token: str) -> str:
    """Return the SHA-256 (hex) by which a service or admin token is known in the settings."""
    return hashlib.sha256(token.encode()).hexdigest()


def _allow_list(text: str) -> frozenset[str] | None:
    return None if text == "*" else frozenset(name for name in text.split("|") if name)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]


def _seconds(value: object) -> object:
    return tuple(_parts(value)) if isinstance(value, str) else value


def _token_entries(value: object) -> object:
    return parse_entries(value, TokenEntry.parse, _BEARER_FORM) if isinstance(value, str) else value


def _certificate_entries(value: object) -> object:
    return parse_entries(value, CertificateEntry.parse, _CERTIFICATE_FORM) if isinstance(value, str) else value


def parse_entries(text: str, parse: Callable[[str], _T], form: str) -> tuple[_T, ...]:
    """Parse entries separated by commas. Raises ValueError that tells the number of a malformed one, and the form."""
    entries = []
    for number, part in enumerate(_parts(text), start=1):
        try:
            entries.append(parse(part))
        except ValueError:  # its own text would repeat the entry
            raise ValueError(f"entry {number}: {form}") from None
    return tuple(entries)


def _networks(value: object) -> object:
    return tuple(map(_network, _parts(value))) if isinstance(value, str) else value


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:  # not repeated: it may be a secret in the wrong place
        raise ValueError("want networks such as 10.0.0.0/8, separated by commas") from None
    network = interface.network
    if interface.ip != network.network_address:
        raise ValueError(f"an address within {network}: write the network")
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        bits = network.prefixlen - _MAPPED_BITS
        raise ValueError(f"{network} is compared with IPv4 addresses: write {mapped}/{bits}")
    if network.prefixlen == 0:
        raise ValueError(f"{network} would trust everybody: name the networks of your proxies")
    return network


def _names(value: object) -> object:
    return frozenset(_parts(value)) if isinstance(value, str) else value


def _ordered_names(value: object) -> object:
    return tuple(dict.fromkeys(_parts(value))) if isinstance(value, str) else value


def _secrets(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in _parts(value)]
    # A secret in base64 may end with `=`: without a kid it would pass for one, and be shown.
    if any(not kid or not secret.strip("=") for kid, _, secret in pairs):
        raise ValueError("want kid=secret, several separated by commas")
    if len({kid for kid, _, _ in pairs}) != len(pairs):
        raise ValueError("each kid once")
    return {kid: secret for kid, _, secret in pairs}


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _can_be_read(path: Path | None, info: ValidationInfo) -> Path | None:
    if path is not None and info.context != RUNNING:
        read_file(path)
    return path


def _port_exists(address: str) -> str:
    if address and int(address.rpartition(":")[2]) > _MAX_PORT:
        raise ValueError(f"a port is at most {_MAX_PORT}")
    return address


def _store_url(schemes: tuple[str, ...]) -> Callable[[SecretStr | None], SecretStr | None]:
    """Return a check for what drivers fail on late; its errors never repeat the URL, which holds a password."""

    def check(url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            _check_store_url(url.get_secret_value(), schemes)
        return url

    return check


def _check_store_url(url: str, schemes: tuple[str, ...]) -> None:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in schemes:
        raise ValueError(f"want a URL that starts with {' or '.join(f'{one}://' for one in schemes)}")
    if scheme == "unix":
        return
    # PostgreSQL and sentinel addresses may name several hosts, separated by commas, which urlsplit cannot parse.
    hosts = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].split(",")
    if len(hosts) > 1 and scheme in _ONE_HOST_SCHEMES:
        raise ValueError("want one host; several are sentinels': redis+sentinel://host,host/<name of the primary>")
    if scheme in _SENTINEL_SCHEMES and not re.search(r"^[^/?#]+/[^/?#]", rest):
        raise ValueError("want redis+sentinel://host:26379,host:26379/<name of the primary>[/database]")
    for host in hosts:
        port = re.sub(r"^\[[^]]*\]", "", host).partition(":")[2]
        if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= _MAX_PORT):
            raise ValueError(
                f"a port is a number from 1 to {_MAX_PORT} (in a password, write / ? # @ : as %2F %3F %23 %40 %3A)"
            )


Address = Annotated[str, AfterValidator(_port_exists)]
Secrets = Annotated[dict[str, SecretStr], BeforeValidator(_secrets)]
Seconds = Annotated[
    tuple[Annotated[float, Field(ge=0.1, le=3600.0)], ...], BeforeValidator(_seconds), Field(max_length=8)
]
Networks = Annotated[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], BeforeValidator(_networks)]
Names = Annotated[frozenset[str], BeforeValidator(_names)]
OrderedNames = Annotated[tuple[str, ...], BeforeValidator(_ordered_names)]
CertificateEntries = Annotated[tuple[CertificateEntry, ...], BeforeValidator(_certificate_entries)]
TokenEntries = Annotated[tuple[TokenEntry, ...], BeforeValidator(_token_entries)]
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_empty_is_none)]
OptionalText = Annotated[_T | None, BeforeValidator(_empty_is_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]
ReadableFile = Annotated[Path | None, BeforeValidator(_empty_is_none), AfterValidator(_can_be_read)]
DatabaseUrl = Annotated[
    SecretStr | None, BeforeValidator(_empty_is_none), AfterValidator(_store_url(_DATABASE_SCHEMES))
]
RedisUrl = Annotated[SecretStr | None, BeforeValidator(_empty_is_none), AfterValidator(_store_url(_REDIS_SCHEMES))]


def check_base_url(name: str, url: str) -> None:
    """Raise ValueError unless `url` is https, or http to this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"{name}: not a URL") from None
    if not parts.hostname or (parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(url))):
        raise ValueError(f"{name}: want https (http only to loopback)")


def check_public_address(name: str, url: str, unless: str) -> None:
    """Raise ValueError if `url` names this machine or a private address; `unless` is the setting that permits it."""
    host = urlsplit(url).hostname or ""
    try:
        public = ipaddress.ip_address(host).is_global
    except ValueError:  # a name, whose addresses are checked when it is resolved
        public = not is_this_machine(host)
    if not public:
        raise ValueError(f"{name}: a private address; {unless} if that is meant")


def is_loopback(url: str) -> bool:
    """Return True if a URL leads to this machine."""
    return is_this_machine(urlsplit(url).hostname or "")


def share_a_port(first: str, second: str) -> bool:
    """Return True if two addresses to listen at cannot be taken both; port 0, which takes a free one, never clashes."""
    (host, _, port), (other, _, other_port) = first.rpartition(":"), second.rpartition(":")
    if int(port) != int(other_port) or int(port) == 0:
        return False
    hosts = {_bare_host(host), _bare_host(other)}
    return len(hosts) == 1 or bool(hosts & _WILDCARDS)


def _bare_host(host: str) -> str:
    bare = host.removeprefix("[").removesuffix("]").lower()
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return "127.0.0.1" if bare == "localhost" else bare


def check_secrets(name: str, secrets: Mapping[str, SecretStr]) -> None:
    """Raise ValueError if a secret is shorter than 32 bytes."""
    for number, (kid, secret) in enumerate(secrets.items(), start=1):
        if len(secret.get_secret_value().encode()) < _MIN_SECRET_BYTES:
            of_kid = f"of kid {kid!r}" if len(kid) <= _SHOWN_KID else f"number {number}"
            raise ValueError(f"{name}: the secret {of_kid} is shorter than {_MIN_SECRET_BYTES} bytes")
