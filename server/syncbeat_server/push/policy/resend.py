"""When a silent wake-up is sent again because nobody answered it, and what that tells of its device. Pure.

A push is lost now and then although the provider took it (five in a hundred, by a cautious guess). A device that is
asked again loses only what is lost each time, so that it needs no polls beside its pushes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from syncbeat_server.defaults import RESEND_DELAYS_S
from syncbeat_server.push.model import ClaimedDelivery, DeliveryState, Finished, Kind, Reason
from syncbeat_server.push.policy import reachability

_SLACK_S = 1.0
_LONGEST_HOLD_S = 300.0
_MOVED_S = 1.0
_IOS = "IOS"
_TOLD = (Reason.UNREGISTERED, Reason.WRONG_SENDER, Reason.REJECTED)


@dataclass(frozen=True, slots=True)
class ResendRule:
    """`after_s`: for how long each try is waited for before the next one; without any, none is sent again.

    `last_s`: for how long the last one is waited for.
    """

    after_s: tuple[float, ...] = RESEND_DELAYS_S
    last_s: float = 30.0

    def wait_s(self, resends: int) -> float:
        """How long an answer is waited for after so many resends."""
        again_s = next_resend_s(resends, self)
        return self.last_s if again_s is None else again_s


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A wake-up whose answer was waited for long enough.

    `waited_s`: from the last try until now was due. `fetched_s`: from the last try until the device's own calls had
    brought it as far; None: they have not. `foreground`: it said so of late. `superseded`: a newer wake-up of the same
    scope was sent to it. `answered` and `missed` are what is known of its reach.
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
        """(app, user, device)."""
        return (self.app_id, self.user_id, self.device_id)

    @property
    def sendable(self) -> bool:
        """Whether its system lets a wake-up through now: iOS spares an app that is not on the screen."""
        return self.platform != _IOS or self.foreground

    @property
    def known_reachable(self) -> bool:
        """Whether pushes usually reach its device, so that one that does not tells of the app's."""
        return self.sendable and reachability.share(self.answered, self.missed) >= reachability.KNOWN_SHARE


class Look(NamedTuple):
    """How a wake-up goes on. `again`: it is sent once more.

    `tried`: how likely the last try woke the device, from 0 to 1. `woken`: the same of all tries, once it has ended.
    None: nobody can tell.
    """

    again: bool
    tried: float | None = None
    woken: float | None = None
    lost: bool = False


def next_resend_s(resends: int, rule: ResendRule) -> float | None:
    """Seconds after a try, the first or the `resends`-th again, at which the next one is made; None: that was all."""
    return rule.after_s[resends] if resends < len(rule.after_s) else None


def look(wake: Unanswered, rule: ResendRule) -> Look:
    """Whether a wake-up was answered, and whether it is sent again."""
    # One that was put off in between was not tried since.
    tried = wake.waited_s <= rule.wait_s(wake.resends) + _SLACK_S
    if wake.acknowledged:
        return Look(False, tried=1.0 if tried else None, woken=1.0)
    if wake.fetched_s is not None:
        if wake.fetched_s < 0:
            return Look(False)
        woken = reachability.belief(reachability.share(wake.answered, wake.missed), wake.fetched_s)
        return Look(False, tried=woken if tried else None, woken=woken)
    if wake.ttl_s <= 0 or wake.superseded or not wake.usable:
        return Look(False)
    missed = 0.0 if tried else None
    if next_resend_s(wake.resends, rule) is None:
        return Look(False, tried=missed, woken=0.0, lost=True)
    if not wake.sendable:
        return Look(False, tried=missed, woken=0.0)
    return Look(True, tried=missed)


def goes_on(finished: Finished, rule: ResendRule) -> Finished:
    """What an attempt means for a wake-up: an answer is waited for; and one that was sent before stays SENT."""
    delivery = finished.delivery
    if not silent(delivery):
        return finished
    wait_s = rule.wait_s(delivery.resends)
    if finished.state is DeliveryState.SENT:
        return replace(finished, due_in_s=wait_s)
    if delivery.resends == 0:
        return finished
    sent = replace(finished, state=DeliveryState.SENT, lives_on=False, due_in_s=wait_s)
    match finished.state:
        case DeliveryState.PENDING if finished.moved:
            return replace(sent, reason=Reason.NONE, due_in_s=_MOVED_S, give_back_attempt=True)
        case DeliveryState.PENDING if finished.reason is Reason.AMBIGUOUS:
            return replace(sent, reason=Reason.NONE)
        case DeliveryState.PENDING | DeliveryState.HELD:
            put_off_s = max(wait_s, finished.due_in_s)
            later_s = put_off_s if put_off_s <= _LONGEST_HOLD_S else 0.0
            return replace(sent, reason=Reason.NONE, due_in_s=later_s, give_back_attempt=True)
        case _:
            told = finished.reason if finished.reason in _TOLD else Reason.NONE
            return replace(sent, reason=told, due_in_s=0.0, give_back_attempt=True)


def silent(delivery: ClaimedDelivery) -> bool:
    """Whether it wakes and shows nothing. What shows something is sent once."""
    return delivery.kind is Kind.SYNC and not delivery.content.alerts
