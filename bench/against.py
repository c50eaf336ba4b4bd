"""Measures this revision against another: each round a process of each, in an order drawn at random.

Only what runs at nearly the same time is compared. A shared machine's speed changes by a third within a minute, and
hits both sides of a round about alike.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.figure import Better, say, short
from bench.processes import ROOT, finished
from bench.ratios import FEWEST_ROUNDS, MOST_ROUNDS, Change, Verdict, change, enough, judge
from bench.revision import Side, Unusable, built, commit_of, figures_of, here

# Of one process. Where a load runs for so many seconds, the median of three short runs is less often spoiled by what
# else the machine does than one long run: log ratios of two processes of one revision spread by 8 % instead of 11 % on
# a busy machine (publish_vs_echo).
_USUAL = ("--rounds", "1")
_LOADS = ("--rounds", "3", "--seconds", "0.5")
_LOADED = frozenset({"hint_vs_echo", "publish_vs_echo", "hint_rows_cpu", "push_accept_per_s"})

# hint_rows_cpu, the longest, takes some two minutes on a busy machine.
_MEASURE_S = 600.0

# Ctrl-C must reach it, also where a shell's & has made us ignore that: by it the bench ends what it has started.
_START = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('bench', run_name='__main__', alter_sys=True)"
)


class Failed(Exception):
    """A measurement did not come to an end; the message is a sentence that says why."""


@dataclass(frozen=True)
class Measured:
    """The measurement of one process: the figure's value, and the CPU of a request if the figure reports it.

    `better` is None for revisions whose figures do not report it yet.
    """

    value: float
    cpu_us: float | None = None
    better: Better | None = None


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison. Each figure has `minutes`; then it is judged by the rounds made so far."""

    seed: int
    minutes: float = 30.0
    clock: Callable[[], float] = field(default=time.monotonic)


@dataclass(frozen=True)
class Compared:
    """The comparison of a figure by its rounds. The CPU of a request is reported beside it, and decides nothing."""

    verdict: Verdict
    now: Sequence[Measured] = ()
    before: Sequence[Measured] = ()
    change: Change | None = None
    cpu: Change | None = None
    why: str | None = None

    @property
    def ratio(self) -> float | None:
        """The ratio of now over before, without the sign turned for figures that are better when lower."""
        if self.change is None:
            return None
        less = self.now[0].better is Better.LESS
        return 1 + (-self.change.middle if less else self.change.middle) / 100

    def told(self) -> dict[str, Any]:
        """The part of a line that is the figure's own."""
        line: dict[str, Any] = {"verdict": self.verdict, "rounds": len(self.now)}
        if self.why:
            line["why"] = self.why
        if self.now:
            line |= {
                "value": short(median(one.value for one in self.now)),
                "value_before": short(median(one.value for one in self.before)),
                "better": self.now[0].better,
            }
        if (ratio := self.ratio) is not None:
            line["ratio"] = round(ratio, 4)
        for prefix, found in (("", self.change), ("cpu_", self.cpu)):
            if found:
                line[f"{prefix}change_pct"] = round(found.middle, 2)
                line[f"{prefix}interval_pct"] = [round(found.worst, 2), round(found.best, 2)]
        return line


def run(names: Sequence[str], revision: str, plan: Plan, root: Path = ROOT) -> int:
    """Compare these figures with another revision: a line of JSON for each, progress on stderr.

    Returns 0; 1 when a figure is worse; 2 when one cannot be measured on both sides, or the revision not at all; 130
    when it is interrupted.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(names, revision, plan, root)
    except KeyboardInterrupt:
        say("against: interrupted; what it had started has ended")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(names: Sequence[str], revision: str, plan: Plan, root: Path) -> int:
    try:
        commit, this = commit_of(revision, root), here(root)
        other = built(commit, root)
        has = figures_of(other)
    except Unusable as error:
        say(f"against: {error}")
        return 2
    least, most = FEWEST_ROUNDS, MOST_ROUNDS
    say(f"against: {commit}, seed {plan.seed}; of each figure {least} to {most} rounds, {plan.minutes:g} min at most")
    verdicts = []
    for name in names:
        if name in has:
            mine, theirs = _measuring(Side(root), name), _measuring(other, name)
            compared = compare(name, mine, theirs, plan)
        else:
            compared = Compared(Verdict.ABSENT, why=f"{commit} has no such figure")
        verdicts.append(compared.verdict)
        line = {"name": name, **compared.told(), "seed": plan.seed, "here": this, "against": commit}
        print(json.dumps(line), flush=True)
    if {Verdict.ABSENT, Verdict.FAILED} & set(verdicts):
        return 2
    return 1 if Verdict.WORSE in verdicts else 0


def compare(name: str, mine: Callable[[], Measured], theirs: Callable[[], Measured], plan: Plan) -> Compared:
    """Make rounds until they are enough, and judge them."""
    now: list[Measured] = []
    before: list[Measured] = []
    order = random.Random(f"{plan.seed} {name}")
    started = plan.clock()
    found = cpu = None
    while not enough(len(now), found) and (not now or plan.clock() - started < plan.minutes * 60):
        sides = [(now, mine), (before, theirs)]
        order.shuffle(sides)
        try:
            got = [(kept, measure()) for kept, measure in sides]
        except Failed as error:
            return Compared(Verdict.FAILED, now, before, found, cpu, str(error))
        for kept, measured in got:
            kept.append(measured)
        better = now[0].better
        if better is None:
            return Compared(Verdict.FAILED, why=f"{name} does not say which way it is better")
        found = change([(one.value, other.value) for one, other in zip(now, before, strict=True)], better)
        cpu = _cpu_change(now, before)
        _tell(name, now, before, found, plan.clock() - started)
    return Compared(judge(found), now, before, found, cpu)


def _cpu_change(now: Sequence[Measured], before: Sequence[Measured]) -> Change | None:
    pairs = [(one.cpu_us, other.cpu_us) for one, other in zip(now, before, strict=True)]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return change(known, Better.LESS) if len(known) == len(pairs) else None


def _tell(name: str, now: Sequence[Measured], before: Sequence[Measured], found: Change | None, took: float) -> None:
    rounds = len(now)
    width = f", {found.middle:+.1f} % ({found.worst:+.1f} to {found.best:+.1f})" if found else ""
    say(f"{name}: round {rounds}: {short(now[-1].value)} against {short(before[-1].value)}{width}")
    if rounds == 1:
        least, most = took * FEWEST_ROUNDS / 60, took * MOST_ROUNDS / 60
        say(f"{name}: a round takes {took:.0f} s: {least:.1f} min at least, {most:.0f} at most")


def _measuring(side: Side, name: str) -> Callable[[], Measured]:
    return lambda: measure(side, name)


def measure(side: Side, name: str) -> Measured:
    """Measure a figure once, in a process of that revision.

    Raises:
        Failed: it ended with an error, or not in time, or its line cannot be read.
    """
    arguments = ("--only", name, *(_LOADS if name in _LOADED else _USUAL))
    try:
        done = finished([str(side.python), "-c", _START, *arguments], side.root, _MEASURE_S)
    except subprocess.TimeoutExpired:
        raise Failed(f"{name} in {side.root} is not measured after {_MEASURE_S:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        last = said[-1] if said else "it says nothing"
        raise Failed(f"{name} in {side.root} ended with {done.returncode}: {last}")
    return read(done.stdout.decode())


def read(output: str) -> Measured:
    """Returns what a figure's line of JSON says.

    Raises:
        Failed: it is none.
    """
    try:
        told = json.loads(output)
        value = float(told["value"])
        better = Better(told["better"]) if "better" in told else None
        costs = [told[key] for key in ("cpu_us_per_request", "database_cpu_us_per_request") if key in told]
    except (ValueError, KeyError, TypeError):
        raise Failed(f"this is no line of a figure: {output[:200]!r}") from None
    if value <= 0:
        raise Failed(f"a value of {value} cannot be compared")
    return Measured(value, float(sum(costs)) or None, better)
