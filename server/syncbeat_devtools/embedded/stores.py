"""The two servers together: for a block, in a temporary directory or in one that is kept."""

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
from syncbeat_devtools.embedded.binaries import Binaries, find_binaries, reachable_by_all, readable_copy
from syncbeat_devtools.embedded.servers import Account, Server
from syncbeat_server.errors import EmbeddedUnavailable

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

# A socket's path has at most 107 bytes (104 on macOS), of which ours needs 40 below this folder.
_MAX_TEMPORARY_FOLDER = 60
_TIDY_S = 15.0
_LOOK_S = 0.5
_MIN_MEMORY_BYTES = 1 << 30

# Waits for a line, or for our death when none comes: then it ends whoever still runs (Linux has done so by
# itself). In both cases it removes our sockets and temporary files. Arguments: their two folders, the pid files.
_TIDY = """
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
    """Real PostgreSQL and Valkey of our own. The URLs are good in every process of this user while they run.

    Starting, stopping and killing block for some milliseconds; starting must happen in the main thread.
    """

    owner_url: str
    """The login that owns the database and migrates it; neither superuser nor above row-level security."""
    app_url: str
    """The login of the service."""
    admin_url: str
    """The superuser, for tests."""
    redis_url: str
    folder: Path
    """For files of those who use them; it goes when the stores go, even when this process is killed."""
    _postgres: Server = field(repr=False)
    _redis: Server = field(repr=False)

    @property
    def pids(self) -> tuple[int | None, int | None]:
        """The process ids of PostgreSQL and Valkey; None for one that does not run."""
        return self._postgres.pid, self._redis.pid

    def start_postgres(self) -> None:
        """Start PostgreSQL again and return when it answers. Raises EmbeddedUnavailable when it does not."""
        self._postgres.start()

    def stop_postgres(self) -> None:
        """Shut PostgreSQL down; its clients are cut off."""
        self._postgres.stop()

    def kill_postgres(self) -> None:
        """End PostgreSQL by SIGKILL; `start_postgres` recovers it."""
        self._postgres.kill()

    def start_redis(self) -> None:
        """Start Valkey again and return when it answers. Raises EmbeddedUnavailable when it does not."""
        self._redis.start()

    def stop_redis(self) -> None:
        """Shut Valkey down."""
        self._redis.stop()

    def kill_redis(self) -> None:
        """End Valkey by SIGKILL."""
        self._redis.kill()

    async def needed_by(self, work: Coroutine[Any, Any, _Answer], end: Callable[[], object] | None = None) -> _Answer:
        """What `work` comes to. When a server ends by itself, and not by a method of this class, `end` is called to
        end the work in order; without it the work is cancelled.

        Raises:
            EmbeddedUnavailable: a server ended by itself; the message names it.
        """
        task = asyncio.ensure_future(work)
        try:
            ended = self._ended()
            while ended is None and not task.done():
                await asyncio.wait((task,), timeout=_LOOK_S)
                ended = self._ended()
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

    def _ended(self) -> str | None:
        for server in (self._postgres, self._redis):
            status = server.ended_by_itself
            if status is not None:
                how = f"signal {-status}" if status < 0 else f"exit code {status}"
                return f"the embedded {server.program.name} ended by itself ({how})"
        return None


@contextmanager
def running_stores(directory: Path | None = None) -> Iterator[EmbeddedStores]:
    """PostgreSQL and Valkey for the block, in `directory`, which keeps their data, or in a temporary one.

    They end with this process, however that ends (on Linux; on macOS a moment later). Call it in the main thread,
    before an event loop runs: it blocks for a second when it makes a new cluster.

    Raises:
        EmbeddedUnavailable: they cannot be started here, or another process has `directory`; the message says
            what to do.
    """
    binaries = find_binaries()
    account = postgres.account_for_postgres()
    with ExitStack() as cleanup:
        if directory is not None:
            directory = directory.resolve()
            cleanup.enter_context(_locked(directory))
        runtime = _own_folder(_short_folder(account), account)
        kept = directory or _own_folder(_roomy_memory() or runtime, account)
        cluster = postgres.Cluster(
            data=kept / "postgres",
            sockets=runtime / "pg",
            log=runtime / "postgres.log",
            account=account,
            durable=directory is not None,
        )
        pid_files = (cluster.data / "postmaster.pid", valkey.pid_file(kept / "valkey"))
        cleanup.enter_context(_tidied((runtime, kept if directory is None else runtime), pid_files))
        yield cleanup.enter_context(_both(binaries, cluster, kept, runtime))


@contextmanager
def _both(binaries: Binaries, cluster: postgres.Cluster, kept: Path, runtime: Path) -> Iterator[EmbeddedStores]:
    (kept / "valkey").mkdir(mode=0o700, parents=True, exist_ok=True)
    files = runtime / "files"
    files.mkdir(mode=0o700)
    socket_path = runtime / "redis.sock"
    redis_server = Server(
        valkey.program(
            binaries,
            folder=kept / "valkey",
            socket_path=socket_path,
            log=runtime / "valkey.log",
            durable=cluster.durable,
        )
    )
    with ExitStack() as cleanup:
        cleanup.callback(redis_server.stop)
        redis_server.spawn()  # it starts while initdb works
        if cluster.account.uid >= 0 and not _runs_for_all(binaries):
            binaries = readable_copy(binaries, runtime / "programs")
        postgres.make_cluster(cluster, binaries)
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


def _runs_for_all(binaries: Binaries) -> bool:
    folder = binaries.postgres_folder
    return all(reachable_by_all(path) for path in (folder / "bin" / "postgres", folder / "share" / "postgres.bki"))


def _short_folder(account: Account) -> Path:
    for folder in (Path(tempfile.gettempdir()).resolve(), Path("/tmp")):  # noqa: S108  # ours alone below
        short = len(os.fsencode(folder)) <= _MAX_TEMPORARY_FOLDER
        if short and (account.uid < 0 or reachable_by_all(folder)):
            return folder
    raise EmbeddedUnavailable("no temporary folder is short and open enough for sockets: set TMPDIR to one")


def _own_folder(parent: Path, account: Account) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="syncbeat-", dir=parent))
    if account.uid >= 0:
        folder.chmod(0o711)  # another user's server passes through to its own folders, and lists nothing
    return folder


def _roomy_memory() -> Path | None:
    # A new database is 300 files, and making a file costs a disk's file system a millisecond. Containers often have
    # too little of this for PostgreSQL.
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
def _tidied(folders: tuple[Path, Path], pid_files: tuple[Path, ...]) -> Iterator[None]:
    """Remove the folders after the block, or when this process dies inside it."""
    tidy = subprocess.Popen(
        ["/bin/sh", "-c", _TIDY, "sh", *map(str, folders), *map(str, pid_files)],
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
            tidy.communicate(b"done\n", timeout=_TIDY_S)
        except subprocess.TimeoutExpired:
            tidy.kill()
            tidy.wait()
