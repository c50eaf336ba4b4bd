"""Builds another revision of this repository in a folder under .venv, with its own requirements."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.figure import report_progress
from bench.processes import ROOT, clean_environment, run_to_end

# Each takes about half a gigabyte, nearly all of it packages.
_KEPT = 3
_GIT_S = 60.0
_BUILD_S = 900.0
_LIST = "import json, bench.__main__ as bench; print(json.dumps(list(bench.FIGURES)))"


class UnusableRevision(Exception):
    """The revision cannot be measured; the message says why."""


@dataclass(frozen=True)
class Side:
    """A revision that can be run: its folder and its interpreter."""

    root: Path

    @property
    def python(self) -> Path:
        """Return the interpreter of its virtual environment, unresolved, because it finds its packages by the link."""
        return self.root / ".venv" / "bin" / "python"


def resolve_commit(revision: str, root: Path = ROOT) -> str:
    """Return the full hash of a commit.

    Raises:
        UnusableRevision: there is no git, or no such commit in this clone.
    """
    done = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        raise UnusableRevision(
            f"{revision} is no commit of this clone (git fetch --unshallow, where it holds only the newest)"
        )
    return done.stdout.decode().strip()


def describe_working_tree(root: Path = ROOT) -> str:
    """Return the current commit, with a + if files differ from it."""
    changed = _git(root, "status", "--porcelain").stdout.strip()
    return resolve_commit("HEAD", root) + ("+" if changed else "")


def build_revision(commit: str, root: Path = ROOT) -> Side:
    """Build the revision, or reuse an earlier build.

    Raises:
        UnusableRevision: it has no bench, or cannot be built.
    """
    shelf = root / ".venv" / "against"
    shelf.mkdir(parents=True, exist_ok=True)
    with _alone(shelf):
        for left in shelf.glob("part-*"):  # of a run that was killed
            shutil.rmtree(left)
        folder = shelf / commit
        if not folder.exists():
            _extract(commit, root, folder)
        os.utime(folder)
        for old in sorted(shelf.glob("[0-9a-f]*"), key=lambda one: one.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old)
        _set_up(commit, folder)
    return Side(folder)


def list_figures(side: Side) -> frozenset[str]:
    """Return the names of a revision's figures.

    Raises:
        UnusableRevision: its bench does not start.
    """
    done = subprocess.run(
        [side.python, "-c", _LIST],
        cwd=side.root,
        env=clean_environment(),
        capture_output=True,
        timeout=_GIT_S,
        check=False,
    )
    if done.returncode:
        raise UnusableRevision(f"the bench of {side.root.name} does not start: {_last_line(done.stderr)}")
    return frozenset(json.loads(done.stdout))


def _extract(commit: str, root: Path, folder: Path) -> None:
    part = Path(tempfile.mkdtemp(prefix="part-", dir=folder.parent))
    try:
        with (part / "tar").open("w+b") as packed:
            if _git(root, "archive", "--format=tar", f"--output={packed.name}", commit).returncode:
                raise UnusableRevision(f"{commit} cannot be read from this clone")
            with tarfile.open(packed.name) as archive:
                archive.extractall(part / "tree", filter="data")
        for needed in ("bench/__main__.py", "tools/setup.sh"):
            if not (part / "tree" / needed).exists():
                raise UnusableRevision(f"{commit} cannot be measured: it has no {needed}")
        (part / "tree").rename(folder)  # whole or not at all
    finally:
        shutil.rmtree(part)


def _set_up(commit: str, folder: Path) -> None:
    # Runs the revision's own script, which does nothing if it is set up, and resumes one that was killed.
    report_progress(f"against: set up {commit}")
    try:
        done = run_to_end(["sh", "tools/setup.sh"], folder, _BUILD_S)
    except subprocess.TimeoutExpired:
        raise UnusableRevision(f"{commit} cannot be built: not done after {_BUILD_S:.0f} s") from None
    if done.returncode:
        raise UnusableRevision(f"{commit} cannot be built: {_last_line(done.stderr)}")


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, timeout=_GIT_S, check=False)
    except FileNotFoundError:
        raise UnusableRevision("there is no git here to ask for another revision") from None


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


@contextmanager
def _alone(shelf: Path) -> Iterator[None]:
    with (shelf / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
