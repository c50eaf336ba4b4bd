"""Classifies the failures of Redis: the cause behind an error, and its fix in a sentence (ADR 81).

A server's own error text is never passed on: it may quote a command with its values.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from enum import StrEnum

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

ACL_RULE = (
    "~syncbeat:* &syncbeat:* +ping +select +role +get +set +hgetall +hincrby +hmget +hset +expire +pexpire +pexpireat "
    "+exists +scan +unlink +time +zadd +zrange +zrem +zremrangebyscore +eval +publish +subscribe"
)
"""The permissions that the service's user needs: keys, channels and commands, in the form of `ACL SETUSER`."""


class Cause(StrEnum):
    """Names the causes of failed calls; the values are labels of the metric."""

    UNREACHABLE = "unreachable"
    NO_ANSWER = "no_answer"
    CLOSED = "closed"
    WRONG_PASSWORD = "wrong_password"  # noqa: S105  # a cause, and no password
    NOT_PERMITTED = "not_permitted"
    PROTECTED = "protected_mode"
    MAX_CLIENTS = "max_clients"
    TLS_UNTRUSTED = "tls_untrusted"
    TLS_FAILED = "tls_failed"
    TLS_WANTED = "tls_wanted"
    TLS_UNKNOWN = "tls_unknown"
    NO_FILE = "no_file"
    READ_ONLY = "read_only"
    PRIMARY_AWAY = "primary_away"
    LOADING = "loading"
    FULL = "full"
    CANNOT_SAVE = "cannot_save"
    FEW_REPLICAS = "few_replicas"
    BUSY = "busy"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"
    NO_PRIMARY = "no_primary"
    NO_SUCH_DATABASE = "no_such_database"
    UNKNOWN_COMMAND = "unknown_command"
    FOREIGN = "foreign"
    NO_REDIS = "no_redis"
    UNHEARD = "unheard"
    OTHER = "other"


VAGUE = frozenset({Cause.NO_ANSWER, Cause.CLOSED, Cause.NO_REDIS})
"""Causes that a look at the bare connection may narrow down."""
AWAY = frozenset({Cause.UNREACHABLE, Cause.NO_ANSWER, Cause.CLOSED})
"""Causes that concern every call, since nothing answers."""
MOVED = frozenset({Cause.READ_ONLY, Cause.PRIMARY_AWAY, Cause.LOADING, Cause.UNHEARD})
"""Causes after which the primary may be another server: open connections lead to the former one."""

SENTENCES = {
    Cause.UNREACHABLE: "nobody accepts connections at the address: check SYNCBEAT_REDIS_URL, and that it runs there",
    Cause.NO_ANSWER: "it accepts connections and does not answer in time: is it overloaded or stopped",
    Cause.CLOSED: "it closes the connection before it answers",
    Cause.WRONG_PASSWORD: "it refuses the user or the password in SYNCBEAT_REDIS_URL, or wants one that is not there",
    Cause.NOT_PERMITTED: f"the user lacks rights; grant: ACL SETUSER <user> {ACL_RULE}",
    Cause.PROTECTED: "it is in protected mode and serves its own machine only: set a password there",
    Cause.MAX_CLIENTS: "it has as many clients as it takes: raise maxclients, or look for who holds connections",
    Cause.TLS_UNTRUSTED: "its certificate is not trusted, is over, or is for another name: check the host, or name its "
    "authority with ?ssl_ca_certs=/path/ca.pem",
    Cause.TLS_FAILED: "no TLS connection comes about: do both sides share a version, does it want a client certificate "
    "(?ssl_certfile=...&ssl_keyfile=...)",
    Cause.TLS_WANTED: "it speaks TLS on this port: write rediss:// (or rediss+sentinel://) in SYNCBEAT_REDIS_URL",
    Cause.TLS_UNKNOWN: "it speaks no TLS on this port: write redis:// in SYNCBEAT_REDIS_URL, or name its TLS port",
    Cause.NO_FILE: "a file or socket that SYNCBEAT_REDIS_URL names is not there, or cannot be read",
    Cause.READ_ONLY: "it is a replica, which takes no writes: name the primary, or its sentinels (redis+sentinel://)",
    Cause.PRIMARY_AWAY: "it is a replica that has lost its primary: name the primary, or its sentinels",
    Cause.LOADING: "it reads its data from disk and serves when it is done",
    Cause.FULL: "its memory is full and it evicts nothing: raise maxmemory, or set maxmemory-policy to allkeys-lru",
    Cause.CANNOT_SAVE: "it refuses writes since it cannot save to disk: look at its log and its disk",
    Cause.FEW_REPLICAS: "it refuses writes since too few replicas follow it (min-replicas-to-write)",
    Cause.BUSY: "a script of somebody runs in it without end: SCRIPT KILL",
    Cause.CLUSTER: "it is a Redis Cluster, which this service cannot use: name a single server, or a primary with "
    "sentinels (redis+sentinel://); wake-ups and marks need little room",
    Cause.SENTINEL: "it is a Sentinel and no server: write redis+sentinel://host:26379/<name of the primary>",
    Cause.NO_PRIMARY: "no Sentinel names a primary that is up",
    Cause.NO_SUCH_DATABASE: "it has no database of that number (a Cluster has 0 alone): check the end of "
    "SYNCBEAT_REDIS_URL",
    Cause.UNKNOWN_COMMAND: "it does not know a command that is needed: has somebody renamed it or switched it off",
    Cause.FOREIGN: "somebody else writes under names that begin with syncbeat:, or it answers what Redis would not",
    Cause.NO_REDIS: "what answers there does not speak Redis's protocol: check the port",
    Cause.UNHEARD: "what is published does not arrive: connections lead to different servers, or messages are held up",
    Cause.OTHER: "it refuses what the service asks, for a reason that is not known here",
}

# By the code with which the server's answer begins, or which an older server quotes from inside a script.
_CODES = {
    "NOPERM": Cause.NOT_PERMITTED,
    "DENIED": Cause.PROTECTED,
    "READONLY": Cause.READ_ONLY,
    "MASTERDOWN": Cause.PRIMARY_AWAY,
    "LOADING": Cause.LOADING,
    "OOM": Cause.FULL,
    "MISCONF": Cause.CANNOT_SAVE,
    "NOREPLICAS": Cause.FEW_REPLICAS,
    "BUSY": Cause.BUSY,
    "CROSSSLOT": Cause.CLUSTER,
    "CLUSTERDOWN": Cause.CLUSTER,
    "MOVED": Cause.CLUSTER,
    "WRONGTYPE": Cause.FOREIGN,
    "NOAUTH": Cause.WRONG_PASSWORD,
    "WRONGPASS": Cause.WRONG_PASSWORD,
}
_CODE = re.compile(rf"(?:^|[-:( ])({'|'.join(_CODES)})\b")
_TEXTS = (
    (re.compile("max(imum)? number of clients"), Cause.MAX_CLIENTS),
    (re.compile("unknown (sub)?command", re.IGNORECASE), Cause.UNKNOWN_COMMAND),
    (re.compile("DB index is out of range|SELECT is not allowed"), Cause.NO_SUCH_DATABASE),
    (re.compile("can't run this command|can't access|ACL failure|no permissions", re.IGNORECASE), Cause.NOT_PERMITTED),
    (re.compile("hash value is not an integer"), Cause.FOREIGN),
    (re.compile("Sentinel instances"), Cause.SENTINEL),
    (re.compile("previous master is now a slave"), Cause.READ_ONLY),
    (re.compile("Connection closed|Connection reset|lost", re.IGNORECASE), Cause.CLOSED),
)
_CLASSES: tuple[tuple[type[BaseException], Cause], ...] = (
    (ssl.SSLCertVerificationError, Cause.TLS_UNTRUSTED),
    (ssl.SSLError, Cause.TLS_FAILED),
    (AuthenticationError, Cause.WRONG_PASSWORD),
    (NoPermissionError, Cause.NOT_PERMITTED),
    (BusyLoadingError, Cause.LOADING),
    (OutOfMemoryError, Cause.FULL),
    (ReadOnlyError, Cause.READ_ONLY),
    (MasterDownError, Cause.PRIMARY_AWAY),
    (ClusterDownError, Cause.CLUSTER),
    (ClusterCrossSlotError, Cause.CLUSTER),
    (AskError, Cause.CLUSTER),  # and MOVED
    (TryAgainError, Cause.CLUSTER),
    (InvalidResponse, Cause.NO_REDIS),
)
_COMMAND = re.compile(r"'([a-z]{2,20}(?:\|[a-z-]{2,20})?)' command|unknown command '([A-Za-z]{2,20})'")


class NoPrimary(RedisError):
    """No sentinel named a primary that is up; `sentence` says what they answered."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


def cause_of(error: BaseException) -> Cause:
    """Return the cause of a failed call, as far as its error shows."""
    for one in _chain(error):
        if isinstance(one, NoPrimary):
            return Cause.NO_PRIMARY
        for kind, cause in _CLASSES:
            if isinstance(one, kind):
                return cause
    text = str(error)
    if found := _CODE.search(text):
        return _CODES[found[1]]
    for pattern, cause in _TEXTS:
        if pattern.search(text):
            return cause
    if isinstance(error, ResponseError):
        return Cause.OTHER
    return _of_connection(error)


def _of_connection(error: BaseException) -> Cause:
    chain = list(_chain(error))
    if any(isinstance(one, FileNotFoundError | PermissionError) for one in chain):
        return Cause.NO_FILE
    # RuntimeError: uvloop's, where something is sent on a connection that was reset a moment before.
    if any(isinstance(one, ConnectionResetError | BrokenPipeError | EOFError | RuntimeError) for one in chain):
        return Cause.CLOSED
    if any(isinstance(one, TimeoutError) or "Timeout" in type(one).__name__ for one in chain):
        return Cause.NO_ANSWER
    if isinstance(error, ValueError | TypeError):
        return Cause.FOREIGN
    return Cause.UNREACHABLE if isinstance(error, OSError | RedisError) else Cause.OTHER


def command_of(error: BaseException) -> str | None:
    """Return the name of the command that an error is about, without its arguments; None if the server names none."""
    found = _COMMAND.search(str(error))
    return None if found is None else (found[1] or found[2]).upper()


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(8):  # longer than any of the driver's
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__
