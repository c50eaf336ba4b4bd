"""Compares this revision with another: each round runs one process of each, in random order (ADR 73).

Only processes that run at nearly the same time are compared. A shared machine's speed changes by a third within a
minute, which affects both sides of a round about equally.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import h2load, side_by_side
from bench.figure import Better, report_progress, round_value
from bench.measurement import Measurement, MeasurementFailed
from bench.processes import ROOT, run_to_end
from bench.ratios import FEWEST_ROUNDS, MOST_ROUNDS, Change, Verdict, classify, estimate_change, has_enough_rounds
from bench.revision import Side, UnusableRevision, build_revision, describe_working_tree, list_figures, resolve_commit

# Options of one process. For figures under load the median of short runs is disturbed less by other work on the machine
# than one long run: with three, log ratios of two processes of one revision spread by 8 % instead of 11 % on a busy
# machine (publish_vs_echo). Nine take 9 s longer a round, of which the stores' and servers' starts are 20.
_DEFAULT_OPTIONS = ("--rounds", "1")
_LOAD_OPTIONS = ("--rounds", "9", "--seconds", "0.5")
_LOAD_FIGURES = frozenset({"hint_vs_echo", "publish_vs_echo", "hint_rows_cpu", "push_accept_per_s"})

MeasureRound = Callable[[random.Random], tuple[Measurement, Measurement]]
"""Measures a round: this revision and the other."""

# hint_rows_cpu, the longest, takes some two minutes on a busy machine.
_MEASURE_S = 600.0

# SIGINT must reach the process even if a shell's & has made us ignore it, because the bench ends its children by it.
_START = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('bench', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class Plan:
    """The parameters of a comparison. After `minutes` a figure is judged by the rounds made so far."""

    seed: int
    minutes: float = 30.0
    clock: Callable[[], float] = field(default=time.monotonic)


@dataclass(frozen=True)
class Comparison:
    """The result of a figure's rounds. The CPU per request is reported but not judged."""

    verdict: Verdict
    now: Sequence[Measurement] = ()
    before: Sequence[Measurement] = ()
    change: Change | None = None
    cpu: Change | None = None
    why: str | None = None

    @property
    def ratio(self) -> float | None:
        """Return the median ratio of now over before, whichever direction is better."""
        if self.change is None:
            return None
        less = self.now[0].better is Better.LESS
        return 1 + (-self.change.middle if less else self.change.middle) / 100

    def as_line(self) -> dict[str, Any]:
        """Return the figure's part of a result line."""
        line: dict[str, Any] = {"verdict": self.verdict, "rounds": len(self.now)}
        if self.why:
            line["why"] = self.why
        if self.now:
            line |= {
                "value": round_value(median(one.value for one in self.now)),
                "value_before": round_value(median(one.value for one in self.before)),
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
    """Compare figures with another revision. Prints a line of JSON for each, and progress on stderr.

    Returns 0; 1 if a figure is worse; 2 if one cannot be measured on both sides, or the revision not at all; 130 if
    interrupted.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(names, revision, plan, root)
    except KeyboardInterrupt:
        report_progress("against: interrupted; what it had started has ended")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(names: Sequence[str], revision: str, plan: Plan, root: Path) -> int:
    try:
        commit, this = resolve_commit(revision, root), describe_working_tree(root)
        other = build_revision(commit, root)
        has = list_figures(other)
    except UnusableRevision as error:
        report_progress(f"against: {error}")
        return 2
    least, most = FEWEST_ROUNDS, MOST_ROUNDS
    report_progress(
        f"against: {commit}, seed {plan.seed}; of each figure {least} to {most} rounds, {plan.minutes:g} min at most"
    )
    verdicts = []
    for name in names:
        if name in has:
            compared = compare(name, _round_of(name, Side(root), other), plan)
        else:
            compared = Comparison(Verdict.ABSENT, why=f"{commit} has no such figure")
        verdicts.append(compared.verdict)
        line = {"name": name, **compared.as_line(), "seed": plan.seed, "here": this, "against": commit}
        print(json.dumps(line), flush=True)
    if {Verdict.ABSENT, Verdict.FAILED} & set(verdicts):
        return 2
    return 1 if Verdict.WORSE in verdicts else 0


def one_after_the_other(mine: Callable[[], Measurement], theirs: Callable[[], Measurement]) -> MeasureRound:
    """Return a round that measures both sides in an order drawn at random."""

    def measure_round(order: random.Random) -> tuple[Measurement, Measurement]:
        got: dict[int, Measurement] = {}
        for side in order.sample((0, 1), 2):
            got[side] = (mine, theirs)[side]()
        return got[0], got[1]

    return measure_round


def compare(name: str, measure_round: MeasureRound, plan: Plan) -> Comparison:
    """Measure rounds until there are enough, and judge them."""
    now: list[Measurement] = []
    before: list[Measurement] = []
    order = random.Random(f"{plan.seed} {name}")
    started = plan.clock()
    found = cpu = None
    while not has_enough_rounds(len(now), found) and (not now or plan.clock() - started < plan.minutes * 60):
        try:
            here, there = measure_round(order)
        except MeasurementFailed as error:
            return Comparison(Verdict.FAILED, now, before, found, cpu, str(error))
        now.append(here)
        before.append(there)
        better = now[0].better
        if better is None:
            return Comparison(Verdict.FAILED, why=f"{name} does not say which way it is better")
        found = estimate_change([(one.value, other.value) for one, other in zip(now, before, strict=True)], better)
        cpu = _cpu_change(now, before)
        _report_round(name, now, before, found, plan.clock() - started)
    return Comparison(classify(found), now, before, found, cpu)


def _cpu_change(now: Sequence[Measurement], before: Sequence[Measurement]) -> Change | None:
    pairs = [(one.cpu_us, other.cpu_us) for one, other in zip(now, before, strict=True)]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return estimate_change(known, Better.LESS) if len(known) == len(pairs) else None


def _report_round(
    name: str, now: Sequence[Measurement], before: Sequence[Measurement], found: Change | None, took: float
) -> None:
    rounds = len(now)
    width = f", {found.middle:+.1f} % ({found.worst:+.1f} to {found.best:+.1f})" if found else ""
    report_progress(
        f"{name}: round {rounds}: {round_value(now[-1].value)} against {round_value(before[-1].value)}{width}"
    )
    if rounds == 1:
        least, most = took * FEWEST_ROUNDS / 60, took * MOST_ROUNDS / 60
        report_progress(f"{name}: a round takes {took:.0f} s: {least:.1f} min at least, {most:.0f} at most")


def _round_of(name: str, here: Side, there: Side) -> MeasureRound:
    if name == side_by_side.FIGURE and h2load.is_installed():
        return partial(side_by_side.measure_round, here, there)
    return one_after_the_other(lambda: measure(here, name), lambda: measure(there, name))


def measure(side: Side, name: str) -> Measurement:
    """Measure a figure once, in a process of that revision.

    Raises:
        MeasurementFailed: it ended with an error, or not in time, or its line cannot be parsed.
    """
    arguments = ("--only", name, *(_LOAD_OPTIONS if name in _LOAD_FIGURES else _DEFAULT_OPTIONS))
    try:
        done = run_to_end([str(side.python), "-c", _START, *arguments], side.root, _MEASURE_S)
    except subprocess.TimeoutExpired:
        raise MeasurementFailed(f"{name} in {side.root} is not measured after {_MEASURE_S:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        last = said[-1] if said else "it says nothing"
        raise MeasurementFailed(f"{name} in {side.root} ended with {done.returncode}: {last}")
    return parse_line(done.stdout.decode())


def parse_line(output: str) -> Measurement:
    """Parse a figure's line of JSON.

    Raises:
        MeasurementFailed: it is not such a line.
    """
    try:
        told = json.loads(output)
        value = float(told["value"])
        better = Better(told["better"]) if "better" in told else None
        costs = [told[key] for key in ("cpu_us_per_request", "database_cpu_us_per_request") if key in told]
    except (ValueError, KeyError, TypeError):
        raise MeasurementFailed(f"this is no line of a figure: {output[:200]!r}") from None
    if value <= 0:
        raise MeasurementFailed(f"a value of {value} cannot be compared")
    return Measurement(value, float(sum(costs)) or None, better)
