"""Parses the address of Redis: one server, or the primary that sentinels name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

import redis.asyncio
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
)
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.storage.redis.failure_causes import SENTENCES, Cause, NoPrimary, cause_of

_SENTINEL_PORT = 26_379
_REDIS_PORT = 6_379
_MAX_SENTINELS = 16
# Half of a call's time: after a sentinel that hangs there is time for the primary that another one names.
_SENTINEL_S = 0.5
_MAX_NAMES = 8


class RedisLogin(CredentialProvider):
    """The user and password that connections are opened with, which may change while a process runs."""

    def __init__(self, user: str, password: str) -> None:
        self.credentials = user, password

    async def get_credentials_async(self) -> tuple[str, str]:
        """Return user and password, for a connection that is being opened."""
        return self.credentials


@dataclass(frozen=True)
class RedisAddress:
    """Address of one server, or of sentinels and the name of a primary, with the parameters to connect."""

    kwargs: dict[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    name: str = ""
    sentinel_kwargs: dict[str, Any] = field(default_factory=dict, repr=False)
    login: RedisLogin | None = field(default=None, repr=False, compare=False)
    """The user and password of its connections, if it has any."""

    def log_in_by(self, url: str) -> None:
        """Open connections by the user and password of this address from now on; those that are open stay.

        Raises:
            ConfigurationError: it differs in more than these.
        """
        other = parse_redis_url(url)
        if (self.login is None) != (other.login is None) or self._without_login() != other._without_login():
            raise ConfigurationError(
                "SYNCBEAT_REDIS_URL: only its user and password can change while a process runs, and not go or come"
            )
        if self.login is not None and other.login is not None:
            self.login.credentials = other.login.credentials

    def _without_login(self) -> object:
        return self._place(), self.sentinels, self.name, self.sentinel_kwargs

    def _place(self) -> dict[str, Any]:
        return {name: value for name, value in self.kwargs.items() if name not in ("username", "password")}

    @property
    def is_tls(self) -> bool:
        """Return True if connections use TLS."""
        return "ssl" in self.kwargs or self.kwargs.get("connection_class") is SSLConnection

    @property
    def endpoint(self) -> tuple[str, int] | None:
        """Return host and port of a single server; None for a socket of this machine, and behind sentinels."""
        if self.sentinels or "path" in self.kwargs:
            return None
        return self.kwargs.get("host", "localhost"), self.kwargs.get("port", _REDIS_PORT)

    def client(self, connections: int, connect_s: float) -> redis.asyncio.Redis:
        """Create a client of at most `connections` connections, which it opens when they are needed."""
        # No socket_timeout: redis-py would wait for its writes with asyncio.wait_for, which before Python 3.12 loses
        # a cancellation that arrives when the write is done already (CPython issue 86296). Each call has our timeout.
        # No retries either, since the callers decide about them. RESP2 and no driver_info, so that no command is sent
        # but ours.
        options: dict[str, Any] = {
            "max_connections": connections,
            "protocol": 2,
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": connect_s,
            "socket_keepalive": True,
            "health_check_interval": 0,
        }
        if "path" in self.kwargs:
            del options["socket_keepalive"]
        kwargs = self.kwargs if self.login is None else self._place() | {"credential_provider": self.login}
        if not self.sentinels:
            return redis.asyncio.Redis.from_pool(ConnectionPool(**(kwargs | options)))
        # Two calls to one sentinel at once need a connection each.
        known = _Sentinels(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            self.sentinels, sentinel_kwargs=self.sentinel_kwargs | options
        )
        client: redis.asyncio.Redis = known.master_for(
            self.name, connection_pool_class=_PrimaryPool, **(kwargs | options)
        )
        return client


def parse_redis_url(url: str) -> RedisAddress:
    """Parse SYNCBEAT_REDIS_URL.

    Raises:
        ConfigurationError: it cannot be used; the message does not repeat it, since it holds a password.
    """
    try:
        address = _sentinel_address(url) if "+sentinel://" in url[:24] else RedisAddress(dict(parse_url(url)))
        for login in (address.kwargs, address.sentinel_kwargs):
            if "password" in login:
                # A default user without a password accepts any password with a user name, and none without.
                login.setdefault("username", "default")
        if "password" in address.kwargs:
            own = RedisLogin(address.kwargs["username"], address.kwargs["password"])
            address = replace(address, login=own)
        _try_parameters(address)
    except (ValueError, TypeError, RedisError) as error:
        what = str(error) if isinstance(error, _Unusable) else "want redis://[user:password@]host[:port][/database]"
        raise ConfigurationError(f"SYNCBEAT_REDIS_URL: {what}") from None
    return address


class _Unusable(ValueError):
    """The URL is unusable; the message repeats no part of it that may be secret."""


def _sentinel_address(url: str) -> RedisAddress:
    scheme, _, rest = url.partition("+sentinel://")
    authority, _, tail = rest.partition("/")
    path, _, query = tail.partition("?")
    name, _, database = path.partition("/")
    login, _, hosts = authority.rpartition("@")
    if not name or (database and not database.isdecimal()):
        raise _Unusable("want redis+sentinel://[user:password@]host:26379,host:26379/<name of the primary>[/database]")
    kwargs: dict[str, Any] = dict(
        parse_url(f"{scheme}://{login}{'@' if login else ''}primary/{database or 0}{'?' if query else ''}{query}")
    )
    for parameter in ("host", "port", "path"):
        kwargs.pop(parameter, None)
    own = {key: kwargs.pop(f"sentinel_{key}") for key in ("username", "password") if f"sentinel_{key}" in kwargs}
    if kwargs.pop("connection_class", None) is not None:
        kwargs["ssl"] = True
        own |= {key: value for key, value in kwargs.items() if key.startswith("ssl")}
    return RedisAddress(kwargs, tuple(_hosts(hosts)), unquote(name), own)


def _hosts(text: str) -> list[tuple[str, int]]:
    found = []
    for one in text.split(","):
        parts = urlsplit(f"//{one.strip()}")
        if not parts.hostname:
            raise _Unusable("want the sentinels' host:port, separated by commas (IPv6 in brackets)")
        found.append((parts.hostname, parts.port or _SENTINEL_PORT))
    if len(found) > _MAX_SENTINELS:
        raise _Unusable(f"at most {_MAX_SENTINELS} sentinels")
    return found


def _try_parameters(address: RedisAddress) -> None:
    """Raise ValueError for a parameter of the URL that no connection has; opens no connection."""
    client = address.client(1, 1.0)
    try:
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    except TypeError:
        raise _Unusable(
            "a parameter after ? is not known; known are ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs, "
            "ssl_check_hostname, db, and for sentinels sentinel_username and sentinel_password"
        ) from None


class _PrimaryPool(SentinelConnectionPool):
    """Pool of connections to a primary, which closes the connections to the sentinels with its own."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Sentinels(Sentinel):
    """Asks all sentinels at once and uses the newest configuration, so that one that hangs delays nobody."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        asked = [asyncio.ensure_future(self._ask(one)) for one in self.sentinels]
        try:
            return await self._newest(asked, service_name)
        finally:
            for one in asked:
                one.cancel()

    async def _ask(self, one: redis.asyncio.Redis) -> dict[str, Any] | BaseException:
        try:
            async with asyncio.timeout(_SENTINEL_S):
                answer: Any = await one.sentinel_masters()
        except (RedisError, OSError, TimeoutError, ValueError, TypeError, KeyError, AttributeError) as error:
            return error  # some other kind of server, perhaps
        return dict(answer)

    async def _newest(
        self, asked: Sequence[asyncio.Future[dict[str, Any] | BaseException]], name: str
    ) -> tuple[str, int]:
        answers: list[dict[str, Any]] = []
        errors: list[BaseException] = []
        for answered in asyncio.as_completed(asked):
            answer = await answered
            if isinstance(answer, BaseException):
                errors.append(answer)
                continue
            answers.append(answer)
            up = [known[name] for known in answers if name in known and self.check_master_state(known[name], name)]
            # A failover needs more than half of them, so that among as many one knows the newest.
            if up and len(answers) > len(asked) / 2:
                break
        up = [known[name] for known in answers if name in known and self.check_master_state(known[name], name)]
        if up:
            newest = max(up, key=lambda state: int(state.get("config-epoch", 0)))
            return str(newest["ip"]), int(newest["port"])
        raise MasterNotFoundError("no primary") from NoPrimary(_explain_no_primary(name, answers, errors))


def _explain_no_primary(name: str, answers: Sequence[dict[str, Any]], errors: Sequence[BaseException]) -> str:
    known = sorted({one for answer in answers for one in answer})
    if not answers:
        if any(isinstance(error, AuthenticationError) for error in errors):
            return (
                "the sentinels refuse their own user or password: give them with ?sentinel_password=... "
                "(and sentinel_username)"
            )
        cause = cause_of(errors[0]) if errors else Cause.UNREACHABLE
        if cause is Cause.UNKNOWN_COMMAND:
            return "what is named as Sentinel is a Redis server: name the sentinels' ports, or write redis://"
        return f"none of the sentinels can be asked: {SENTENCES[cause]}"
    if name in known:
        return f"the sentinels know {name!r}, and it is down: they choose another if they can"
    names = ", ".join(map(repr, known[:_MAX_NAMES])) or "no primary at all"
    return f"the sentinels do not know {name!r}; they know {names}"
