"""Evaluates JMESPath within bounds, since the documents come from outside (ADR 166).

An expression is bounded in text, nodes and depth when it is compiled, and in steps and in what it returns at each
evaluation. A step is a visited node; whatever walks a value in one go is charged for the size of that value first.
"""

from __future__ import annotations

import math
from typing import Any, cast

import jmespath
import orjson
from jmespath import functions, visitor
from jmespath.exceptions import JMESPathError

MOST_CHARACTERS = 4_096
MOST_NODES = 500
MOST_DEPTH = 50
MOST_STEPS = 50_000
"""A tenth of a second at the very most; the recipes take a hundred."""
MOST_RESULT_BYTES = 262_144

_CHARACTERS_A_STEP = 32
_ITEMS_A_STEP = 16

_Node = dict[str, Any]


class ExpressionFault(Exception):
    """An expression cannot be compiled or evaluated. The message repeats nothing of a document."""


class Expression:
    """One compiled expression."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionFault: it is malformed, too large, or calls a function that does not exist."""
        if len(text) > MOST_CHARACTERS:
            raise ExpressionFault(f"longer than {MOST_CHARACTERS} characters")
        try:
            self._root = cast(_Node, jmespath.compile(text).parsed)
        except JMESPathError as error:
            raise ExpressionFault(f"no JMESPath: {str(error).splitlines()[0]}") from None
        except RecursionError:
            raise ExpressionFault(f"nested deeper than {MOST_DEPTH}") from None
        _check(self._root)

    def evaluate(self, document: Any) -> Any:
        """Return the value of the expression. Raises ExpressionFault."""
        interpreter = _BoundedInterpreter()
        try:
            result = interpreter.visit(self._root, document)
            interpreter.charge(_weight(result, MOST_STEPS))
            octets = len(orjson.dumps(result))
        except JMESPathError as error:
            raise ExpressionFault(f"cannot be evaluated: {type(error).__name__}") from None
        except (orjson.JSONEncodeError, RecursionError, ArithmeticError, ValueError, TypeError):
            raise ExpressionFault("cannot be evaluated: its result is no JSON") from None
        if octets > MOST_RESULT_BYTES:
            raise ExpressionFault(f"returns more than {MOST_RESULT_BYTES // 1024} KiB")
        return result


class _BoundedInterpreter(visitor.TreeInterpreter):
    """Interpreter that counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self._left = MOST_STEPS

    def charge(self, steps: int) -> None:
        """Take steps of what is left. Raises ExpressionFault if there are not so many."""
        self._left -= steps
        if self._left < 0:
            raise ExpressionFault(f"takes more than {MOST_STEPS} steps for this document")

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Visit a node, charged for it and for the outer size of its result."""
        self.charge(1)
        result = super().visit(node, *args, **kwargs)
        if isinstance(result, list | dict):
            self.charge(len(result) // _ITEMS_A_STEP)
        elif isinstance(result, str):
            self.charge(len(result) // _CHARACTERS_A_STEP)
        return result

    def visit_comparator(self, node: Any, value: Any) -> Any:
        """Compare two values, charged for the whole of both."""
        return super().visit_comparator(self._evaluated(node, value), value)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        """Call a function, charged for the whole of its arguments."""
        evaluated = self._evaluated(node, value)
        given = [child["value"] for child in evaluated["children"]]
        match given:
            case [str() as glue, list() as parts] if node["value"] == "join":
                self.charge(len(glue) * len(parts) // _CHARACTERS_A_STEP)
        return super().visit_function_expression(evaluated, value)

    def _evaluated(self, node: Any, value: Any) -> Any:
        """Return a node whose children are their values, each charged for."""
        children = []
        for child in node["children"]:
            found = self.visit(child, value)
            self.charge(_weight(found, self._left))
            children.append({"type": "literal", "children": [], "value": found})
        return {**node, "children": children}


def _weight(value: Any, most: int) -> int:
    """Return the steps that walking a value takes; more than `most` once it is seen to take more.

    Raises:
        ExpressionFault: it has NaN or an infinity, as `to_number` makes of text: orjson would write null for it.
    """
    steps, rest = 0, [value]
    while rest and steps <= most:
        one = rest.pop()
        steps += 1
        if isinstance(one, dict):
            rest.extend(one.values())
        elif isinstance(one, list):
            rest.extend(one)
        elif isinstance(one, str):
            steps += len(one) // _CHARACTERS_A_STEP
        elif isinstance(one, float) and not math.isfinite(one):
            raise ExpressionFault("cannot be evaluated: its result is no JSON")
    return steps


def _check(root: _Node) -> None:
    nodes, rest = 0, [(root, 1)]
    while rest:
        node, depth = rest.pop()
        nodes += 1
        if nodes > MOST_NODES:
            raise ExpressionFault(f"more than {MOST_NODES} nodes")
        if depth > MOST_DEPTH:
            raise ExpressionFault(f"nested deeper than {MOST_DEPTH}")
        if node["type"] == "function_expression" and node["value"] not in functions.Functions.FUNCTION_TABLE:
            raise ExpressionFault("calls a function that JMESPath does not have")
        rest.extend((child, depth + 1) for child in node["children"] if isinstance(child, dict))
