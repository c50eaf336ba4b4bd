"""Another revision, built from a real clone and measured by real processes, whatever becomes of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import against
from bench.against import Plan
from bench.processes import ROOT
from bench.revision import UnusableRevision, build_revision, describe_working_tree, resolve_commit
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.process

# A bench that takes no time: what a revision prints is what its own code says.
_BENCH = """
import sys
FIGURES = {figures}
if __name__ == "__main__":
    if {value} is None:
        sys.exit("this one breaks")
    print('{{"value": %s, "better": "more"}}' % {value})
"""
_SETUP = f"mkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python\n"
_HANGS = """
import os, subprocess
with subprocess.Popen(["sleep", "300"]) as child:
    with open("child.part", "w") as file:
        file.write(str(child.pid))
    os.rename("child.part", "child")
    try:
        child.wait()
    finally:
        child.kill()
        open("ended", "w").close()
"""
_MEASURE = """
import sys
from pathlib import Path
from bench.against import measure
from bench.revision import Side
measure(Side(Path(sys.argv[1])), "figure")
"""
_RUN = """
import sys
from pathlib import Path
from bench.against import Plan, run
sys.exit(run(["figure"], "HEAD", Plan(1), Path(sys.argv[1])))
"""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.com", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _commit(root: Path, value: float | None, figures: list[str], setup: str = _SETUP) -> str:
    (root / "bench").mkdir(exist_ok=True)
    (root / "tools").mkdir(exist_ok=True)
    (root / "bench" / "__main__.py").write_text(_BENCH.format(value=value, figures=figures))
    (root / "tools" / "setup.sh").write_text(setup)
    (root / ".gitignore").write_text(".venv/\n__pycache__/\n")
    _git(root, "add", ".")
    _git(root, "commit", "--quiet", "--message", "step")
    return _git(root, "rev-parse", "HEAD")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository whose working tree has its virtual environment."""
    _git(tmp_path, "init", "--quiet")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


@pytest.mark.parametrize(
    ("before", "now", "code", "verdict"),
    [(100, 101, 0, "not worse by 3 %"), (100, 90, 1, "worse"), (100, None, 2, "failed"), (None, 100, 2, "failed")],
)
def test_revision_is_measured_by_its_own_bench_code(
    clone: Path, capsys: pytest.CaptureFixture[str], before: float | None, now: float | None, code: int, verdict: str
) -> None:
    old = _commit(clone, before, ["figure"])
    new = _commit(clone, now, ["figure"])

    assert against.run(["figure"], "HEAD~1", Plan(seed=1), clone) == code

    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["verdict"], told["seed"]) == ("figure", verdict, 1)
    assert (told["here"], told["against"]) == (new, old)
    if now and before:
        assert told["rounds"] == 10
        assert (told["value"], told["value_before"]) == (now, before)
        assert told["change_pct"] == pytest.approx(now - before)
        assert told["interval_pct"] == pytest.approx([now - before] * 2)
    else:
        assert "this one breaks" in told["why"]


def test_revision_without_a_figure_reports_it_absent(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = _commit(clone, 1, ["first"])
    _commit(clone, 1, ["first", "second"])

    assert against.run(["second", "first"], old, Plan(seed=1), clone) == 2

    second, first = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (second["name"], second["verdict"], second["rounds"]) == ("second", "absent", 0)
    assert old in second["why"]
    assert first["verdict"] == "not worse by 3 %"


@pytest.mark.parametrize("revision", ["no-such-branch", "0" * 40, "HEAD:bench", "--help", ""])
def test_revision_unknown_is_refused_in_one_sentence(
    clone: Path, capsys: pytest.CaptureFixture[str], revision: str
) -> None:
    _commit(clone, 1, ["figure"])
    assert against.run(["figure"], revision, Plan(seed=1), clone) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "is no commit of this clone" in told.err


@pytest.mark.parametrize(
    ("setup", "expected"), [("echo no such package >&2; exit 3\n", "no such package"), ("exit 1\n", "it says nothing")]
)
def test_revision_that_cannot_be_built_says_why_and_is_tried_again(clone: Path, setup: str, expected: str) -> None:
    commit = _commit(clone, 1, ["figure"], setup)
    with pytest.raises(UnusableRevision, match=expected):
        build_revision(commit, clone)
    (clone / ".venv" / "against" / commit / "tools" / "setup.sh").write_text(_SETUP)
    assert build_revision(commit, clone).python.exists()


async def test_revision_build_interrupted_ends_its_processes(clone: Path) -> None:
    commit = _commit(clone, 1, ["figure"], "sleep 300 &\necho $! >part\nmv part child\nsleep 300\n")
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _RUN, str(clone)), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    child = clone / ".venv" / "against" / commit / "child"
    await wait_until(child.exists)
    started = psutil.Process(int(child.read_text()))
    run.send_signal(signal.SIGTERM)
    assert await run.wait() == 130
    # Killed, if perhaps not yet reaped by who has taken it over.
    await wait_until(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE)


def test_revision_without_a_bench_is_refused(clone: Path) -> None:
    (clone / "README.md").write_text("nothing else")
    _git(clone, "add", "README.md")
    _git(clone, "commit", "--quiet", "--message", "first")
    with pytest.raises(UnusableRevision, match="it has no bench"):
        build_revision(resolve_commit("HEAD", clone), clone)
    assert [path.name for path in (clone / ".venv" / "against").iterdir()] == ["lock"]


def test_revision_builds_are_reused_and_the_three_newest_kept(clone: Path) -> None:
    commits = [_commit(clone, number, ["figure"]) for number in range(4)]
    shelf = clone / ".venv" / "against"
    (shelf / "part-of-a-killed-run").mkdir(parents=True)
    for number, commit in enumerate(commits[:3]):
        os.utime(build_revision(commit, clone).root, (number, number))
    (shelf / commits[0] / "mark").touch()

    build_revision(commits[0], clone)
    build_revision(commits[3], clone)

    assert {path.name for path in shelf.iterdir()} == {"lock", commits[0], commits[2], commits[3]}
    assert (shelf / commits[0] / "mark").exists()


def test_working_tree_that_differs_from_its_commit_is_marked(clone: Path) -> None:
    commit = _commit(clone, 1, ["figure"])
    assert describe_working_tree(clone) == commit
    (clone / "bench" / "__main__.py").write_text("changed")
    assert describe_working_tree(clone) == f"{commit}+"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_bench_interrupted_or_killed_ends_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__main__.py").write_text(_HANGS)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    child = tmp_path / "child"
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _MEASURE, str(tmp_path)),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    await wait_until(child.exists)
    started = psutil.Process(int(child.read_text()))
    run.send_signal(number)
    assert await run.wait()
    await wait_until((tmp_path / "ended").exists)
    await wait_until(lambda: not started.is_running())
