"""Describe: what a race will train, what it granted, and what it may have missed, for people and as JSON. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from orchestrator.plans.points import Plan
from orchestrator.plans.trials import Trial
from orchestrator.race.course import Course, why_no_race
from orchestrator.race.rungs import guarded_values, quota, rungs
from orchestrator.spec.sections import Spec
from orchestrator.words import plural

# make bench-race counts it
RISK = "in 13% of replays of recorded grids some such point was better than the best by over a point"


def describe_race(spec: Spec, plan: Plan) -> list[str]:
    """Lines on what a race trains, for the plan; none where the spec asks for none."""
    if spec.race is None:
        return []
    if why := why_no_race(spec, plan):
        return [f"  race    {why}"]
    steps, least, most, whole = epochs_of_race(spec, plan)
    compared = (
        f"compared after {', '.join(map(str, steps))} epochs" if steps else "too few epochs to compare any before"
    )
    epochs = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    lines = [f"  race    {compared}: {epochs} of {whole:,} epochs for seed {spec.seeds[0]}"]
    if more := len(spec.draws) - 1:
        last = max(trial.epochs for trial in plan.trials)
        lines.append(
            f"  race    then {plural(more, 'more seed')} for at most {_most_contenders(spec, plan)} configurations: "
            f"at most {_most_contenders(spec, plan) * more * last:,} epochs"
        )
    return lines


def epochs_of_race(spec: Spec, plan: Plan) -> tuple[tuple[int, ...], int, int, int]:
    """The rungs; and how many epochs the first seed takes at least, at most, and if all were trained."""
    assert spec.race is not None
    trials = [trial for trial in plan.trials if trial.draw == spec.draws[0]]
    steps = rungs(spec.race, {milestone for trial in trials for milestone in trial.milestones})
    last, whole = max(trial.epochs for trial in trials), sum(trial.epochs for trial in trials)
    guarded = sum(map(len, guarded_values(spec.race, spec, trials).values()))
    least = most = len(trials) * steps[0] if steps else whole
    for number, (rung, until) in enumerate(zip(steps, [*steps[1:], last][: len(steps)], strict=True)):
        on = quota(spec.race, len(trials), number)
        least += min(on, len(trials)) * (until - rung)
        most += min(on + guarded, len(trials)) * (until - rung)
    return steps, min(least, whole), min(max(most, int(spec.race.share * whole)), whole), whole


def left_of_race(trials: Sequence[Trial], spec: Spec, plan: Plan, course: Course) -> tuple[Trial, ...]:
    """Of these trials those that may still be trained, each with its part of the epochs that are left at most."""
    _, _, most, _ = epochs_of_race(spec, plan)
    most += _most_contenders(spec, plan) * max(trial.epochs for trial in plan.trials) * (len(spec.draws) - 1)
    may = [trial for trial in trials if trial.id not in course.stopped]
    left = most - sum(course.granted.values()) + sum(leg.epochs for leg in course.legs)
    part = min(1.0, max(0, left) / max(1, sum(trial.epochs for trial in may)))
    return tuple(replace(trial, forecast_s=part * trial.forecast_s) for trial in may) if course.legs else ()


def _most_contenders(spec: Spec, plan: Plan) -> int:
    assert spec.race is not None
    return min(spec.race.contenders, sum(trial.draw == spec.draws[0] for trial in plan.trials))


def race_tree(spec: Spec, plan: Plan) -> dict[str, Any] | None:
    """What a race trains, as plain values; None where there is none."""
    if spec.race is None or why_no_race(spec, plan):
        return None
    steps, least, most, whole = epochs_of_race(spec, plan)
    return {"rungs": steps, "epochs_at_least": least, "epochs_at_most": most, "epochs_of_first_seed": whole}


def sum_up(course: Course, spec: Spec, plan: Plan) -> list[str]:
    """What the race has saved, and what it may have missed. One line each."""
    first = {trial.id: trial for trial in plan.trials if trial.draw == spec.draws[0]}
    stopped = {trial_id: stop for trial_id, stop in course.stopped.items() if trial_id in first}
    used, whole = sum(course.granted.values()), sum(trial.epochs for trial in plan.trials)
    lines = [f"race: {used:,} of {whole:,} epochs were granted{' so far' if course.legs else ''}"]
    if stopped:
        after = " or ".join(map(str, sorted({stop.after for stop in stopped.values()})))
        line = f"stopped: {len(stopped)} of {plural(len(first), 'trial')} of seed {spec.seeds[0]} after {after} epochs"
        if beaten := sum(stop.beaten for stop in stopped.values()):
            line += f", {beaten} of them beaten"
        if (may_win := len(stopped) - beaten) and not course.legs:
            line += f"; {may_win} may still win: --set race.share=1 trains these to the end; {RISK}"
        lines.append(line)
    return lines


def describe_course(course: Course) -> dict[str, Any]:
    """The course as plain values, for JSON."""
    return {
        "rungs": course.rungs,
        "granted": dict(course.granted),
        "stopped": {trial_id: asdict(stop) for trial_id, stop in course.stopped.items()},
        "to_train": {leg.id: leg.epochs for leg in course.legs},
    }
