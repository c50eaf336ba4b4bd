"""Checks house rules that no linter knows: sizes, names, docstrings, no sleeps or mocks in tests, no machine's paths.

There are no exceptions to list: a rule that needs one is the wrong rule. Generated code is not checked. With `--stats`
it prints the sizes of modules instead.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GENERATED = Path("clients/python/syncbeat/v1")
VENDORED_PROTOS = ("protos/buf", "protos/google")
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "build", "dist", "htmlcov"}
HIDDEN_FOLDERS_READ = {".ci", ".github"}

MODULE_LINES = 400
FUNCTION_LINES = 70
FOLDER_MODULES = 15
# Below these, no folder holds more modules than that; an `__init__.py` does not count.
FOLDERS_OF_MODULES = ("server",)

# Tests and measurements vary what a unit offers to vary, and replace nothing that is private.
PATCHING_FOLDERS = {"bench", "clients", "tests", "tools"}

# A docstring opens with a verb and its object, not with a question word.
QUESTION_WORDS = {
    "how",
    "if",
    "in",
    "what",
    "when",
    "where",
    "whether",
    "which",
    "who",
    "whom",
    "whose",
    "why",
}
# The folders whose docstrings are checked.
DOCSTRINGS_CHECKED = ("bench", "clients/python/syncbeat", "server", "tests", "tools")

BANNED_WORDS = {
    "base",
    "bases",
    "common",
    "commons",
    "data",
    "helper",
    "helpers",
    "info",
    "manager",
    "managers",
    "misc",
    "processor",
    "processors",
    "util",
    "utils",
}
NAMED_SUFFIXES = {".py", ".sql", ".sh", ".proto", ".toml", ".yaml", ".yml", ".ts"}

# What a reader of a silenced check needs is the reason, beside it.
UNEXPLAINED = re.compile(
    r"#\s*(?:noqa(?:: ?[A-Z]+[0-9]+(?:, ?[A-Z]+[0-9]+)*)?|type: ?ignore(?:\[[^\]]*\])?|nosec(?: B[0-9]+)?)\s*$"
)

# Put together here, so that this file does not hold what it looks for.
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
    """One broken rule: the file, the line (1 when it is about the file) and what is wrong."""

    path: Path
    line: int
    text: str


def main() -> int:
    """Print every finding as `path:line: text`; return 1 when there is one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stats", action="store_true", help="print the sizes of the service's modules and folders")
    paths = sorted(files(ROOT))
    if parser.parse_args().stats:
        print_stats(paths)
        return 0
    findings = [*check_folders(paths), *(finding for path in paths for finding in check_file(path))]
    for finding in sorted(findings):
        print(f"{finding.path}:{finding.line}: {finding.text}")
    return 1 if findings else 0


def print_stats(paths: Iterable[Path]) -> None:
    """Print median and largest size of the modules in server/, in lines, and the largest folder."""
    modules = [path for path in paths if path.suffix == ".py" and path.parts[0] == "server" and not is_package(path)]
    lines = {path: (ROOT / path).read_text(encoding="utf-8").count("\n") for path in modules}
    folder, count = Counter(path.parent for path in modules).most_common(1)[0]
    longest = max(lines, key=lambda path: lines[path])
    print(f"modules of server/: {len(modules)}, median {statistics.median(lines.values()):.0f} lines")
    print(f"longest: {longest}, {lines[longest]} lines; largest folder: {folder}, {count} modules")


def files(root: Path) -> Iterator[Path]:
    """Yield every file of ours, relative to `root`: none that is generated, hidden, built or installed."""
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


def check_folders(paths: Iterable[Path]) -> Iterator[Finding]:
    """Check that no folder is too large to be read at a glance."""
    counts = Counter(path.parent for path in paths if path.suffix == ".py" and not is_package(path))
    for folder, count in counts.items():
        if count > FOLDER_MODULES and is_below(folder, FOLDERS_OF_MODULES):
            yield Finding(folder, 1, f"holds {count} modules; a folder has at most {FOLDER_MODULES}")


def is_package(path: Path) -> bool:
    """Tell if a module stands for its folder."""
    return path.name == "__init__.py"


def is_below(path: Path, roots: Iterable[str]) -> bool:
    """Tell if a path is one of `roots` or within one."""
    return any(path.is_relative_to(root) for root in roots)


def check_file(path: Path) -> Iterator[Finding]:
    """Check a file against every rule that applies to it."""
    yield from check_path_words(path)
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):  # an image of the protos; a dangling link
        return
    yield from check_text(path, text)
    if path.suffix == ".py":
        yield from check_suppressions(path, text)
        yield from check_python(path, text)
    elif path.suffix == ".proto" and not is_below(path, VENDORED_PROTOS):
        yield from check_proto_comments(path, text)


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


def check_suppressions(path: Path, text: str) -> Iterator[Finding]:
    """Refuse a silenced check whose line does not say for which reason."""
    for number, line in enumerate(text.splitlines(), start=1):
        if UNEXPLAINED.search(line):
            yield Finding(path, number, "silences a check without a reason on its line")


def check_python(path: Path, text: str) -> Iterator[Finding]:
    """Check sizes, names and docstrings; in tests also sleeps and mocks."""
    in_tests = path.parts[0] == "tests"
    lines = text.count("\n")
    if lines > MODULE_LINES:
        yield Finding(path, 1, f"has {lines} lines; a module has at most {MODULE_LINES}")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield Finding(path, error.lineno or 1, f"is no Python: {error.msg}")
        return
    if is_below(path, DOCSTRINGS_CHECKED):
        yield from check_docstrings(path, tree)
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
        if isinstance(node, ast.Call) and path.parts[0] in PATCHING_FOLDERS:
            yield from check_patch(path, node)


def check_docstrings(path: Path, tree: ast.Module) -> Iterator[Finding]:
    """Check that no docstring opens with a question word, nor one that follows a constant or a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            line = 1 if isinstance(node, ast.Module) else node.lineno
            yield from check_opening(path, line, ast.get_docstring(node) or "")
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, after in pairwise(node.body):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(text, ast.Constant):
                    yield from check_opening(path, after.lineno, str(text.value))


def check_opening(path: Path, line: int, text: str) -> Iterator[Finding]:
    """Refuse a text that opens with a question word: verb and object, or a noun, say more."""
    first = re.match(r"\W*(\w+)", text)
    if first and first[1].lower() in QUESTION_WORDS:
        yield Finding(path, line, f"a docstring opens with {first[1]!r}: open it with verb and object")


def check_proto_comments(path: Path, text: str) -> Iterator[Finding]:
    """Check the opening of each block of comment lines in a proto."""
    previous = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line.startswith("//") and not previous.startswith("//"):
            yield from check_opening(path, number, line)
        previous = line


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


def check_patch(path: Path, call: ast.Call) -> Iterator[Finding]:
    """Refuse to replace a private name: what a test has to vary, its unit takes as an argument or in a frozen rule."""
    function, named = call.func, [argument for argument in call.args[:2] if isinstance(argument, ast.Constant)]
    is_patch = (isinstance(function, ast.Name) and function.id == "setattr") or (
        isinstance(function, ast.Attribute) and function.attr == "setattr"
    )
    if is_patch and named and isinstance(named[0].value, str):
        name = named[0].value.rpartition(".")[2]  # pytest also takes the whole path as its first argument
        if name.startswith("_"):
            yield Finding(
                path, call.lineno, f"replaces the private {name}: pass an argument, or a rule with other values"
            )


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
