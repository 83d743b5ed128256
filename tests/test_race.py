"""race: who is compared when, who is stopped and why, who gets more seeds; the same whichever result comes first."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.board.table import build_board
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan
from orchestrator.plans.trials import Trial
from orchestrator.race.course import Course, run_course
from orchestrator.race.describe import describe_race, race_tree, sum_up
from orchestrator.race.rungs import rungs
from orchestrator.runs.result import Epoch, Result, Right, window_of
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Race, Spec

GRID = "{name: a, data: {uri: x}, race: true, train: {epochs: 20}, grid: {batch_size: [5, 10, 16, 32], dropout: [0.0, 0.3, 0.6]}}"  # noqa: E501
IMAGES = 200


def planned(*overrides: str) -> tuple[Spec, Plan]:
    spec = load_spec(GRID, overrides)
    return spec, make_plan(spec, Counts(400, IMAGES), "i", Networks({"small_cnn": Code("c", {"dropout": 0.0})}))


class Recorded:
    """Trials whose epochs are drawn once. noise: of an epoch's accuracy. fails: ids of those that fail."""

    def __init__(self, plan: Plan, seed: int = 0, noise: float = 0.02, fails: frozenset[int] = frozenset()) -> None:
        draw = np.random.default_rng(seed)
        self.fails = {trial.id for place, trial in enumerate(plan.trials) if place in fails}
        self.right = {}
        for trial in plan.trials:
            top = 0.85 - 0.1 * trial.values["dropout"] + draw.normal(0, noise)
            top -= 0.5 * (trial.values["dropout"] == 1.0)  # then nothing is left
            curve = top - 0.3 * np.exp(-np.arange(1, trial.epochs + 1) / 4) + draw.normal(0, noise, trial.epochs)
            curve = np.round(curve, 2)  # so that there are ties
            self.right[trial.id] = draw.random(IMAGES) < curve[:, None]

    def result(self, leg: Trial) -> Result:
        if leg.id in self.fails:
            return Result(trial_id=leg.id, status="failed", epochs=leg.epochs, error="out of luck")
        right = self.right[leg.id][: leg.epochs]
        history = [
            Epoch(
                epoch=i + 1,
                metrics={"loss": 0.5, "accuracy": 0.5, "val_loss": 1 - each.mean(), "val_accuracy": each.mean()}
                | {"val_f1": each[::2].mean()},
                train_s=1.0,
                images_per_s=1.0,
            )
            for i, each in enumerate(right)
        ]
        window = window_of(leg.epochs, "val_accuracy")
        counts = Right.of(leg.epochs, window, right[-window:].sum(0).astype(np.uint8).tobytes())
        return Result(trial_id=leg.id, status="ok", epochs=leg.epochs, history=history, right={leg.epochs: counts})

    def run(self, spec: Spec, plan: Plan, workers: int = 1, order: random.Random | None = None) -> Course:
        """Train what is granted with so many workers, which take as long as chance has it, until nothing is left."""
        results: dict[str, Result] = {}
        running: list[Trial] = []
        self.results = results
        while True:
            course = run_course(spec, plan, results)
            busy = {leg.id for leg in running}
            running += [leg for leg in course.legs if leg.id not in busy][: workers - len(running)]
            if not running:
                return course
            leg = running.pop(order.randrange(len(running)) if order else 0)
            results[leg.id] = self.result(leg)


@pytest.mark.parametrize(
    ("race", "milestones", "expected"),
    [
        (Race(), {20}, (4, 8)),
        (Race(), {50}, (4, 8, 16, 32)),
        (Race(first=3, factor=3.0), {27}, (3, 9)),
        (Race(), {10, 20, 30}, (4, 10, 20)),  # a rung near a milestone is moved there
        (Race(first=10), {10}, ()),
    ],
)
def test_rungs_are_absolute_and_meet_milestones(race: Race, milestones: set[int], expected: tuple[int, ...]):
    """First, twice as many, and so on, well before the end."""
    assert rungs(race, milestones) == expected


def test_a_grid_that_grows_in_epochs_keeps_its_rungs():
    """It gains rungs at the end alone."""
    for epochs in range(6, 200):
        short, long = rungs(Race(), {epochs}), rungs(Race(), {epochs + 40})
        assert long[: len(short)] == short


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.01, 0.05]),
    fails=st.frozensets(st.integers(0, 35), max_size=6),
    guard=st.sampled_from(["none", "all"]),
    share=st.sampled_from([0.3, 0.5, 1.0]),
)
def test_workers_and_the_order_of_results_decide_nothing(seed, noise, fails, guard, share):
    """Random curves, ties and failures: 1, 2, 7 and 100 workers of any speed grant, stop and say the same."""
    spec, plan = planned("seeds=[0, 1, 2]", f"race={{guard: {guard}, share: {share}, contenders: 3}}")
    recorded = Recorded(plan, seed, noise, fails)
    found = []
    for workers in (1, 2, 7, 100):
        course = recorded.run(spec, plan, workers, random.Random(seed + workers))
        stopped = {trial_id: stop.because for trial_id, stop in course.stopped.items()}
        board = build_board(spec, plan, recorded.results, (), stopped, {"looks": course.looks})
        found.append((course, board.to_pylist()))
    assert all(each == found[0] for each in found[1:])


def test_what_early_stopping_has_ended_is_at_its_end():
    """At every rung: it is never granted more, and its row is one that is ok."""
    spec, plan = planned("race.share=0.1")
    recorded = Recorded(plan, noise=0.001)
    best = max(plan.trials, key=lambda trial: recorded.right[trial.id][:3].mean())
    result = recorded.result(best.leg(3)).model_copy(update={"epochs": 20})
    results = {best.id: result}
    while course := run_course(spec, plan, results):
        assert best.id not in {leg.id for leg in course.legs}
        if not course.legs:
            break
        results |= {leg.id: recorded.result(leg) for leg in course.legs}
    board = build_board(spec, plan, results, (), {trial_id: s.because for trial_id, s in course.stopped.items()})
    assert {row["trial_id"]: row["status"] for row in board.to_pylist()}[best.id] == "ok"


def test_what_is_at_its_end_from_a_grid_without_a_race_counts():
    """However it stood at a rung: it is a finisher, may be a contender, and nobody calls it stopped."""
    spec, plan = planned("seeds=[0, 1, 2]", "race={share: 0.1, contenders: 3}")
    recorded = Recorded(plan, noise=0.001)
    late = max(plan.trials, key=lambda trial: trial.values["dropout"] - trial.seed)
    recorded.right[late.id][10:] = True  # bad at both rungs, and the best of all at the end
    results = {late.id: recorded.result(late)}
    while (course := run_course(spec, plan, results)).legs:
        results |= {leg.id: recorded.result(leg) for leg in course.legs}
    assert late.id not in course.stopped
    assert [t.id in course.granted for t in plan.trials if t.values == late.values] == [True] * 3


def test_a_grid_that_grew_asks_what_ended_early_once_more():
    """Its result is of fewer epochs than the point; the next leg ends at once, and the point is ok."""
    spec, plan = planned("train.epochs=40", "race.share=0.1")
    recorded = Recorded(plan)
    early = plan.trials[0]
    results = {early.id: recorded.result(early.leg(7)).model_copy(update={"epochs": 20})}
    seen = set()
    while (course := run_course(spec, plan, results)).legs:
        for leg in course.legs:
            seen.add((leg.id, leg.epochs))
            short = leg.id == early.id
            done = recorded.result(early.leg(7)).model_copy(update={"epochs": 40}) if short else recorded.result(leg)
            results[leg.id] = done
    assert (early.id, 40) in seen or early.id in course.stopped
    assert {row["status"] for row in board_of_course(spec, plan, results, course)} <= {"ok", "stopped"}


def board_of_course(spec: Spec, plan: Plan, results: dict[str, Result], course: Course) -> list[dict]:
    stopped = {trial_id: stop.because for trial_id, stop in course.stopped.items()}
    return build_board(spec, plan, results, (), stopped).to_pylist()


def test_a_leg_that_fails_leaves_the_shorter_point_as_it_was():
    """In a race over epochs, the milestone before is a row that is ok, with its figures."""
    spec, plan = planned("grid.epochs=[10, 20]")
    recorded = Recorded(plan)
    trial = plan.trials[0]
    short = recorded.result(trial.leg(10))
    results = {trial.id: short.model_copy(update={"status": "failed", "epochs": 20, "error": "out of luck"})}
    rows = {row["epochs"]: row for row in build_board(spec, plan, results).to_pylist() if row["trial_id"] == trial.id}
    assert (rows[10]["status"], rows[20]["status"]) == ("ok", "failed")
    assert rows[10]["val_accuracy"] == pytest.approx(short.history[9].metrics["val_accuracy"])
    assert (rows[10]["error"], rows[20]["error"]) == (None, "out of luck")


def test_where_the_whole_first_seed_fails_nothing_is_left():
    """The other seeds are stopped, and say why."""
    spec, plan = planned("seeds=[0, 1, 2]")
    fails = frozenset(place for place, trial in enumerate(plan.trials) if trial.seed == 0)
    course = Recorded(plan, fails=fails).run(spec, plan)
    assert {stop.because for stop in course.stopped.values()} == {"no trial of seed 0 is ok"}
    assert len(course.stopped) == 24


def test_a_race_without_rungs_is_planned_and_run():
    """Too few epochs to compare any before the end: all are trained."""
    spec, plan = planned("train.epochs=6", "race={first: 10}")
    assert describe_race(spec, plan)[0] == "  race    too few epochs to compare any before: 72 of 72 epochs for seed 0"
    assert race_tree(spec, plan)["rungs"] == ()
    assert not Recorded(plan).run(spec, plan).stopped


def test_half_goes_on_at_each_rung():
    """At least eight, or a third; the others are stopped, with their place, and every epoch granted is trained."""
    spec, plan = planned("race.share=0.1", "train.epochs=40")
    recorded = Recorded(plan)
    course = recorded.run(spec, plan)
    assert course.rungs == (4, 8, 16)
    assert sorted(stop.after for stop in course.stopped.values()) == [4] * 6 + [8] * 2
    ended = {trial.id for trial in plan.trials} - course.stopped.keys()
    assert {trial_id: result.epochs for trial_id, result in recorded.results.items()} == course.granted
    assert {course.granted[trial_id] for trial_id in ended} == {40}
    assert all("others were ahead" in stop.because or stop.beaten for stop in course.stopped.values())


def test_the_best_of_every_guarded_value_goes_on():
    """However bad it is."""
    spec, plan = planned("race={share: 0.1, guard: [dropout]}", "grid.dropout=[0.0, 0.01, 0.02, 1.0]")
    course = Recorded(plan, noise=0.001).run(spec, plan)
    ended = [trial.values["dropout"] for trial in plan.trials if trial.id not in course.stopped]
    assert ended.count(1.0) == 1


def test_what_is_kept_is_never_stopped():
    """race.keep names it, as exclude would."""
    spec, plan = planned("race={share: 0.1, keep: [{dropout: 0.6}]}")
    course = Recorded(plan, noise=0.001).run(spec, plan)
    assert not [t for t in plan.trials if t.id in course.stopped and t.values["dropout"] == 0.6]


def test_open_points_are_trained_on_within_the_share_and_all_with_one():
    """Beaten ones never; with a share of 1, nothing that may still win is left."""
    used = []
    for share in (0.1, 0.7, 1.0):
        spec, plan = planned(f"race.share={share}")
        course = Recorded(plan).run(spec, plan)
        used.append(sum(course.granted.values()))
        assert used[-1] <= max(120, share * 240), "the rungs alone take half"
    assert used == sorted(used)
    assert used[0] < used[-1]
    assert all(stop.beaten for stop in course.stopped.values())


def test_a_beaten_point_is_said_to_be_so():
    """With what it would have to gain, and what others gained."""
    spec, plan = planned("grid.dropout=[0.0, 0.1, 1.0]", "race.share=1.0")
    course = Recorded(plan, noise=0.002).run(spec, plan)
    beaten = [t for t in plan.trials if (stop := course.stopped.get(t.id)) and stop.beaten]
    assert {trial.values["dropout"] for trial in beaten} == {1.0}
    assert "would have to gain 0." in course.stopped[beaten[0].id].because
    assert any(line.startswith("stopped: ") for line in sum_up(course, spec, plan))


def test_only_contenders_get_more_seeds():
    """The others' further seeds are rows that say so, and cost nothing."""
    spec, plan = planned("seeds=[0, 1, 2, 3, 4]", "race={contenders: 3, enough: 0.0}")
    course = Recorded(plan).run(spec, plan)
    more = {trial.id for trial in plan.trials if trial.seed and trial.id in course.granted}
    values = {tuple(trial.values.items()) for trial in plan.trials if trial.id in more}
    assert len(values) == 3
    assert len(more) in (6, 12)  # in blocks, up to three and up to five seeds
    assert course.looks == 2
    others = [course.stopped[t.id] for t in plan.trials if t.seed and t.id not in more]
    assert {stop.after for stop in others} == {0}


def test_a_race_without_trials_to_spare_is_none():
    """It says so, and everything is trained."""
    spec, plan = planned("grid.dropout=[0.0]")
    assert run_course(spec, plan, {}) is None
    assert describe_race(spec, plan) == [
        "  race    no race: it takes 6 trials of 6 epochs, and there are 4 of 20; all are trained in full"
    ]


def test_the_plan_says_how_many_epochs_a_race_takes():
    """What it grants lies between the two."""
    spec, plan = planned("seeds=[0, 1, 2]")
    first, then = describe_race(spec, plan)
    assert first == "  race    compared after 4, 8 epochs: 120 of 240 epochs for seed 0"
    assert then == "  race    then 2 more seeds for at most 8 configurations: at most 320 epochs"


@pytest.mark.parametrize("metric", ["val_loss", "val_f1"])
def test_any_metric_is_raced(metric: str):
    """By the same places; nothing is called beaten, as its error is not known; the best by it gets more seeds."""
    spec, plan = planned(f"metric={metric}", "race.share=0.1", "seeds=[0, 1, 2]")
    recorded = Recorded(plan)
    course = recorded.run(spec, plan)
    assert course.stopped
    assert not any(stop.beaten for stop in course.stopped.values())
    rows = build_board(spec, plan, recorded.results, (), dict.fromkeys(course.stopped, "stopped")).to_pylist()
    first = [row for row in rows if row["seed"] == 0 and row["status"] == "ok"]
    best = max(first, key=lambda row: row["score"] * (1 if metric == "val_f1" else -1))
    values = {axis: best[axis] for axis in ("batch_size", "dropout")}
    assert {row["status"] for row in rows if values.items() <= row.items()} == {"ok"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("race.first=0", "race.first must be a whole number of at least 1, got 0"),
        ("race.factor=1", "race.factor must be a number above 1, got 1"),
        ("race={frist: 3}", "race.frist is not a known key (did you mean first?)"),
        ("race.share=2", "race.share must be a number of at most 1, got 2"),
        ("race={keep: [{colour: red}]}", "race.keep[0].colour must be an axis of the grid other than epochs"),
        (
            "race={guard: dropuot}",
            "race.guard[0] must be an axis of the grid other than epochs",
        ),
        ("race={guard: [epochs]}", "race.guard[0] must be an axis of the grid other than epochs (batch_size, dropout)"),
        (
            "race={keep: [{dropout: 0.7}]}",
            "race.keep[0].dropout must be a value that a point has (0, 0.3, 0.6)",
        ),
    ],
)
def test_a_wrong_race_is_one_line(override: str, message: str):
    """What it must be, and what it was."""
    with pytest.raises(BadInput) as error:
        planned(override)
    assert message in str(error.value)


def test_true_and_false_are_a_race_and_none():
    """As people write them."""
    assert planned("race=true")[0].race == Race()
    assert planned("race=false")[0].race is None
    assert math.isclose(Race().share, 0.5)
