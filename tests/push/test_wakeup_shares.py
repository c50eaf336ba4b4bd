"""Shares of a device's wake-ups: nobody can spend what is another's, and nothing is left that somebody needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.push.model import Kind
from syncbeat_server.push.policy.wake_budget import Balance, WakeBudget, refill, share_holders, spend, wake_budget
from tests.support.claimed_delivery import MESSAGE

pytestmark = pytest.mark.unit

ANDROID, IOS = wake_budget("ANDROID"), wake_budget("IOS")
assert ANDROID is not None
assert IOS is not None
BUDGETS = (ANDROID, IOS)


def spend_all(balance: Balance, budget: WakeBudget, *names: str, tries: int = 200) -> tuple[int, Balance]:
    spent = 0
    for _ in range(tries):
        balance, wait_s = spend(balance, budget, names)
        spent += wait_s == 0.0
    return spent, balance


def test_wakeup_share_is_charged_to_user_and_scope_not_the_backend() -> None:
    wake = replace(MESSAGE, kind=Kind.SYNC, scope="s", caller="user:eve")
    assert share_holders(wake) == ("scope:s", "user:eve")
    assert share_holders(replace(wake, caller="service:backend")) == ()


@pytest.mark.parametrize(("budget", "most"), [(ANDROID, 10), (IOS, 2)])
def test_wakeup_share_of_a_user_and_scope_is_half(budget: WakeBudget, most: int) -> None:
    full = Balance(budget.burst, {})
    for taken in (("scope:a", "user:eve"), ("scope:a", "user:ann"), ("scope:b", "user:eve")):
        spent, left = spend_all(full, budget, "scope:a", "user:eve")
        assert spent == most
        assert spend_all(left, budget, *taken)[0] == 0, "neither by another user nor in another scope"
        assert spend_all(left, budget, "scope:c", "user:bob")[0] == budget.burst - most
        assert spend_all(left, budget)[0] == budget.burst - most
    assert spend_all(full, budget)[0] == budget.burst, "the backend may spend them all"


@pytest.mark.parametrize("budget", BUDGETS)
def test_wakeup_share_exhausted_waits_as_told(budget: WakeBudget) -> None:
    _, balance = spend_all(Balance(budget.burst, {}), budget, "scope:a", "user:eve")
    for _ in range(5):
        _, wait_s = spend(balance, budget, ("scope:a", "user:eve"))
        assert spend(refill(balance, budget, wait_s - 1.0), budget, ("scope:a", "user:eve"))[1] > 0
        balance, wait_s = spend(refill(balance, budget, wait_s + 0.001), budget, ("scope:a", "user:eve"))
        assert wait_s == 0.0


@pytest.mark.parametrize("budget", BUDGETS)
def test_wakeup_share_alone_is_all_and_beside_others_half(budget: WakeBudget) -> None:
    """For a day, both try all the time."""
    for others, least, most in (((), 0.9, 1.1), (("scope:b", "user:ann"), 0.4, 0.6)):
        balance, got = Balance(0.0, {"scope:a": budget.burst / 2, "user:eve": budget.burst / 2}), 0
        steps = int(86_400 / 10)
        for _ in range(steps):
            balance = refill(balance, budget, 10.0)
            if others:
                balance, _ = spend(balance, budget, others)
            balance, wait_s = spend(balance, budget, ("scope:a", "user:eve"))
            got += wait_s == 0.0
        assert least <= got / (86_400 / budget.refill_s) <= most, (others, got)


@given(
    budget=st.sampled_from(BUDGETS),
    steps=st.lists(st.tuples(st.floats(0.0, 2000.0), st.integers(0, 30), st.integers(0, 5)), max_size=60),
)
def test_wakeup_share_memory_is_bounded_and_nobody_overspends(
    budget: WakeBudget, steps: list[tuple[float, int, int]]
) -> None:
    balance = Balance(budget.burst, {})
    for passed_s, scope, user in steps:
        balance, _ = spend(refill(balance, budget, passed_s), budget, (f"scope:{scope}", f"user:{user}"))
        assert 0.0 <= balance.tokens <= budget.burst
        assert len(balance.spent) <= 4 * budget.burst + 4
        assert all(0.0 < spent <= budget.burst + 1 for spent in balance.spent.values())
