"""Runs `smoke` within its time, and prints what became of each step."""

from __future__ import annotations

import asyncio
import json
import random
import signal

from syncbeat_devtools.smoke.journey import Journey
from syncbeat_devtools.smoke.steps import StepResult, Steps
from syncbeat_server.clock import SystemClock
from syncbeat_server.rpc.deployment import Deployment


def smoke(deployment: Deployment, app_id: str, *, timeout_s: float, as_json: bool) -> int:
    """Run all steps; return 0 if each came out right and nothing is left behind, else 1."""
    return asyncio.run(_smoke(deployment, app_id, timeout_s, as_json))


async def _smoke(deployment: Deployment, app_id: str, timeout_s: float, as_json: bool) -> int:
    clock = SystemClock()
    began = clock.monotonic()
    steps = Steps(clock, _ignore if as_json else _print_step)
    journey = Journey(deployment, app_id, steps, clock, random.SystemRandom())
    playing = asyncio.ensure_future(journey.play(timeout_s))
    # What was made is taken back on either signal too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    stopped = isinstance((await asyncio.gather(playing, return_exceptions=True))[0], asyncio.CancelledError)
    ok = steps.ok and not stopped
    seconds = clock.monotonic() - began
    if as_json:
        found = {
            "ok": ok,
            "target": deployment.address,
            "user_id": journey.user_id,
            "seconds": round(seconds, 3),
            "steps": [result.as_json() for result in steps.results],
            "left_behind": steps.left_behind,
        }
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(f"{'OK' if ok else 'FAILED'} in {seconds:.1f} s, against {deployment.address}")
        for what in steps.left_behind:
            print(f"left behind: {what}")
    return 0 if ok else 1


def _print_step(result: StepResult) -> None:
    print(
        f"{'ok  ' if result.ok else 'FAIL'}  {result.name:<9} {result.seconds * 1000:8.1f} ms  {result.detail}",
        flush=True,
    )


def _ignore(_result: StepResult) -> None:
    pass
