"""Scans the working tree and the history of a repository for secrets with Kingfisher; exits 1 if there is one.

It scans everything that git does not ignore, committed or not, and each commit that HEAD descends from, because
committed text stays readable. The tree is scanned as a commit on top of HEAD in a temporary repository that borrows the
objects of the real one, which is not modified. Nothing leaves the machine, and no secret is printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TOOLS = Path(__file__).resolve().parent
KNOWN = TOOLS / "known_secrets.toml"
RULES = TOOLS / "secret_rules.yml"
TIMEOUT_S = 300.0
_NOTHING, _FOUND = 0, 200  # exit statuses of Kingfisher
_IDENTITY = {f"GIT_{role}_{part}": "scan" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}


class ScanError(Exception):
    """The scan failed."""


class Known(NamedTuple):
    """The identity of a finding: the rule, the path and the SHA-256 of the text."""

    rule: str
    path: str
    sha256: str


class Finding(NamedTuple):
    """A secret and its place."""

    known: Known
    line: int
    commit: str


def main(root: Path, known_file: Path) -> int:
    """Print each finding that is not known. Returns 1 if there is any."""
    known = known_secrets(known_file)
    with tempfile.TemporaryDirectory(prefix="syncbeat-scan-") as folder:
        repository = Path(folder) / "tree.git"
        tip = commit_tree(root, repository)
        found = sorted(set(findings(repository, tip)))
    new = [finding for finding in found if finding.known not in known]
    for (rule, path, sha256), line, commit in new:
        place = "the working tree" if commit == tip else f"commit {commit[:12]}"
        print(f"{path}:{line}: {rule}, in {place} (sha256 {sha256})")
    if new:
        print("secrets: revoke what is real, it counts as published; then take it out of the tree or the history")
    return 1 if new else 0


def known_secrets(file: Path) -> set[Known]:
    """Read the findings that are known not to be secrets."""
    entries = tomllib.loads(file.read_text(encoding="utf-8")).get("known", [])
    return {Known(entry["rule"], entry["path"], entry["sha256"]) for entry in entries if entry["reason"]}


def commit_tree(root: Path, repository: Path) -> str:
    """Commit the working tree of `root` on top of its HEAD in a new repository. Returns the commit's id."""
    run(["git", "init", "--quiet", "--bare", str(repository)], root)
    if not (root / ".git").exists():  # an unpacked archive: no history, and all of it counts
        head = ""
    else:
        (repository / "objects/info/alternates").write_text(git_path(root, "objects") + "\n", encoding="utf-8")
        if Path(shallow := git_path(root, "shallow")).exists():
            print("secrets: this clone is shallow, so the history before it is not scanned")
            shutil.copy(shallow, repository / "shallow")
        head = run(["git", "rev-parse", "--verify", "--quiet", "HEAD"], root, may_fail=True)
    git = ["git", f"--git-dir={repository}", f"--work-tree={root}"]
    if head:
        run([*git, "read-tree", head], root)
    run([*git, "add", "--all", "."], root)
    tree = run([*git, "write-tree"], root)
    tip = run([*git, "commit-tree", tree, "-m", "working tree", *(["-p", head] if head else [])], root)
    run([*git, "update-ref", "refs/heads/scan", tip], root)
    return tip


def git_path(root: Path, name: str) -> str:
    """Return the path where git keeps something of `root`, which may be a worktree."""
    return run(["git", "rev-parse", "--path-format=absolute", "--git-path", name], root)


def findings(repository: Path, tip: str) -> Iterator[Finding]:
    """Scan `tip` and all its ancestors."""
    program = Path(sys.executable).with_name("kingfisher")
    options = ["--no-validate", "--no-update-check", "--quiet", "--no-dedup", "--no-ignore", "--format", "jsonl"]
    where = ["--branch", tip, "--rules-path", str(RULES)]
    done = subprocess.run(
        [str(program), "scan", str(repository), *where, *options],
        cwd=repository,
        # Compiling the rules takes longer than the scan.
        env={**os.environ, "KF_RULE_CACHE_DIR": str(Path(sys.prefix) / ".cache" / "kingfisher")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode not in (_NOTHING, _FOUND):
        raise ScanError(f"Kingfisher exited {done.returncode}: {done.stderr.decode(errors='replace')[-2_000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line]
    summaries = [line["audit"]["summary"] for line in lines if "audit" in line]
    if not summaries or any(one["scan_succeeded"] != 1 for one in summaries):
        raise ScanError(f"Kingfisher did not scan all of it: {summaries}")
    for line in lines:
        if "rule" in line:
            yield finding(line["rule"]["id"], line["finding"])


def finding(rule: str, told: dict[str, object]) -> Finding:
    """Convert one of Kingfisher's findings."""
    path, text, line, metadata = (told[name] for name in ("path", "snippet", "line", "git_metadata"))
    if not isinstance(line, int) or not isinstance(metadata, dict):
        raise ScanError("Kingfisher tells no commit or line of a finding")
    sha256 = hashlib.sha256(str(text).encode()).hexdigest()
    return Finding(Known(rule, str(path), sha256), line, str(metadata["commit"]["id"]))


def run(command: Sequence[str], root: Path, *, may_fail: bool = False) -> str:
    """Run git. Returns its output.

    Raises:
        ScanError: it failed.
    """
    # git sets these for its hooks, and they would point to another repository.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")} | _IDENTITY
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    if done.returncode and not may_fail:
        raise ScanError(f"{' '.join(command[:2])} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode().strip()


if __name__ == "__main__":
    arguments = [Path(text).resolve() for text in sys.argv[1:]] or [TOOLS.parent]
    try:
        sys.exit(main(arguments[0], arguments[1] if len(arguments) > 1 else KNOWN))
    except ScanError as error:
        sys.exit(f"secrets: {error}")
