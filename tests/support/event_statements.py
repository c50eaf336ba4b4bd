"""Events as a history draws them: each states the whole of its subject, and may be kept from its effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from syncbeat.v1 import core_pb2
from syncbeat.v1 import event_service_pb2 as pb
from tests.support.event_requests import change, event, member, user

# Their order by bytes is that of none of the usual collations, nor that of UTF-16.
_LETTERS = ("a", "Z", "é", "~", "\uffe6", "\U0001f600")
SOURCES = ("billing", "identity")
SUBJECTS = ("ann", "bob")


@dataclass(frozen=True)
class Statement:
    """An event as it is drawn: all that it says of its subject, when it occurred, and what keeps it from its effects.

    `fails` is "gate": until the gate is opened; "tier": for ever; or empty.
    """

    source: str
    subject: str
    letter: str
    at: int
    action: str
    role: str
    tier: str
    fails: str
    wakes: bool


STATEMENTS = st.builds(
    Statement,
    source=st.sampled_from(SOURCES),
    subject=st.sampled_from(SUBJECTS),
    letter=st.sampled_from(_LETTERS),
    at=st.integers(0, 3),
    action=st.sampled_from(["ENABLE", "DISABLE", "DELETE"]),
    role=st.sampled_from(["", "READER", "WRITER"]),
    tier=st.sampled_from(["", "free", "pro"]),
    fails=st.sampled_from(["", "", "", "gate", "gate", "tier"]),
    wakes=st.booleans(),
)


@dataclass
class Told:
    """One event of a history, and what is known of it without asking."""

    number: int
    says: Statement
    state: str = ""
    open: bool = False
    comings: int = 0
    first_answer: Any = None

    @property
    def event_id(self) -> str:
        return f"{self.says.letter}{self.number}"

    @property
    def moment(self) -> tuple[int, bytes]:
        """The place in the order of its subject."""
        return self.says.at, self.event_id.encode()

    @property
    def fails(self) -> bool:
        """Tell if its effects cannot be carried out now."""
        return self.says.fails == "tier" or (self.says.fails == "gate" and not self.open)


@dataclass
class World:
    """The names of one playing of a history: as it came, or in order."""

    name: str
    heads: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)

    def source(self, says: Statement) -> str:
        return f"{self.name}-{says.source}"

    def subject(self, says: Statement) -> str:
        """The user, the room and the subject: of a source of its own, since there is no order between sources."""
        return f"{self.name}-{says.source}-{says.subject}"

    def gate(self, one: Told) -> str:
        return f"{self.name}-gate-{one.number}"

    def request(self, one: Told, payload: str = "") -> pb.IngestEventRequest:
        says, name = one.says, self.subject(one.says)
        gone = says.action == "DELETE" or not says.role
        changes = [change(name, {"by": one.event_id})]
        if says.fails == "gate":
            changes.append(change(self.gate(one), 2, expected_sequence=1))
        tier = "" if says.action == "DELETE" else says.tier
        effects = pb.EventEffects(
            # A user who was deleted stays so when it is disabled: to state the whole it is made known before.
            users=[user(name, action) for action in dict.fromkeys(["ENABLE", says.action])],
            members=[member(name, remove=(name,)) if gone else member(name, name, role=says.role)],
            tiers=[pb.TierEffect(user_id=name, tier="no such tier" if says.fails == "tier" else tier)],
            changes=changes,
            trigger=core_pb2.SyncTrigger(type=one.event_id) if says.wakes else None,
        )
        return event(one.event_id, effects, at=says.at, source=self.source(says), subject=name, payload_json=payload)


NOTHING: dict[str, Any] = {"account": None, "role": None, "tier": None, "by": None}
"""The state of a subject that nothing was said of."""


def state_said(one: Told) -> dict[str, Any]:
    """The state of a subject after an event whose effects were carried out."""
    says = one.says
    deleted = says.action == "DELETE"
    return {
        "account": says.action,
        "role": None if deleted or not says.role else says.role,
        "tier": None if deleted or not says.tier else says.tier,
        "by": one.event_id,
    }
