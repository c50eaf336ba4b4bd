"""Runs the Dockerfile's steps without a container engine, in an empty folder and environment.

Each stage starts from an empty folder, which stands for its file system, and a new virtual environment, which
stands for the `python:` image. COPY takes only files that .dockerignore lets through; RUN runs with nothing but the
stage's ENV; absolute paths are mapped into the folder. At the end the last stage's entry point must answer
`--version`, from its own files, without a package installer in the image.

It does not show that the base image's operating system is right, nor that the user may read the copied files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from syncbeat_server import __version__

CONTEXT = Path(__file__).resolve().parent.parent
ROOTED = re.compile(r"(?<![\w./-])/(?=(?:opt|src)\b)")  # absolute paths that our Dockerfile may use
PASSED_THROUGH = ("SSL_CERT_FILE", "PIP_CERT", "PIP_FIND_LINKS", "PIP_DEFAULT_TIMEOUT", "HTTPS_PROXY", "NO_PROXY")
OLDEST_UID = 10_000


class StepFailed(Exception):
    """A step failed."""


@dataclass(frozen=True)
class Instruction:
    """An instruction with its continuation lines joined: `COPY`, `server server`."""

    line: int
    name: str
    argument: str


@dataclass
class Stage:
    """A stage being built: its folder, and the values its instructions have set so far."""

    folder: Path
    interpreter: Path
    workdir: str = "/"
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Build every stage and start the last one. Returns 1, and prints the reason, if a step fails."""
    with tempfile.TemporaryDirectory(prefix="syncbeat-image-") as folder:
        try:
            last = build(parse((CONTEXT / "Dockerfile").read_text()), Path(folder))
            check(last)
        except StepFailed as failure:
            print(f"dockerfile_steps: {failure}", file=sys.stderr)
            return 1
        size_mb = sum(file.lstat().st_size for file in last.folder.rglob("*")) / 1e6
    print(f"dockerfile_steps: every step ran, the entry point answers; {size_mb:.0f} MB")
    return 0


def parse(text: str) -> list[Instruction]:
    """Return the instructions in order, without comments."""
    instructions: list[Instruction] = []
    pending, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        first = first if pending else number
        pending += line.removesuffix("\\").strip() + " "
        if not line.endswith("\\"):
            name, _, argument = pending.strip().partition(" ")
            instructions.append(Instruction(first, name.upper(), argument.strip()))
            pending = ""
    return instructions


def build(instructions: list[Instruction], folder: Path) -> Stage:
    """Run the instructions. Returns the last stage.

    `root` always links to the current stage, so that installed paths stay valid.
    """
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for step in instructions:
        if step.name == "FROM":
            name = step.argument.partition(" AS ")[2] or str(len(stages))
            stage = stages[name] = new_stage(folder, name, step)
            (folder / "root").unlink(missing_ok=True)
            (folder / "root").symlink_to(stage.folder)
        elif stage is None:
            raise StepFailed(f"line {step.line}: {step.name} before FROM")
        elif step.name == "RUN":
            run(stage, folder / "root", step)
        elif step.name == "COPY":
            copy(stage, stages, step)
        elif step.name == "ENV":
            stage.environment |= dict(re.findall(r"(\w+)=(\S+)", step.argument))
        elif step.name == "WORKDIR":
            stage.workdir = step.argument
            path_in_stage(stage, step.argument).mkdir(parents=True, exist_ok=True)
        else:
            stage.settings[step.name] = step.argument
    if stage is None:
        raise StepFailed("no FROM")
    return stage


def new_stage(folder: Path, name: str, step: Instruction) -> Stage:
    """Create a stage with an empty folder, and an empty environment in place of the base image's Python."""
    if not re.match(r"python:3\.\d+[\w.-]*( |$)", step.argument):
        raise StepFailed(f"line {step.line}: only a tagged python image can be stood in for")
    print(f"stage {name}: {step.argument.partition(' ')[0]}")
    venv.create(folder / f"{name}-python", with_pip=True, symlinks=True)
    (folder / name).mkdir()
    return Stage(folder / name, folder / f"{name}-python" / "bin")


def path_in_stage(stage: Stage, path: str) -> Path:
    """Return the path on this machine of a path in the image."""
    absolute = path if path.startswith("/") else f"{stage.workdir}/{path}"
    return stage.folder / absolute.lstrip("/")


def stage_environment(stage: Stage, root: Path) -> dict[str, str]:
    """Return the stage's ENV, and the variables needed to reach the package index from this machine."""
    base = f"{stage.interpreter}:/usr/local/bin:/usr/bin:/bin"
    own = {name: ROOTED.sub(f"{root}/", value) for name, value in stage.environment.items()}
    own["PATH"] = own.get("PATH", base).replace("$PATH", base)
    own.setdefault("HOME", str(stage.interpreter.parent))
    return {name: value for name, value in host_environment().items() if name not in own} | own


def host_environment() -> dict[str, str]:
    """Return the variables of this machine that a build gets from its engine's configuration."""
    return {name: os.environ[name] for name in PASSED_THROUGH if name in os.environ}


def run(stage: Stage, root: Path, step: Instruction) -> None:
    """Execute RUN, with absolute paths mapped into the stage's folder."""
    command = ROOTED.sub(f"{root}/", step.argument)
    print(f"  RUN {step.argument}")
    done = subprocess.run(
        ["/bin/sh", "-euc", command], cwd=path_in_stage(stage, "."), env=stage_environment(stage, root), check=False
    )
    if done.returncode:
        raise StepFailed(f"line {step.line}: RUN answered {done.returncode}")


def copy(stage: Stage, stages: dict[str, Stage], step: Instruction) -> None:
    """Execute COPY from the context as .dockerignore leaves it, or from another stage (`--from`)."""
    *sources, target = step.argument.split()
    origin: Stage | None = None
    if sources[0].startswith("--from="):
        origin = stages[sources.pop(0).removeprefix("--from=")]
    print(f"  COPY {step.argument}")
    for source in sources:
        found = path_in_stage(origin, source) if origin else CONTEXT / source
        into = path_in_stage(stage, target)
        if origin is None and not in_context(source):
            raise StepFailed(f"line {step.line}: .dockerignore keeps {source} out")
        if not found.exists():
            raise StepFailed(f"line {step.line}: there is no {source} to copy")
        if found.is_dir():
            skipped = None if origin else shutil.ignore_patterns("__pycache__")
            shutil.copytree(found, into, symlinks=True, ignore=skipped, dirs_exist_ok=True)
        else:
            into = into / found.name if target.endswith("/") else into
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, into)


def in_context(source: str) -> bool:
    """Tell if .dockerignore lets this path through: the last matching line decides."""
    let_through = True
    for line in (CONTEXT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            kept, plain = pattern.startswith("!"), pattern.lstrip("!")
            if fnmatch(source, plain) or source.startswith(f"{plain}/"):
                let_through = kept
    return let_through


def check(stage: Stage) -> None:
    """Check the finished stage: rootless, exec form, started from its own files, no installer, our version."""
    uid = stage.settings.get("USER", "0").partition(":")[0]
    if not uid.isdigit() or int(uid) < OLDEST_UID:
        raise StepFailed(f"USER is {uid}; a number of at least {OLDEST_UID} is wanted")
    entry = [str(word) for word in json.loads(stage.settings["ENTRYPOINT"])]
    health = json.loads(stage.settings["HEALTHCHECK"].partition("CMD ")[2])
    root = stage.folder.parent / "root"
    where = "import syncbeat_server, syncbeat; print(syncbeat_server.__file__)"
    if output_of(stage, root, [*entry, "--version"]).strip() != __version__:
        raise StepFailed(f"the version of the entry point is not {__version__}")
    output_of(stage, root, [*health, "--help"])
    file = Path(output_of(stage, root, ["python", "-c", where]).strip())
    if not file.is_relative_to(root):
        raise StepFailed(f"the service was started from {file}, outside the image")
    if output_of(stage, root, ["python", "-c", "import importlib.util as u; print(u.find_spec('pip'))"]) != "None\n":
        raise StepFailed("pip is in the image")
    migrations = file.parent / "storage" / "migrations"
    if not list(migrations.glob("*.sql")):
        raise StepFailed("the SQL migrations are not in the image")


def output_of(stage: Stage, root: Path, command: list[str]) -> str:
    """Return the output of a command in the finished stage."""
    settings = stage_environment(stage, root)
    program = shutil.which(command[0], path=settings["PATH"])
    if program is None:
        raise StepFailed(f"{command[0]} is not on the image's PATH")
    done = subprocess.run(
        [program, *command[1:]],
        cwd=path_in_stage(stage, "."),
        env=settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise StepFailed(f"{' '.join(command)} answered {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
