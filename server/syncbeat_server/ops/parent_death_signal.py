"""Becomes another program that ends when its parent does. A script of its own, run as

    python -I -S parent_death_signal.py PARENT_PID DEATH_SIGNAL UID GID PROGRAM ARGUMENT...

UID and GID are -1 to keep those of the parent. The alternative, `preexec_fn`, runs Python in the fork of a process that
may have threads (gRPC's), which can hang.
"""

from __future__ import annotations

import ctypes  # before the change of user: the new one may not be able to read Python's own files
import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Drop the privileges, ask the kernel for the signal, become the program."""
    parent, death_signal, uid, gid = (int(text) for text in sys.argv[1:5])
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, which resets the request (prctl(2)); it survives the exec.
    end_with_parent(parent, death_signal)
    os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606  # the caller's fixed list, no shell


def end_with_parent(parent: int, death_signal: int) -> None:
    """Let the kernel send this process the signal when its parent ends; exit at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # without an exception, which a process pool would print


if __name__ == "__main__":
    main()
