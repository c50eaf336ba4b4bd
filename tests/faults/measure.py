"""Lets the network to one dependency fail while everybody calls, and collects what was seen of each kind of call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import asyncpg

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.clock import SystemClock
from tests.faults.callers import Callers, Noted
from tests.faults.matrix import BREAKER_S, Call, Cell, Dependency, promise_of
from tests.faults.stage import POLLING_USERS, FaultStage, fault_stage
from tests.faults.verdicts import Effect, Ended, Seen
from tests.prove.writers import Written, differences
from tests.support.databases import create_database, drop_database
from tests.support.fake_clock import wait_until
from tests.support.tcp_relays import Fault

_clock = SystemClock()
GRACE_S = 10.0
"""Seconds for which a recovery is waited for beyond its promise, to tell a late one from none."""
IN_A_ROW = 3
COOL_DOWN_S = 31.0
"""Seconds after which an issuer may be asked for an unknown key again."""
LONGEST_PAUSE_S, AGAIN = 2.0, 1
"""A condition during which the machine stood still for longer is measured again, so often at most."""
_LOOK_S = 0.05
_FIRST_REDIS = 120

Condition = tuple[Dependency, Fault]
"""A dependency, and how the network to it fails."""


@dataclass(frozen=True)
class Times:
    """The times of a measurement, in seconds: before a fault, of a fault by its dependency, of breakers and retries."""

    before_s: float
    fault_s: Mapping[Dependency, float]
    breaker_s: float = BREAKER_S
    retry_s: float = 10.0


async def add_pollers(stage: FaultStage) -> None:
    """Register the devices of those who poll."""
    conn = await asyncpg.connect(stage.urls.admin_url)
    try:
        await conn.execute(
            """INSERT INTO devices (app_id, user_id, device_id, platform, registration_token, token_digest, token_state,
                                    token_registered_at, registered_at, updated_at)
               SELECT 'default', 'poller-' || n, 'phone', 'ANDROID', NULL, NULL, 'NONE', NULL, now(), now()
               FROM generate_series(0, $1::int - 1) n""",
            POLLING_USERS,
        )
    finally:
        await conn.close()


def conditions_of(cells: Iterable[Cell]) -> list[Condition]:
    """Return the dependencies and faults of these cells, each pair once, in order."""
    return list(dict.fromkeys((cell.dependency, cell.fault) for cell in cells))


async def measure(
    stage: FaultStage,
    conditions: Sequence[Condition],
    times: Times,
    on_measured: Callable[[Mapping[Cell, Seen]], None],
) -> dict[Cell, Seen]:
    """Measure one condition after the other."""
    seen: dict[Cell, Seen] = {}
    asked_s = -COOL_DOWN_S
    for dependency, fault in conditions:
        for _ in range(1 + AGAIN):
            if dependency is Dependency.JWKS:
                await _clock.sleep(max(0.0, asked_s + COOL_DOWN_S - time.monotonic()))
            measured = await _measure_one(stage, dependency, fault, times)
            asked_s = time.monotonic()
            on_measured(measured)
            seen |= measured
            if all(one.paused_s <= LONGEST_PAUSE_S for one in measured.values()):
                break
    return seen


async def _longest_pause(over: asyncio.Event) -> float:
    """Return the longest time for which this process stood still until it is over."""
    longest_s, last_s = 0.0, time.monotonic()
    while not over.is_set():
        await _clock.sleep(_LOOK_S)
        longest_s, last_s = max(longest_s, time.monotonic() - last_s - _LOOK_S), time.monotonic()
    return longest_s


async def _measure_one(stage: FaultStage, dependency: Dependency, fault: Fault, times: Times) -> dict[Cell, Seen]:
    over = asyncio.Event()
    pause = asyncio.ensure_future(_longest_pause(over))
    callers = Callers(stage, dependency, fault)
    await callers.begin()
    await _clock.sleep(times.before_s)
    began_s, over_s = await _fail(stage, callers, (dependency, fault), times)
    bound_s = max(promise_of(Cell(dependency, fault, call), times.breaker_s).recovered_s for call in Call)
    with contextlib.suppress(AssertionError):  # the verdict says what is missing
        await wait_until(partial(_is_recovered, stage, callers.noted, over_s), bound_s + GRACE_S)
    await callers.stop_calling()
    await _settle(stage, callers.noted)
    await callers.end()
    written = await _differences(stage, callers)
    over.set()
    paused_s = await pause
    found = {}
    for call in Call:
        seen = Seen(began_s, over_s, samples=callers.noted.samples[call], paused_s=paused_s)
        _add(seen, call, callers.noted, stage, written)
        found[Cell(dependency, fault, call)] = seen
    return found


async def _fail(stage: FaultStage, callers: Callers, condition: Condition, times: Times) -> tuple[float, float]:
    """Let the network fail for a while; the moments at which that began and ended."""
    dependency, fault = condition
    relay = stage.relays[dependency]
    began_s = time.monotonic()
    if dependency is Dependency.JWKS:
        callers.new_key()
    relay.begin(fault)
    try:
        await _clock.sleep(times.fault_s[dependency])
    finally:
        relay.end()
    return began_s, time.monotonic()


def _is_recovered(stage: FaultStage, noted: Noted, over_s: float) -> bool:
    """Tell if the last calls of each kind were answered, and everything promised by then is seen."""
    stage.look_at_fcm()
    for call in (Call.POLL, Call.PUBLISH, Call.PUSH, Call.REFRESH):
        later = [one.ended is Ended.ANSWERED for one in noted.samples[call] if one.began_s >= over_s]
        if len(later) < 4 * IN_A_ROW or not all(later[-4 * IN_A_ROW :]):
            return False
    changes = all(key in noted.arrived for key, (_, at_s) in noted.published.items() if at_s < over_s + 1.0)
    pushes = all(title in stage.shown.at_s for title, at_s in noted.sent.items() if at_s < over_s + 1.0)
    return changes and pushes and all(opened is not None for _, opened in noted.opened)


async def _settle(stage: FaultStage, noted: Noted) -> None:
    """Wait a little for what was promised in the last moments."""

    def arrived() -> bool:
        stage.look_at_fcm()
        return noted.sent.keys() <= stage.shown.at_s.keys() and noted.published.keys() <= noted.arrived.keys()

    with contextlib.suppress(AssertionError):  # the verdict says what is missing
        await wait_until(arrived, GRACE_S)


async def _differences(stage: FaultStage, callers: Callers) -> list[str]:
    sequences: dict[str, dict[str, int]] = {scope: {} for scope in callers.scopes()}
    for (scope, key), (sequence, _) in callers.noted.published.items():
        sequences[scope][key] = sequence
    found = await differences(stage.urls.admin_url, Written(sequences))
    return [f"{count} acknowledged changes {how}" for how, count in found.items() if count]


def _add(seen: Seen, call: Call, noted: Noted, stage: FaultStage, written: list[str]) -> None:
    """Add what calls brought about, beside how they ended."""
    match call:
        case Call.PUBLISH:
            seen.lost = written
        case Call.PUSH:
            seen.effects = [Effect(at_s, stage.shown.at_s.get(title)) for title, at_s in noted.sent.items()]
            seen.lost = [f"shown twice: {title}" for title in noted.sent if len(stage.shown.ids.get(title, ())) > 1]
        case Call.STREAM:
            seen.effects = [
                *(Effect(at_s, _first(noted, key)) for key, (_, at_s) in noted.published.items()),
                *(Effect(wanted_s, opened_s) for wanted_s, opened_s in noted.opened),
            ]
            seen.lost = [*noted.gone, *_out_of_order(noted)]
        case Call.POLL | Call.REFRESH:
            pass


def _first(noted: Noted, key: tuple[str, str]) -> float | None:
    came = noted.arrived.get(key)
    return came[0][1] if came else None


def _out_of_order(noted: Noted) -> list[str]:
    found = [f"came twice: {scope} {key}" for (scope, key), came in noted.arrived.items() if len(came) > 1]
    last: dict[str, int] = {}
    arrivals = [(scope, *came[0]) for (scope, _), came in noted.arrived.items() if came]
    for scope, sequence, _ in sorted(arrivals, key=itemgetter(2)):
        if sequence < last.get(scope, 0):
            found.append(f"out of order: {scope} {sequence}")
        last[scope] = sequence
    return found


async def measure_in_lanes(
    stores: EmbeddedStores,
    template: str,
    folder: Path,
    lanes: Mapping[str, Sequence[Condition]],
    times: Times,
    on_measured: Callable[[Mapping[Cell, Seen]], None] = lambda _: None,
) -> dict[Cell, Seen]:
    """Measure the conditions of all lanes at the same time, each lane on a service and a database of its own.

    `on_measured` hears of each condition as soon as it is measured.
    """
    starting = asyncio.Lock()

    async def lane(number: int, name: str, conditions: Sequence[Condition]) -> dict[Cell, Seen]:
        urls = await create_database(stores, f"faults_{name}", template)
        (folder / name).mkdir()
        try:
            redis_url = f"{stores.redis_url}?db={_FIRST_REDIS + number}"
            breaker = {"DELIVERY_BREAKER_S": str(times.breaker_s), "DELIVERY_RETRY_S": str(times.retry_s)}
            async with fault_stage(urls, redis_url, folder / name, starting, **breaker) as stage:
                await add_pollers(stage)
                return await measure(stage, conditions, times, on_measured)
        finally:
            await drop_database(stores, urls.name)

    wanted = [(name, conditions) for name, conditions in lanes.items() if conditions]
    found = await asyncio.gather(*(lane(number, *one) for number, one in enumerate(wanted)))
    return {cell: seen for part in found for cell, seen in part.items()}
