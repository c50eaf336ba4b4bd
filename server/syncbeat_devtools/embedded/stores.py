"""Runs both servers for a block, in a temporary directory or in one that keeps their data."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from syncbeat_devtools.embedded import postgres, valkey
from syncbeat_devtools.embedded.binaries import Binaries, find_binaries, readable_copy, world_readable
from syncbeat_devtools.embedded.process_tree import Account
from syncbeat_devtools.embedded.server_process import Server
from syncbeat_server.errors import EmbeddedUnavailable

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

# A socket's path has at most 107 bytes (104 on macOS), of which ours needs 40 below this folder.
_MAX_TEMPORARY_FOLDER = 60
_CLEANUP_S = 15.0
_POLL_S = 0.5
_MIN_MEMORY_BYTES = 1 << 30

# Waits for a line, or for the end of its input, which means that we died: then it ends the servers that still run (on
# Linux they have ended by then). In both cases it removes our sockets and temporary files. Arguments: the two folders,
# then the pid files.
_CLEANUP_SCRIPT = """
sockets=$1; data=$2; shift 2
if ! read -r _; then
  for file in "$@"; do
    if [ -f "$file" ]; then kill -s INT "$(head -n 1 "$file")"; fi
  done
fi
tries=0
until rm -rf "$sockets" "$data" || [ "$tries" -ge 100 ]; do tries=$((tries + 1)); sleep 0.1; done
"""


@dataclass(frozen=True)
class EmbeddedStores:
    """Running PostgreSQL and Valkey servers. The URLs are valid in every process of this user while they run.

    Starting, stopping and killing block for some milliseconds; starting must happen in the main thread.
    """

    owner_url: str
    """The login that owns the database and migrates it; neither superuser nor exempt from row-level security."""
    app_url: str
    """The login of the service."""
    admin_url: str
    """The superuser, for tests."""
    redis_url: str
    folder: Path
    """A folder for the callers' files, removed with the stores even if this process is killed."""
    _postgres: Server = field(repr=False)
    _redis: Server = field(repr=False)

    @property
    def pids(self) -> tuple[int | None, int | None]:
        """Return the process ids of PostgreSQL and Valkey; None for one that does not run."""
        return self._postgres.pid, self._redis.pid

    def start_postgres(self) -> None:
        """Start PostgreSQL again and wait until it answers. Raises EmbeddedUnavailable if it does not."""
        self._postgres.start()

    def stop_postgres(self) -> None:
        """Shut PostgreSQL down and disconnect its clients."""
        self._postgres.stop()

    def kill_postgres(self) -> None:
        """End PostgreSQL by SIGKILL; `start_postgres` recovers it."""
        self._postgres.kill()

    def start_redis(self) -> None:
        """Start Valkey again and wait until it answers. Raises EmbeddedUnavailable if it does not."""
        self._redis.start()

    def stop_redis(self) -> None:
        """Shut Valkey down."""
        self._redis.stop()

    def kill_redis(self) -> None:
        """End Valkey by SIGKILL."""
        self._redis.kill()

    async def supervise(self, work: Coroutine[Any, Any, _Answer], end: Callable[[], object] | None = None) -> _Answer:
        """Run `work` and return its result, unless a server exits by itself.

        In that case `end` is called to end the work gracefully; without `end` the work is cancelled.

        Raises:
            EmbeddedUnavailable: a server ended by itself; the message names it.
        """
        task = asyncio.ensure_future(work)
        try:
            ended = self._unexpected_exit()
            while ended is None and not task.done():
                await asyncio.wait((task,), timeout=_POLL_S)
                ended = self._unexpected_exit()
            if ended is None:
                return await task
            _log.error("%s: what needs it ends now", ended)
            (end or task.cancel)()
            await asyncio.wait((task,))
            raise EmbeddedUnavailable(ended) from (None if task.cancelled() else task.exception())
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait((task,))
            raise

    def _unexpected_exit(self) -> str | None:
        for server in (self._postgres, self._redis):
            status = server.unexpected_status
            if status is not None:
                cause = f"signal {-status}" if status < 0 else f"exit code {status}"
                return f"the embedded {server.program.name} ended by itself ({cause})"
        return None


@contextmanager
def running_stores(directory: Path | None = None) -> Iterator[EmbeddedStores]:
    """Run PostgreSQL and Valkey for the block, in `directory`, which keeps their data, or in a temporary one.

    They end with this process, however it ends (on Linux at once; on macOS a moment later). Call it in the main thread,
    before an event loop runs: it blocks for a second when it creates a new cluster.

    Raises:
        EmbeddedUnavailable: they cannot be started here, or another process uses `directory`; the message says how to
            fix it.
    """
    binaries = find_binaries()
    account = postgres.account_for_postgres()
    with ExitStack() as cleanup:
        if directory is not None:
            directory = directory.resolve()
            cleanup.enter_context(_locked(directory))
        runtime = _private_folder(_short_folder(account), account)
        data_folder = directory or _private_folder(_memory_folder() or runtime, account)
        cluster = postgres.Cluster(
            data=data_folder / "postgres",
            sockets=runtime / "pg",
            log=runtime / "postgres.log",
            account=account,
            durable=directory is not None,
        )
        pid_files = (cluster.data / "postmaster.pid", valkey.pid_file(data_folder / "valkey"))
        cleanup.enter_context(_remove_at_exit((runtime, data_folder if directory is None else runtime), pid_files))
        yield cleanup.enter_context(_running_servers(binaries, cluster, data_folder, runtime))


@contextmanager
def _running_servers(
    binaries: Binaries, cluster: postgres.Cluster, data_folder: Path, runtime: Path
) -> Iterator[EmbeddedStores]:
    (data_folder / "valkey").mkdir(mode=0o700, parents=True, exist_ok=True)
    files = runtime / "files"
    files.mkdir(mode=0o700)
    socket_path = runtime / "redis.sock"
    redis_server = Server(
        valkey.program(
            binaries,
            folder=data_folder / "valkey",
            socket_path=socket_path,
            log=runtime / "valkey.log",
            durable=cluster.durable,
        )
    )
    with ExitStack() as cleanup:
        cleanup.callback(redis_server.stop)
        redis_server.spawn()  # it starts while initdb runs
        if cluster.account.uid >= 0 and not _world_executable(binaries):
            binaries = readable_copy(binaries, runtime / "programs")
        postgres.create_cluster(cluster, binaries)
        postgres_server = Server(postgres.program(cluster, binaries))
        cleanup.callback(postgres_server.stop)
        postgres_server.start()
        redis_server.wait_ready()
        yield EmbeddedStores(
            owner_url=cluster.url(postgres.OWNER),
            app_url=cluster.url(postgres.APP),
            admin_url=cluster.url(postgres.SUPERUSER),
            redis_url=f"unix://{socket_path}",
            folder=files,
            _postgres=postgres_server,
            _redis=redis_server,
        )


def _world_executable(binaries: Binaries) -> bool:
    folder = binaries.postgres_folder
    return all(world_readable(path) for path in (folder / "bin" / "postgres", folder / "share" / "postgres.bki"))


def _short_folder(account: Account) -> Path:
    for folder in (Path(tempfile.gettempdir()).resolve(), Path("/tmp")):  # noqa: S108  # ours alone below
        short = len(os.fsencode(folder)) <= _MAX_TEMPORARY_FOLDER
        if short and (account.uid < 0 or world_readable(folder)):
            return folder
    raise EmbeddedUnavailable("no temporary folder is short and open enough for sockets: set TMPDIR to one")


def _private_folder(parent: Path, account: Account) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="syncbeat-", dir=parent))
    if account.uid >= 0:
        folder.chmod(0o711)  # the server's user may pass through to its own folders, but not list this one
    return folder


def _memory_folder() -> Path | None:
    # A new database consists of 300 files, each of which takes about a millisecond to create on disk. Containers often
    # have too little shared memory for PostgreSQL.
    memory = Path("/dev/shm")  # noqa: S108  # ours alone below
    if not (memory.is_dir() and os.access(memory, os.W_OK | os.X_OK)):
        return None
    room = os.statvfs(memory)
    return memory if room.f_bavail * room.f_frsize >= _MIN_MEMORY_BYTES else None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise EmbeddedUnavailable(f"cannot write to {directory}: use another directory") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedUnavailable(
                f"another process runs its stores in {directory}: use another directory, or end that process"
            ) from None
        yield


@contextmanager
def _remove_at_exit(folders: tuple[Path, Path], pid_files: tuple[Path, ...]) -> Iterator[None]:
    """Remove the folders after the block, or when this process dies inside it."""
    cleanup = subprocess.Popen(
        ["/bin/sh", "-c", _CLEANUP_SCRIPT, "sh", *map(str, folders), *map(str, pid_files)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        try:
            cleanup.communicate(b"done\n", timeout=_CLEANUP_S)
        except subprocess.TimeoutExpired:
            cleanup.kill()
            cleanup.wait()
