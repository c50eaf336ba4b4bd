"""Finds the rules of a path, key by key, while a tree is read.

A pattern is keys with a slash between them; a key in braces is a variable and stands for any key. A literal key goes
before a variable at its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from syncbeat_server.transfer.model import Path


@dataclass(slots=True, eq=False)
class PathNode:
    """Holds one place of the tree of patterns: the rules that end there, by their number, and the places below.

    `pattern`: the keys up to here, variables in braces.
    """

    pattern: Path = ()
    rules: tuple[int, ...] = ()
    literals: dict[str, PathNode] = field(default_factory=dict)
    variable: PathNode | None = None

    def child(self, key: str) -> PathNode | None:
        """Return the place below for a key; None if no pattern goes there."""
        return self.literals.get(key, self.variable)


class NestedPatternsError(ValueError):
    """Says that a pattern ends inside of what another one takes as a whole, by the numbers of their rules."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__(outer, inner)
        self.outer = outer
        self.inner = inner


def variable_name(key: str) -> str | None:
    """Return the name of a variable of a pattern; None for a literal key."""
    return key[1:-1] if key.startswith("{") and key.endswith("}") else None


def path_tree(patterns: Sequence[Path]) -> PathNode:
    """Return the root of a tree of patterns; the number of a rule is its place in the sequence.

    Raises:
        NestedPatternsError: a pattern continues another one.
    """
    root = PathNode()
    for number, pattern in enumerate(patterns):
        _add(root, pattern, number)
    _inherit(root)
    return root


def _add(node: PathNode, pattern: Path, number: int) -> None:
    for depth, key in enumerate(pattern, 1):
        if node.rules:
            raise NestedPatternsError(node.rules[0], number)
        below = node.variable if variable_name(key) is not None else node.literals.get(key)
        if below is None:
            below = PathNode(pattern[:depth])
            if variable_name(key) is not None:
                node.variable = below
            else:
                node.literals[key] = below
        node = below
    inner = _any_rule_below(node)
    if inner is not None:
        raise NestedPatternsError(number, inner)
    node.rules += (number,)


def _any_rule_below(node: PathNode) -> int | None:
    below = [*node.literals.values(), *([node.variable] if node.variable else [])]
    for inner in below:
        found = inner.rules[0] if inner.rules else _any_rule_below(inner)
        if found is not None:
            return found
    return None


def _inherit(node: PathNode) -> None:
    """Let literals know the patterns that go on from the variable at their place, so that reading never turns back."""
    for literal in node.literals.values():
        if node.variable is not None and not literal.rules and not node.variable.rules:
            _merge(literal, node.variable)
        _inherit(literal)
    if node.variable is not None:
        _inherit(node.variable)


def _merge(into: PathNode, other: PathNode) -> None:
    for key, below in other.literals.items():
        _merge_below(into.literals.setdefault(key, PathNode(below.pattern)), below)
    if other.variable is not None:
        if into.variable is None:
            into.variable = PathNode(other.variable.pattern)
        _merge_below(into.variable, other.variable)


def _merge_below(into: PathNode, other: PathNode) -> None:
    if into.literals or into.variable is not None:
        if not other.rules:  # a literal path that goes on goes before what takes the place as a whole
            _merge(into, other)
    elif not into.rules:
        into.rules = other.rules
        _merge(into, other)
