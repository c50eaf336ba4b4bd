"""Checks house rules that no linter knows: sizes, names, no sleeps or mocks in tests, no paths of a machine.

There is no list of exceptions: a rule that needs one is the wrong rule. Generated code is skipped.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GENERATED = Path("clients/python/syncbeat/v1")
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "build", "dist", "htmlcov"}
HIDDEN_FOLDERS_READ = {".ci", ".github"}

MODULE_LINES = 400
FUNCTION_LINES = 70

BANNED_WORDS = {
    "base", "bases", "common", "commons", "data", "helper", "helpers", "info", "manager", "managers",
    "misc", "processor", "processors", "util", "utils",
}  # fmt: skip
NAMED_SUFFIXES = {".py", ".sql", ".sh", ".proto", ".toml", ".yaml", ".yml", ".ts"}

# Assembled here, so that this file does not contain the text it looks for.
REGISTRY_HOSTS = re.compile(
    "|".join(
        r"\b" + re.escape(".".join(parts))
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("npmjs", "org"),
            ("npmjs", "com"),
            ("yarnpkg", "com"),
            ("crates", "io"),
        )
    )
)
MACHINE_PATHS = re.compile(r"(?<![\w.$}/-])/(?:home|root|work|Users)/[\w.]")
LEFT_UNDONE = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
CODE_SUFFIXES = {".py", ".sql", ".sh", ".proto", ".yaml", ".yml", ".toml", ".ts"}

SLEEPING_MODULES = {"anyio", "asyncio", "gevent", "time", "trio"}
MOCK_MODULES = {"mock", "pytest_mock", "unittest.mock"}


class Finding(NamedTuple):
    """A broken rule: the file, the line (1 if it concerns the whole file) and the message."""

    path: Path
    line: int
    text: str


def main() -> int:
    """Print every finding as `path:line: text`. Returns 1 if there is one."""
    findings = [finding for path in files(ROOT) for finding in check_file(path)]
    for finding in sorted(findings):
        print(f"{finding.path}:{finding.line}: {finding.text}")
    return 1 if findings else 0


def files(root: Path) -> Iterator[Path]:
    """Yield every file of ours relative to `root`, except generated, hidden, built and installed ones."""
    for folder, subfolders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        subfolders[:] = [
            name
            for name in subfolders
            if name not in SKIPPED_FOLDERS
            and (not name.startswith(".") or name in HIDDEN_FOLDERS_READ)
            and not name.endswith(".egg-info")
            and here / name != GENERATED
        ]
        for name in names:
            # In a worktree .git is a file, which names the folder of the clone.
            if name != ".git" and not name.endswith((".pyc", ".env")):
                yield here / name


def check_file(path: Path) -> Iterator[Finding]:
    """Apply every rule for this file."""
    yield from check_path_words(path)
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):  # an image of the protos; a dangling link
        return
    yield from check_text(path, text)
    if path.suffix == ".py":
        yield from check_python(path, text)


def check_path_words(path: Path) -> Iterator[Finding]:
    """Refuse file and folder names with words that say nothing about the contents."""
    if path.suffix not in NAMED_SUFFIXES:
        return
    for part in (*path.parts[:-1], path.stem):
        for word in sorted(words(part) & BANNED_WORDS):
            yield Finding(path, 1, f"'{word}' in the name of a file says nothing")


def check_text(path: Path, text: str) -> Iterator[Finding]:
    """Apply the rules for text in any language."""
    for number, line in enumerate(text.splitlines(), start=1):
        if REGISTRY_HOSTS.search(line):
            yield Finding(path, number, "names the host of a package registry")
        if path.parts[0] == "requirements" and "://" in line:
            yield Finding(path, number, "a pin names no address")
        if MACHINE_PATHS.search(line):
            yield Finding(path, number, "holds a path of somebody's machine")
        if path.suffix in CODE_SUFFIXES and LEFT_UNDONE.search(line):
            yield Finding(path, number, "is left undone: do it, or open an issue")


def check_python(path: Path, text: str) -> Iterator[Finding]:
    """Check sizes and names; in tests also sleeps and mocks."""
    in_tests = path.parts[0] == "tests"
    lines = text.count("\n")
    if lines > MODULE_LINES:
        yield Finding(path, 1, f"has {lines} lines; a module has at most {MODULE_LINES}")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield Finding(path, error.lineno or 1, f"is no Python: {error.msg}")
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield Finding(path, node.lineno, f"{node.name} has {length} lines, at most {FUNCTION_LINES}")
        elif isinstance(node, ast.ClassDef):
            for word in sorted(words(node.name) & BANNED_WORDS):
                yield Finding(path, node.lineno, f"'{word}' in the name of class {node.name} says nothing")
        elif in_tests:
            yield from check_test_node(path, node)


def check_test_node(path: Path, node: ast.AST) -> Iterator[Finding]:
    """Refuse sleeps and mocks: a test waits for its condition, and uses the real thing or a fake written for it."""
    if isinstance(node, ast.Call) and is_sleep(node):
        yield Finding(path, node.lineno, "sleeps: wait for an event or move the fake clock")
    elif isinstance(node, ast.Import) and any(alias.name in MOCK_MODULES for alias in node.names):
        yield Finding(path, node.lineno, "uses a mock")
    elif isinstance(node, ast.ImportFrom):
        names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if names & MOCK_MODULES:
            yield Finding(path, node.lineno, "uses a mock")


def is_sleep(call: ast.Call) -> bool:
    """Tell if a call sleeps, in the event loop or the system, for anything but a literal 0."""
    function = call.func
    if isinstance(function, ast.Attribute):
        named = (
            function.attr == "sleep" and isinstance(function.value, ast.Name) and function.value.id in SLEEPING_MODULES
        )
    else:
        named = isinstance(function, ast.Name) and function.id == "sleep"
    argument = call.args[0] if call.args else None
    return named and not (isinstance(argument, ast.Constant) and argument.value == 0)


def words(name: str) -> set[str]:
    """Return the words of a snake_case, kebab-case or CamelCase name, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}


if __name__ == "__main__":
    sys.exit(main())
