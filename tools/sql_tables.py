"""Extracts the tables that Python code reads and writes from the SQL in its strings.

Follows constants of the same module, and those imported from other modules of the service, into f-strings and
concatenations. A table name that is put together at run time cannot be followed, and is reported as `BUILT`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

BUILT = "?"
"""Stands for the name of a table that is put together at run time."""
_HOLE = "\0"
_SQL = re.compile(
    r"\b(?:SELECT|INSERT\s+INTO|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE|LOCK\s+TABLE|COPY)\b"
    r"|\b(?:FROM|JOIN|INTO|USING|UPDATE)\s+(?:ONLY\s+)?[a-z_\0%{]"
)
_HOLES = r"\0|%s|\{\w*\}"
_TOKEN = re.compile(rf"'(?:[^']|'')*'|\"[^\"]*\"|(?:[A-Za-z_]|{_HOLES})(?:[A-Za-z0-9_$]|{_HOLES})*|\d+(?:\.\d+)?|[^\s]")
_CTE = re.compile(r"\b(\w+)(?:\s*\([^()]*\))?\s+AS\s+(?:NOT\s+)?(?:MATERIALIZED\s+)?\(\s*(?=[A-Z\0])", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_CREATE = re.compile(r"\bCREATE\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)", re.IGNORECASE)
_ENDS_FROM = frozenset(
    {"where", "group", "order", "having", "limit", "returning", "set", "values", "union", "except", "intersect"}
    | {"window", "for", "select", "when", "offset"}
)
_FROM_OF_FUNCTIONS = frozenset({"extract", "substring", "trim", "overlay"})
_NO_TABLE = frozenset({"lateral", "only", "rows"})


class Access(StrEnum):
    """Names the two kinds of access to a table."""

    READ = "reads"
    WRITE = "writes"


@dataclass(frozen=True, order=True)
class TableUse:
    """Access to a table by a statement in a file; `table` is `BUILT` if its name is put together at run time."""

    path: Path
    line: int
    access: Access
    table: str


@dataclass
class _Level:
    """State of the parser within one pair of parentheses."""

    in_from: bool = False
    expects_item: bool = False
    is_function: bool = False


def created_tables(folder: Path) -> frozenset[str]:
    """Return the tables that the SQL files and Python strings below `folder` create."""
    files = [*folder.rglob("*.sql"), *folder.rglob("*.py")]
    return frozenset(name for file in files for name in _CREATE.findall(file.read_text(encoding="utf-8")))


def table_uses(root: Path, builders: Mapping[str, int]) -> Iterator[TableUse]:
    """Yield the accesses of the Python files below `root`, a folder of source.

    `builders` are functions that put a DELETE together, with the position of the argument that names the table; their
    own bodies are not looked at.
    """
    sources = _Sources(root.parent)
    for path in sorted(root.rglob("*.py")):
        yield from _uses_of_file(path, sources, builders)


def _uses_of_file(path: Path, sources: _Sources, builders: Mapping[str, int]) -> Iterator[TableUse]:
    module = sources.module(path)
    texts = (sources.text(node, module) for node in _nodes(module.tree, builders) if isinstance(node, ast.expr))
    # A part of a statement may name the common table expressions of another part.
    own_names = frozenset(name for text in texts if text for name in cte_names(text))
    for node in _nodes(module.tree, builders):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in builders:
                argument = node.args[builders[name]] if len(node.args) > builders[name] else None
                literal = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                table = str(argument.value) if isinstance(argument, ast.Constant) and literal else BUILT
                yield TableUse(path, line, Access.WRITE, table)
        elif isinstance(node, ast.expr):
            text = sources.text(node, module)
            if text is not None and _SQL.search(text):
                for access, table in statement_tables(text, own_names):
                    yield TableUse(path, line, access, table)


def _nodes(tree: ast.Module, builders: Mapping[str, int]) -> Iterator[ast.AST]:
    """Yield the calls and the outermost string expressions of a module, without docstrings and builders' bodies."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef) and node.name in builders:
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call):
            yield node
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod) and _has_string(node):
            yield node
            continue
        waiting.extend(ast.iter_child_nodes(node))


def _has_string(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.JoinedStr) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
        for one in ast.walk(node)
    )


def cte_names(sql: str) -> set[str]:
    """Return the names of the common table expressions in the text of a statement."""
    return {name.lower() for name in _CTE.findall(_COMMENT.sub(" ", sql))}


def statement_tables(sql: str, ctes: Set[str] = frozenset()) -> list[tuple[Access, str]]:
    """Return the tables that the text of a statement, or of a part of one, reads and writes.

    `ctes` are common table expressions of other parts, beside its own.
    """
    text = _COMMENT.sub(" ", sql)
    own_names = ctes | cte_names(sql)
    tokens = _TOKEN.findall(text)
    found: list[tuple[Access, str]] = []
    levels = [_Level()]
    for index, lexeme in enumerate(tokens):
        word, level = lexeme.lower(), levels[-1]
        before = tokens[index - 1].lower() if index else ""
        after = tokens[index + 1] if index + 1 < len(tokens) else ""
        if lexeme == "(":
            level.expects_item = False
            levels.append(_Level(is_function=before in _FROM_OF_FUNCTIONS))
        elif lexeme == ")":
            if len(levels) > 1:
                levels.pop()
        elif lexeme == ",":
            level.expects_item = level.in_from
        elif _is_written(tokens, index):
            found.append((Access.WRITE, _name(tokens, index + 1)))
        elif word in ("from", "join", "using") and not level.is_function and before not in ("distinct", "delete"):
            level.in_from = level.expects_item = True
        elif word in _ENDS_FROM:
            level.in_from = level.expects_item = False
        elif level.expects_item and word not in _NO_TABLE:
            level.expects_item = False
            name = _name(tokens, index)
            if after != "(" and name not in own_names and not name.startswith("pg_"):
                found.append((Access.READ, name))
    return found


def _is_written(tokens: list[str], index: int) -> bool:
    """Return True if the token is the keyword before the table that a statement writes."""
    word = tokens[index].lower()
    before = tokens[index - 1].lower() if index else ""
    after = tokens[index + 1].lower() if index + 1 < len(tokens) else ""
    if not after or not (after[0] in '\0%{"' or after[0].isidentifier()):
        return False
    match word:
        case "into":
            return before in ("insert", "merge")
        case "from":
            return before == "delete"
        case "update":
            return before not in ("for", "key", "do", "then", "on", "before", "after", "or") and after != "set"
        case "truncate" | "copy":
            return after != "table"
        case "table":
            return before in ("truncate", "lock")
        case _:
            return False


def _name(tokens: list[str], index: int) -> str:
    """Return the name of a table at a place, without its schema."""
    if tokens[index].lower() == "only":
        index += 1
    if index + 2 < len(tokens) and tokens[index + 1] == ".":
        index += 2
    token = tokens[index]
    return BUILT if re.search(_HOLES, token) else token.strip('"').lower()


@dataclass
class _Module:
    """Parsed module, its constants, and the modules that its other names come from."""

    tree: ast.Module
    constants: dict[str, ast.expr] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


class _Sources:
    """Modules below a folder of source, parsed once each."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._modules: dict[Path, _Module] = {}

    def module(self, path: Path) -> _Module:
        """Return the parsed module at `path`."""
        if path not in self._modules:
            self._modules[path] = _parse(path)
        return self._modules[path]

    def text(self, node: ast.expr, module: _Module, depth: int = 0) -> str | None:
        """Return the text of a string expression, with holes for its parts that are known at run time only."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            parts = (one.value if isinstance(one, ast.FormattedValue) else one for one in node.values)
            return "".join(self._part(one, module, depth) for one in parts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._part(node.left, module, depth) + self._part(node.right, module, depth)
        if isinstance(node, ast.BinOp):
            return self._part(node.left, module, depth)
        return None

    def _part(self, node: ast.expr, module: _Module, depth: int) -> str:
        if depth > 8:  # parts of parts: a circle, or beyond what anybody could read
            return _HOLE
        text = self.text(node, module, depth + 1)
        if text is None and isinstance(node, ast.Name):
            if node.id in module.constants:
                text = self.text(module.constants[node.id], module, depth + 1)
            elif node.id in module.imported:
                text = self._imported_text(*module.imported[node.id], depth)
        elif text is None and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            origin = module.imported.get(node.value.id)
            text = None if origin is None else self._imported_text(".".join(filter(None, origin)), node.attr, depth)
        return _HOLE if text is None else text

    def _imported_text(self, module_name: str, name: str, depth: int) -> str | None:
        path = self._source.joinpath(*module_name.split(".")).with_suffix(".py")
        if not path.is_file():
            return None
        module = self.module(path)
        constant = module.constants.get(name)
        return None if constant is None else self.text(constant, module, depth + 1)


def _parse(path: Path) -> _Module:
    module = _Module(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            module.constants[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            module.constants[node.target.id] = node.value
    for statement in ast.walk(module.tree):
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            for alias in statement.names:
                module.imported[alias.asname or alias.name] = (statement.module, alias.name)
    return module
