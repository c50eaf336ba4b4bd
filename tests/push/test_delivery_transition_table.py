"""The transition table of deliveries is complete, and the only source of states."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from syncbeat_server.push import store
from syncbeat_server.push.model import DeliveryState, DeliveryUpdate, Reason
from syncbeat_server.push.policy.transitions import TRANSITIONS, Event, state_after, states_before, update
from tests.support import claimed_delivery

pytestmark = pytest.mark.unit

MODULES = sorted(Path(inspect.getfile(store)).parent.parent.rglob("*.py"))
# Of what is counted towards the daily maximum, `counted_at` alone is set, which is no state.
WRITES = re.compile(r"(?:UPDATE|INSERT INTO)\s+deliveries\b(?!\s+d\s+SET\s+counted_at\b)")
LITERAL = re.compile(rf"(?:\bSET\s+state\s*=|\bTHEN|\bELSE)\s+'(?:{'|'.join(DeliveryState)})'")


def test_delivery_transitions_name_functions_of_the_store() -> None:
    for statement in {statement for row in TRANSITIONS for statement in row.statements}:
        module, function = statement.split(".")
        found = getattr(importlib.import_module(f"{store.__name__}.{module}"), function)
        assert inspect.iscoroutinefunction(found), statement


def test_delivery_transitions_are_named_by_all_modules_that_write_deliveries() -> None:
    writers = {path.stem for path in MODULES if WRITES.search(path.read_text(encoding="utf-8"))}
    named = {statement.split(".")[0] for row in TRANSITIONS for statement in row.statements}
    assert writers == named


def test_delivery_states_are_set_by_no_literal() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert not (WRITES.search(text) and LITERAL.search(text)), path.name


def test_delivery_updates_are_made_from_the_table_only() -> None:
    for path in MODULES:
        calls = [one for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(one, ast.Call)]
        made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == DeliveryUpdate.__name__]
        assert not made or path.name == "transitions.py", path.name


def test_delivery_update_refuses_a_reason_that_the_table_does_not_have() -> None:
    with pytest.raises(ValueError, match="HOLD does not set"):
        update(claimed_delivery.MESSAGE, Event.HOLD, Reason.REJECTED)
    with pytest.raises(ValueError, match="REJECT sets no single reason"):
        update(claimed_delivery.MESSAGE, Event.REJECT)


def test_delivery_states_are_all_reached() -> None:
    reached = {row.after for row in TRANSITIONS}
    assert reached == {*DeliveryState}
    assert {state for event in Event for state in states_before(event)} <= reached
    assert state_after(Event.CLAIM) is DeliveryState.IN_FLIGHT


def test_delivery_diagram_of_the_architecture_page_has_transitions_of_the_table_only() -> None:
    page = (Path(__file__).resolve().parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^    (\S+) --> (\w+):", page, re.MULTILINE))
    assert drawn <= {(before, str(row.after)) for row in TRANSITIONS for before in row.before or ("[*]",)}
    assert {after for _, after in drawn} == {*DeliveryState}, "simplified, but each state is in it"
