"""Details of audit entries: JSON of bounded size, whatever stands in them."""

from __future__ import annotations

import json

import pytest

from syncbeat_server.audit.model import AuditAction
from syncbeat_server.audit.policy.coverage import AUDITED, NOT_AUDITED
from syncbeat_server.audit.policy.details import MAX_CHARACTERS, MAX_OCTETS, details_json
from syncbeat_server.rpc.server import CONTRACT

pytestmark = pytest.mark.unit


def test_audit_details_keep_what_fits() -> None:
    assert json.loads(details_json({"a": "x", "n": 3, "yes": True})) == {"a": "x", "n": 3, "yes": True}
    assert details_json({}) == "{}"


@pytest.mark.parametrize("text", ["x" * 5_000, "\U0001f600" * 300, '"' * 300, "a\0b\ud800c", "\x01" * 300])
def test_audit_details_are_cut_to_their_bound(text: str) -> None:
    told = details_json({f"field{n}": text for n in range(40)})
    assert len(told.encode()) <= MAX_OCTETS
    found = json.loads(told)
    assert "\0" not in told
    assert all(len(value) <= MAX_CHARACTERS for name, value in found.items() if name != "omitted")
    assert len(found) > 1


def test_audit_coverage_names_every_method_of_the_contract_once() -> None:
    methods = {method.name for service in CONTRACT for method in service.methods}
    assert AUDITED.keys() | NOT_AUDITED.keys() == methods, "a new RPC says which entries it writes, or why none"
    assert not AUDITED.keys() & NOT_AUDITED.keys()
    assert all(NOT_AUDITED.values())
    written = frozenset[AuditAction]().union(*AUDITED.values())
    others = ("APP_", "EPOCHS_", "FIGURE_", "USERS_IMPORTED")
    assert all(action.startswith(others) for action in set(AuditAction) - written)
