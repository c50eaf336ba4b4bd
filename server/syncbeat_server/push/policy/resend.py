"""Decides when a silent wake-up is sent again, and what answered and missed ones say about a device. Pure.

A push gets lost now and then although the provider took it (assumed: 5 in 100, a cautious guess). A device that is
woken again misses only what is lost each time, so that it needs no polls beside its pushes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from syncbeat_server.defaults import RESEND_DELAYS_S
from syncbeat_server.push.model import DeliveryState, DeliveryUpdate, Reason
from syncbeat_server.push.policy import reachability
from syncbeat_server.push.policy.transitions import CALLED_DEAD, Event, update

_TIMER_SLACK_S = 1.0
_LONGEST_HOLD_S = 300.0
_REDIRECTED_WAIT_S = 1.0
_IOS = "IOS"


@dataclass(frozen=True, slots=True)
class ResendRule:
    """Times to wait for an answer, in seconds.

    `after_s`: how long each try is waited for before the next one is made; if empty, nothing is sent again. `last_s`:
    how long the last try is waited for.
    """

    after_s: tuple[float, ...] = RESEND_DELAYS_S
    last_s: float = 30.0

    def wait_s(self, resends: int) -> float:
        """Return the seconds for which an answer is awaited after this number of resends."""
        again_s = next_resend_s(resends, self)
        return self.last_s if again_s is None else again_s


@dataclass(frozen=True, slots=True)
class UnansweredWakeUp:
    """A wake-up whose time to be answered has passed.

    `waited_s`: seconds from the last try until the answer was due. `fetched_s`: seconds from the last try until the
    device's own calls had fetched the change; None if they have not. `foreground`: the device said so recently.
    `usable`: its token may be sent to. `superseded`: a newer wake-up of the same scope was sent to it. `answered` and
    `missed` are the device's decayed counts.
    """

    app_id: str
    delivery_id: str
    user_id: str
    device_id: str
    platform: str
    resends: int
    ttl_s: float
    waited_s: float
    acknowledged: bool
    fetched_s: float | None
    foreground: bool
    usable: bool
    superseded: bool
    answered: float
    missed: float

    @property
    def device(self) -> tuple[str, str, str]:
        """Key of the device: (app, user, device)."""
        return (self.app_id, self.user_id, self.device_id)

    @property
    def sendable(self) -> bool:
        """True if the system delivers a wake-up now: iOS may drop it while the app is not on screen."""
        return self.platform != _IOS or self.foreground

    @property
    def known_reachable(self) -> bool:
        """True if pushes usually reach the device, so that a miss says something about the app's pushes."""
        return self.sendable and reachability.answer_rate(self.answered, self.missed) >= reachability.REACHABLE_RATE


class ResendDecision(NamedTuple):
    """Decision about an unanswered wake-up, and what it says about the device.

    `last_answered` is the probability, from 0 to 1, that the last try woke the device; `answered` the same of all
    tries, once there will be no more. None where it cannot be told. `lost`: all tries were missed.
    """

    resend: bool
    last_answered: float | None = None
    answered: float | None = None
    lost: bool = False


def next_resend_s(resends: int, rule: ResendRule) -> float | None:
    """Return the seconds from try number `resends`, 0 being the first, to the next; None if it was the last."""
    return rule.after_s[resends] if resends < len(rule.after_s) else None


def decide_resend(wake: UnansweredWakeUp, rule: ResendRule) -> ResendDecision:
    """Return if the wake-up is to be sent again, and how likely its tries woke the device."""
    # If it was put off in between, nothing was tried in the time that was waited for.
    tried = wake.waited_s <= rule.wait_s(wake.resends) + _TIMER_SLACK_S
    if wake.acknowledged:
        return ResendDecision(False, last_answered=1.0 if tried else None, answered=1.0)
    if wake.fetched_s is not None:
        if wake.fetched_s < 0:
            return ResendDecision(False)
        credit = reachability.push_credit(reachability.answer_rate(wake.answered, wake.missed), wake.fetched_s)
        return ResendDecision(False, last_answered=credit if tried else None, answered=credit)
    if wake.ttl_s <= 0 or wake.superseded or not wake.usable:
        return ResendDecision(False)
    missed = 0.0 if tried else None
    if next_resend_s(wake.resends, rule) is None:
        return ResendDecision(False, last_answered=missed, answered=0.0, lost=True)
    if not wake.sendable:
        return ResendDecision(False, last_answered=missed, answered=0.0)
    return ResendDecision(True, last_answered=missed)


def await_answer(result: DeliveryUpdate, rule: ResendRule) -> DeliveryUpdate:
    """Return the update of a silent wake-up with the time to wait for its answer; other updates unchanged.

    One that was sent before stays SENT whatever becomes of its resend.
    """
    delivery = result.delivery
    if not delivery.silent:
        return result
    wait_s = rule.wait_s(delivery.resends)
    if result.state is DeliveryState.SENT:
        return replace(result, due_in_s=wait_s)
    if delivery.resends == 0:
        return result
    keep_sent = partial(
        update,
        delivery,
        provider_message_id=result.provider_message_id,
        invalid_token=result.invalid_token,
    )
    match result.state:
        case DeliveryState.PENDING if result.redirected:
            # Still marked as redirected, so that following tokens stays limited.
            redirected = keep_sent(Event.KEEP_SENT, Reason.NONE, due_in_s=_REDIRECTED_WAIT_S)
            return replace(redirected, redirected=True)
        case DeliveryState.PENDING if result.reason is Reason.AMBIGUOUS:
            return keep_sent(Event.SEND, due_in_s=wait_s)
        case DeliveryState.PENDING | DeliveryState.HELD:
            put_off_s = max(wait_s, result.due_in_s)
            later_s = put_off_s if put_off_s <= _LONGEST_HOLD_S else 0.0
            return keep_sent(Event.KEEP_SENT, Reason.NONE, due_in_s=later_s)
        case _:
            reason = result.reason if result.reason in CALLED_DEAD else Reason.NONE
            return keep_sent(Event.KEEP_SENT, reason, due_in_s=0.0)
