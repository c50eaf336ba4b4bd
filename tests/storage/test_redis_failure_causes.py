"""Every way in which Redis can be half there is named, with the fix: by check-config, in the log, in a metric."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.storage.redis.address import parse_redis_url
from syncbeat_server.storage.redis.bus import open_redis
from syncbeat_server.storage.redis.capability_check import describe_refusals
from syncbeat_server.storage.redis.failover_monitor import RedisMonitor
from syncbeat_server.storage.redis.failure_causes import ACL_RULE, Cause
from tests.support.certificates import Authority
from tests.support.fake_clock import wait_until
from tests.support.valkeys import (
    PASSWORD,
    Valkey,
    moving_address,
    running_sentinel,
    running_valkey,
    saying,
    sentinel_url,
)

pytestmark = pytest.mark.store

Made = Callable[[Path, ExitStack], str]


def valkey(*settings: str, url: str = "redis://127.0.0.1:{port}") -> Made:
    def make(folder: Path, cleanup: ExitStack) -> str:
        return url.format(port=cleanup.enter_context(running_valkey(folder, *settings)).port)

    return make


def acl(*rules: str) -> Made:
    def make(folder: Path, cleanup: ExitStack) -> str:
        return granted(cleanup.enter_context(running_valkey(folder)), " ".join(rules))

    return make


def replica(*settings: str, primary_lives: bool = True) -> Made:
    def make(folder: Path, cleanup: ExitStack) -> str:
        primary = cleanup.enter_context(running_valkey(folder))
        one = cleanup.enter_context(running_valkey(folder, *settings))
        one.follow(primary)
        if not primary_lives:
            primary.server.kill()
        return one.url

    return make


def full(folder: Path, cleanup: ExitStack) -> str:
    one = cleanup.enter_context(running_valkey(folder))
    with one.client() as client:
        client.set("filling", b"x" * 2_000_000)
        client.config_set("maxmemory", "1mb")
    return one.url


def cannot_save(folder: Path, cleanup: ExitStack) -> str:
    one = cleanup.enter_context(running_valkey(folder, "--save", "3600 100000"))
    with one.client() as client:
        client.set("a", "b")  # it has looked for its file before
        (folder / str(one.port) / "dump.rdb").mkdir()
        client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            pass
    return one.url


def whole_cluster(folder: Path, cleanup: ExitStack) -> str:
    """A Cluster of one server that has all slots: it takes each single command."""
    one = cleanup.enter_context(running_valkey(folder, "--cluster-enabled", "yes"))
    with one.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            client.ping()
    return one.url


def loading(folder: Path, cleanup: ExitStack) -> str:
    slow = ("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no")
    with running_valkey(folder, "--rdbcompression", "no") as one:
        with one.client() as client:
            client.mset({f"key {number}": b"x" * 2_000 for number in range(2_000)})
            client.save()
        dump = (folder / str(one.port) / "dump.rdb").rename(folder / "dump.rdb")
    return cleanup.enter_context(running_valkey(folder, *slow, "--dir", str(dump.parent))).url


def sentinel(url: str) -> Made:
    def make(folder: Path, cleanup: ExitStack) -> str:
        watching = cleanup.enter_context(running_sentinel(folder, cleanup.enter_context(running_valkey(folder))))
        return url.format(port=watching.port)

    return make


def crowded(folder: Path, cleanup: ExitStack) -> str:
    one = cleanup.enter_context(running_valkey(folder, "--maxclients", "1"))
    cleanup.enter_context(one.client()).ping()
    return one.url


def stopped(folder: Path, cleanup: ExitStack) -> str:
    one = cleanup.enter_context(running_valkey(folder))
    assert one.server.pid is not None
    os.kill(one.server.pid, signal.SIGSTOP)
    return one.url


def without(word: str) -> str:
    return " ".join(part for part in ACL_RULE.split() if part != word)


# What is wrong, its cause, and what the sentence has to name.
FAULTS: dict[str, tuple[Made, Cause, str]] = {
    "wrong password": (
        valkey("--requirepass", PASSWORD, url="redis://:a-wrong-one@127.0.0.1:{port}"),
        Cause.WRONG_PASSWORD,
        "password",
    ),
    "no password": (valkey("--requirepass", PASSWORD), Cause.WRONG_PASSWORD, "password"),
    "an unknown user": (valkey(url=f"redis://nobody:{PASSWORD}@127.0.0.1:{{port}}"), Cause.WRONG_PASSWORD, "user"),
    "TLS to a plain port": (valkey(url="rediss://127.0.0.1:{port}"), Cause.TLS_UNKNOWN, "redis://"),
    "a file of authorities that is not there": (
        valkey(url="rediss://127.0.0.1:{port}?ssl_ca_certs=/no/such.pem"),
        Cause.NO_FILE,
        "file",
    ),
    "a user without channels": (acl(without("&syncbeat:*"), "resetchannels"), Cause.NOT_PERMITTED, "PUBLISH"),
    "a user without scripts": (acl(without("+eval")), Cause.NOT_PERMITTED, "scripts that mark streams (EVAL)"),
    "a user without keys": (acl(without("~syncbeat:*")), Cause.NOT_PERMITTED, "SET with an expiry"),
    "a user of other keys": (acl(without("~syncbeat:*"), "~other:*"), Cause.NOT_PERMITTED, "SET with an expiry"),
    "a user without commands": (acl("~* &* -@all"), Cause.NOT_PERMITTED, "+publish +subscribe"),
    "a user who only reads": (acl("~* &* +@all -@write"), Cause.NOT_PERMITTED, "SET with an expiry"),
    "a replica": (replica(), Cause.READ_ONLY, "name the primary"),
    "a replica that lost its primary": (
        replica("--replica-serve-stale-data", "no", primary_lives=False),
        Cause.READ_ONLY,
        "name the primary",
    ),
    "a full server": (full, Cause.FULL, "maxmemory"),
    "a server that cannot save": (cannot_save, Cause.CANNOT_SAVE, "disk"),
    "a server with too few replicas": (
        valkey("--min-replicas-to-write", "1"),
        Cause.FEW_REPLICAS,
        "min-replicas-to-write",
    ),
    "a Cluster without slots": (valkey("--cluster-enabled", "yes"), Cause.CLUSTER, "redis+sentinel://"),
    "a Cluster of one server": (whole_cluster, Cause.CLUSTER, "redis+sentinel://"),
    "a Cluster's second database": (
        valkey("--cluster-enabled", "yes", url="redis://127.0.0.1:{port}/1"),
        Cause.CLUSTER,
        "Cluster",
    ),
    "a Sentinel": (sentinel("redis://127.0.0.1:{port}"), Cause.SENTINEL, "knows 'heart': write redis+sentinel://"),
    "a Sentinel's second database": (sentinel("redis://127.0.0.1:{port}/2"), Cause.SENTINEL, "knows 'heart'"),
    "another name at a Sentinel": (
        sentinel("redis+sentinel://127.0.0.1:{port}/brain"),
        Cause.NO_PRIMARY,
        "do not know 'brain'; they know 'heart'",
    ),
    "a server in place of a Sentinel": (
        valkey(url="redis+sentinel://127.0.0.1:{port}/heart"),
        Cause.NO_PRIMARY,
        "is a Redis server",
    ),
    "TLS to a Sentinel's plain port": (
        sentinel("rediss+sentinel://127.0.0.1:{port}/heart"),
        Cause.TLS_UNKNOWN,
        "no TLS",
    ),
    "a database that is not there": (valkey(url="redis://127.0.0.1:{port}/99"), Cause.NO_SUCH_DATABASE, "number"),
    "a command that is renamed": (valkey("--rename-command", "EVAL", ""), Cause.UNKNOWN_COMMAND, "scripts"),
    "too many clients": (crowded, Cause.MAX_CLIENTS, "maxclients"),
    "a server that loads": (loading, Cause.LOADING, "reads its data"),
    "a server that is stopped": (stopped, Cause.NO_ANSWER, "does not answer"),
    "nobody": (lambda *_: "redis://127.0.0.1:1", Cause.UNREACHABLE, "SYNCBEAT_REDIS_URL"),
    "nobody at a Sentinel's port": (
        lambda *_: "redis+sentinel://127.0.0.1:1/heart",
        Cause.NO_PRIMARY,
        "none of the sentinels",
    ),
    "a socket that is not there": (lambda folder, _: f"unix://{folder}/no.sock", Cause.NO_FILE, "socket"),
    "a name that is not there": (lambda *_: "redis://nobody.invalid", Cause.UNREACHABLE, "SYNCBEAT_REDIS_URL"),
}

# What says its words and is no Redis, or no longer one.
SAID = {
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n": Cause.NO_REDIS,
    b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n": Cause.PROTECTED,
    b"-ERR max number of clients reached\r\n": Cause.MAX_CLIENTS,
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n": Cause.PRIMARY_AWAY,
    b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL\r\n": Cause.BUSY,
    b"-MOVED 3999 127.0.0.1:6381\r\n": Cause.CLUSTER,
    b"-ERR something new\r\n": Cause.OTHER,
    b"": Cause.CLOSED,
    b"\xff\xfe\x00binary": Cause.NO_REDIS,
    b"$99999999999\r\n": Cause.CLOSED,
}


@pytest.mark.parametrize("what", FAULTS)
async def test_redis_fault_is_named_with_its_fix(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, cause, named = FAULTS[what]
    with ExitStack() as cleanup:
        url = make(tmp_path, cleanup)
        await named_everywhere(url, cause, named, caplog)


@pytest.mark.parametrize("words", SAID)
async def test_redis_fault_of_a_foreign_server_is_named(words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with saying(words) as url:
        await named_everywhere(url, SAID[words], "", caplog)


async def named_everywhere(url: str, cause: Cause, named: str, caplog: pytest.LogCaptureFixture) -> None:
    """The sentences of check-config, the log of a process and its metrics tell the cause, and no password."""
    sentences = await describe_refusals(parse_redis_url(url), "check")
    assert sentences
    assert any(named in sentence for sentence in sentences), sentences
    metrics = Metrics()
    async with open_redis(url, SystemClock(), "ours") as bus:
        metrics.storage.watch_redis(bus.health)
        caplog.set_level(logging.INFO)
        refusals = await RedisMonitor(bus).check()
        assert refusals[0].cause is cause, refusals
        await RedisMonitor(bus).check()  # it is said once
        assert metrics.registry.get_sample_value("syncbeat_redis_up") == 0
        assert (metrics.registry.get_sample_value("syncbeat_redis_errors_total", {"cause": cause}) or 0) >= 2
    (said,) = [record for record in caplog.records if record.name.endswith("redis.outage_log")]
    assert vars(said)["cause"] == cause.value
    told = " ".join([*sentences, str(vars(said))])
    assert PASSWORD not in told
    assert "a-wrong-one" not in told


def granted(valkey: Valkey, rule: str) -> str:
    """The address of a user who has these rights."""
    with valkey.client() as client:
        client.execute_command("ACL SETUSER", "syncbeat", "reset", "on", f">{PASSWORD}", *rule.split())
    return f"redis://syncbeat:{PASSWORD}@127.0.0.1:{valkey.port}/1"


async def test_redis_acl_rule_of_the_docs_is_sufficient_and_minimal(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as one:
        assert await describe_refusals(parse_redis_url(granted(one, ACL_RULE)), "check") == []
        # ROLE tells a Sentinel from a server, and PING a quiet subscription from one that is lost.
        spared = {"+role", "+ping"}
        for word in ACL_RULE.split():
            refused = await describe_refusals(parse_redis_url(granted(one, without(word))), "check")
            assert bool(refused) == (word not in spared), (word, refused)
            assert not refused or ACL_RULE in refused[0]


def test_redis_acl_rule_is_in_the_operations_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "operations.md"
    assert ACL_RULE in page.read_text()


async def test_redis_password_without_need_is_no_fault(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as one:
        assert await describe_refusals(parse_redis_url(f"redis://:{PASSWORD}@127.0.0.1:{one.port}"), "check") == []


@asynccontextmanager
async def tls_address(folder: Path, authority: Authority, *names: str) -> AsyncIterator[int]:
    certificate, key = authority.sign(*names).write(folder, "server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with running_valkey(folder) as one:
        async with moving_address(one, context) as address:
            yield address.port


async def test_redis_tls_mismatch_and_untrusted_certificate_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, stranger = Authority("ours"), Authority("another")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "other.pem").write_bytes(stranger.certificate)
    async with tls_address(tmp_path, authority, "127.0.0.1") as port:
        good = f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/ca.pem"
        assert await describe_refusals(parse_redis_url(good), "check") == []
        for url, cause, named in (
            (f"redis://127.0.0.1:{port}", Cause.TLS_WANTED, "rediss://"),
            (f"rediss://127.0.0.1:{port}", Cause.TLS_UNTRUSTED, "ssl_ca_certs"),
            (f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/other.pem", Cause.TLS_UNTRUSTED, "ssl_ca_certs"),
            (f"rediss://localhost:{port}?ssl_ca_certs={tmp_path}/ca.pem", Cause.TLS_UNTRUSTED, "another name"),
            (f"redis+sentinel://127.0.0.1:{port}/heart", Cause.TLS_WANTED, "rediss+sentinel://"),
        ):
            caplog.clear()
            await named_everywhere(url, cause, named, caplog)


async def test_redis_sentinel_password_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        running_valkey(tmp_path, "--requirepass", PASSWORD) as primary,
        running_sentinel(tmp_path, primary, f"sentinel auth-pass heart {PASSWORD}", "requirepass of-sentinels") as one,
    ):
        url = sentinel_url(one).replace("://", f"://:{PASSWORD}@")
        await named_everywhere(url, Cause.NO_PRIMARY, "?sentinel_password=", caplog)
        with_it = f"{url}?sentinel_password=of-sentinels"

        async def works() -> bool:
            return await describe_refusals(parse_redis_url(with_it), "check") == []

        await wait_until(works)  # the sentinel has just begun to look


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis+sentinel://h:26379", "<name of the primary>"),
        ("redis+sentinel://h:26379/heart/none", "<name of the primary>"),
        ("redis+sentinel:///heart", "host:port"),
        ("redis+sentinel://a,,b/heart", "host:port"),
        ("redis://h?foo=1", "parameter"),
        ("redis://h?socket_timeout=soon", "want redis://"),
        ("redis://[::1", "want redis://"),
        ("redis+sentinel://" + ",".join("abcdefghijklmnopq") + "/heart", "at most 16"),
    ],
)
def test_redis_url_unusable_is_reported_without_its_password(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match="SYNCBEAT_REDIS_URL") as caught:
        parse_redis_url(url.replace("://", f"://user:{PASSWORD}@"))
    assert named in caught.value.message
    assert PASSWORD not in caught.value.message


def test_redis_sentinel_url_has_ipv6_hosts_database_and_two_logins() -> None:
    address = parse_redis_url("rediss+sentinel://u:p%40@[::1]:1,b/a%20b/3?sentinel_password=q&ssl_cert_reqs=none")
    assert address.sentinels == (("::1", 1), ("b", 26_379))
    assert (address.name, address.is_tls, address.kwargs["db"]) == ("a b", True, 3)
    assert (address.kwargs["username"], address.kwargs["password"]) == ("u", "p@")
    assert address.sentinel_kwargs["password"] == "q"
    assert "p@" not in repr(address)


async def test_redis_outage_is_logged_at_start_change_and_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def told() -> list[str]:
        records = [vars(one) for one in caplog.records if one.name.endswith("redis.outage_log")]
        return [one.get("cause") or one["ended"] for one in records]

    with running_valkey(tmp_path) as one:
        async with open_redis(one.url, SystemClock(), "ours") as bus:
            watch = RedisMonitor(bus, every_s=0.05, again_s=0.05)
            with one.client() as client:
                client.config_set("maxmemory", "1")
            await watch.start()
            assert told() == ["full"]
            running = asyncio.ensure_future(watch.run())
            with one.client() as client:
                client.config_set("maxmemory", "0")
                client.config_set("min-replicas-to-write", "1")
            await wait_until(lambda: told() == ["full", "few_replicas"])
            with one.client() as client:
                client.config_set("min-replicas-to-write", "0")
            await wait_until(lambda: bus.health.is_up)
            assert told() == ["full", "few_replicas", "few_replicas"]
            running.cancel()


async def test_redis_cluster_is_refused_at_start(tmp_path: Path) -> None:
    with running_valkey(tmp_path, "--cluster-enabled", "yes") as one:
        async with open_redis(one.url, SystemClock(), "ours") as bus:
            with pytest.raises(ConfigurationError, match=r"Redis Cluster.*redis\+sentinel://"):
                await RedisMonitor(bus).start()
