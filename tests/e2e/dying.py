"""`python -m tests.e2e.dying STEP NTH COMMAND`: `syncbeat-server COMMAND`, which kills itself at the Nth such step.

SIGKILL, from within, at exactly that place: nothing of the process runs after it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from syncbeat_server.cli import main as cli_main
from syncbeat_server.push import service
from syncbeat_server.push.delivery import outcomes, preflight, resend_scan
from syncbeat_server.push.providers.fcm import FcmProvider
from syncbeat_server.push.store import notifications, queue

STEPS = {
    # of a worker
    "a claim is not committed": (queue, "read_claimed", "before"),
    "a claim is committed": (preflight, "screen", "before"),
    "it is about to be sent": (FcmProvider, "send", "before"),
    "it was sent": (FcmProvider, "send", "after"),
    "the outcome is not committed": (queue, "finish", "after"),
    "the outcome is committed": (outcomes.OutcomeRecorder, "_write", "after"),
    "a lease is extended": (queue, "extend", "after"),
    "leases are given back": (queue, "release", "before"),
    # of a worker that sends a wake-up again
    "a wake-up is leased again": (resend_scan.ResendScan, "lease_unanswered", "after"),
    # of a server
    "an acceptance is not committed": (notifications, "insert_notifications", "after"),
    "an acceptance is committed": (service.PushService, "_write", "after"),
}


def main() -> int:
    """Arm the step, and run."""
    step, nth, *command = sys.argv[1:]
    owner, name, when = STEPS[step]
    real: Any = getattr(owner, name)
    left = int(nth)

    async def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left <= 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await real(*arguments, **named)
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, dying)
    return cli_main.main(command)


if __name__ == "__main__":
    sys.exit(main())
