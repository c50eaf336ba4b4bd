"""`python -m tests.e2e.dying_at_statement ORIGIN NTH WHEN COMMAND`: a command of the server that kills itself there.

ORIGIN is a method or a task, NTH the number of its statement from its first on, WHEN `before` PostgreSQL has it or
`after` it has answered. BEGIN and COMMIT count too. So all steps of a method are found without knowing its code.
SIGKILL, from within, at exactly that place: nothing of the process runs after it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from syncbeat_server.cli import main as cli_main
from syncbeat_server.ops.work_origin import work_origin
from syncbeat_server.storage.postgres.statement_comments import CommentedConnection


def main() -> int:
    """Arm the step, and run."""
    origin, nth, when, *command = sys.argv[1:]
    left = int(nth)

    async def dying(call: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        last = left == 0
        answer = await call()
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    def armed(real: Any) -> Any:
        def run(self: Any, query: str, *arguments: Any, **named: Any) -> Any:
            if work_origin.get().name != origin:
                return real(self, query, *arguments, **named)
            return dying(lambda: real(self, query, *arguments, **named))

        return run

    for name in ("execute", "executemany", "fetch", "fetchrow", "fetchval"):
        setattr(CommentedConnection, name, armed(getattr(CommentedConnection, name)))
    return cli_main.main(command)


if __name__ == "__main__":
    sys.exit(main())
