"""Names the RPCs that the effects of an event stand for: whoever may not call them cannot bring the effects about."""

from __future__ import annotations

from syncbeat_server.errors import AccessDenied
from syncbeat_server.events.model import Effects, UserAction

_OF_ACTION = {
    UserAction.ENSURE: "EnableUser",
    UserAction.ENABLE: "EnableUser",
    UserAction.DISABLE: "DisableUser",
    UserAction.DELETE: "DeleteUser",
}


def effect_methods(effects: Effects) -> frozenset[str]:
    """Return the RPCs that do what these effects do."""
    wanted = {_OF_ACTION[one.action] for one in effects.users}
    if any(one.add for one in effects.members):
        wanted.add("AddScopeMembers")
    if any(one.remove for one in effects.members):
        wanted.add("RemoveScopeMembers")
    if effects.tiers:
        wanted.add("SetUserTier")
    if effects.changes or effects.trigger is not None:
        wanted.add("PublishChanges")
    if effects.notification is not None:
        wanted.add("SendNotification")
    return frozenset(wanted)


def check_allowed(effects: Effects, methods: frozenset[str] | None) -> None:
    """Check that a sender may call what the effects stand for; None: it may call all.

    Raises:
        AccessDenied: it may not. The message names the methods that are missing.
    """
    if methods is None:
        return
    missing = effect_methods(effects) - methods
    if missing:
        raise AccessDenied(f"these effects want {', '.join(sorted(missing))} on the caller's allow-list")
