"""Replays races and verdicts over recorded grids, beside what others would do: make bench-race.

python tests/benchmarks/bench_race.py [--truth FILE] [--quick]
python tests/benchmarks/bench_race.py --pack DIR --truth FILE    makes FILE of what record_truth.py wrote into DIR

Half of the validation images decide, the other half and other seeds are the truth; every grid is raced from each of its
seeds, with either half. The race is the very function that the driver calls; it reads recorded results in place of
workers'. Its constants were chosen on the grids whose number, counted from 0, does not leave 2 when divided by 3; the
table stands for all grids, and for those left over.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from record_truth import GRIDS, configurations

from orchestrator.board.comparison import compare
from orchestrator.board.estimates import configurations as fold
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan
from orchestrator.plans.trials import Trial
from orchestrator.race.course import Course, run_course
from orchestrator.runs.result import Epoch, Result, Right, window_of
from orchestrator.spec.axes import canonical
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Race, Spec

METRIC = "val_accuracy"
TRUTH = Path(__file__).parent / "truth.parquet"


@dataclass
class Grid:
    """One recorded grid. All arrays: (configuration, seed, ...).

    Attributes:
        accuracy, loss: (..., epoch, half).
        last: (..., image) in what part of the last fifth of the epochs each validation image was right.
    """

    name: str
    number: int
    spec: Spec
    plan: Plan
    accuracy: np.ndarray
    loss: np.ndarray
    last: np.ndarray

    @property
    def epochs(self) -> int:
        return self.accuracy.shape[2]

    def finals(self, half: int) -> np.ndarray:
        """(configuration, seed) scores at the end, of one half of the images."""
        return self.last[:, :, half::2].mean(2)


class Case(NamedTuple):
    """A grid as one seed and one half of the images show it. truth: of each configuration, by all the others."""

    grid: Grid
    seeds: tuple[int, ...]
    half: int
    truth: np.ndarray


def pack(folder: Path, file: Path) -> None:
    """Gather what record_truth.py wrote, of the seeds that all configurations of a grid have."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("grid", "configuration", "seed", "even", "odd", "loss", "last")
    }
    for number, one in enumerate(GRIDS):
        count = len(configurations(one))
        names = [folder / f"{number}-{{}}-{seed}.npz" for seed in range(100)]
        for seed in (s for s, n in enumerate(names) if all(Path(str(n).format(c)).exists() for c in range(count))):
            for configuration in range(count):
                with np.load(folder / f"{number}-{configuration}-{seed}.npz") as found:
                    right = np.unpackbits(found["right"], axis=1, count=int(found["images"]))
                    loss = np.nan_to_num(found["loss"], nan=9.0).T.astype(np.float16)
                last = right[-window_of(len(right), METRIC) :].sum(0).astype(np.uint8).tobytes()
                halves = [right[:, half::2].sum(1).astype(np.uint16) for half in (0, 1)]
                values = (number, configuration, seed, *halves, loss.reshape(-1), last)
                for name, value in zip(columns, values, strict=True):
                    columns[name].append(value)
    types = [pa.int8(), pa.int16(), pa.int8(), pa.list_(pa.uint16()), pa.list_(pa.uint16()), pa.list_(pa.float16())]
    fields = dict(zip(columns, [*types, pa.binary()], strict=True))
    pq.write_table(pa.table(columns, schema=pa.schema(fields)), file, compression="zstd", compression_level=19)


def read(file: Path) -> Iterator[Grid]:
    """The recorded grids."""
    table = pq.read_table(file).to_pandas()
    for number, one in enumerate(GRIDS):
        rows = table[table.grid == number].sort_values(["configuration", "seed"])
        shape = (len(configurations(one)), rows.seed.nunique())
        images = len(rows["last"].iloc[0])
        of_half = (math.ceil(images / 2), images // 2)
        counts = np.stack([np.stack(rows[half].tolist()) for half in ("even", "odd")], -1) / np.array(of_half)
        loss = np.stack(rows.loss.tolist()).astype(np.float32).reshape(*shape, 2, -1).swapaxes(2, 3)
        last = np.stack([np.frombuffer(each, np.uint8) for each in rows["last"]]).reshape(*shape, -1)
        spec, plan = plan_of(one, of_half[0], shape[1])
        window = window_of(one["epochs"], METRIC)
        yield Grid(
            one["name"],
            number,
            spec,
            plan,
            counts.reshape(*shape, -1, 2),
            loss,
            (last / np.float32(window)).astype(np.float32),
        )


def plan_of(one: dict[str, Any], images: int, seeds: int) -> tuple[Spec, Plan]:
    """A recorded grid's spec and plan; validated on so many images."""
    tree = {"name": "a", "data": {"uri": "x"}, "train": {"epochs": one["epochs"]}, "grid": one["axes"], "race": True}
    spec = load_spec(str(tree | {"seeds": list(range(seeds))}))
    own = {axis: 0.0 for axis in one["axes"] if axis in ("dropout", "l2", "hidden")}
    return spec, make_plan(spec, Counts(one["images"][0], images), "index", Networks({"small_cnn": Code("c", own)}))


def cases(grid: Grid, seeds: int = 1, draws: int | None = None) -> Iterator[Case]:
    """Each seed as the first one, or `draws` random choices of so many; with either half of the images."""
    count = grid.accuracy.shape[1]
    random = np.random.default_rng(grid.number)
    chosen = (
        [(s,) for s in range(count)] if draws is None else [random.permutation(count)[:seeds] for _ in range(draws)]
    )
    for used in chosen:
        held = [s for s in range(count) if s not in used]
        for half in (0, 1):
            yield Case(grid, tuple(map(int, used)), half, grid.finals(1 - half)[:, held].mean(1))


def race(case: Case, **changes: Any) -> tuple[Course, dict[str, Result]]:
    """Race a case as the driver would, with recorded results in place of workers'."""
    grid, seeds = case.grid, case.seeds
    spec = grid.spec.model_copy(update={"race": Race(**changes), "seeds": list(range(len(seeds)))})
    plan = Plan(spec.axes, (), tuple(t for t in grid.plan.trials if t.seed < len(seeds)), grid.plan.counts, {})
    results: dict[str, Result] = {}
    while (course := run_course(spec, plan, results)) and course.legs:
        for leg in course.legs:
            results[leg.id] = result_of(case, leg)
    assert course is not None
    return course, results


def place_of(grid: Grid, trial: Trial) -> int:
    """Its configuration's number."""
    place = 0
    for axis, values in grid.spec.grid.items():
        place = place * len(values) + [canonical(v) for v in values].index(canonical(trial.values[axis]))
    return place


def result_of(case: Case, leg: Trial) -> Result:
    """The result that a leg had when it was recorded, on one half of the images."""
    grid, half = case.grid, case.half
    place, seed = place_of(grid, leg), case.seeds[leg.seed]
    accuracy, loss = grid.accuracy[place, seed, :, half], grid.loss[place, seed, :, half]
    if not accuracy.any():  # it diverged
        return Result.model_construct(trial_id=leg.id, status="failed", epochs=leg.epochs, history=[], right={})
    history = [
        Epoch.model_construct(
            epoch=i + 1, metrics={METRIC: float(accuracy[i]), "val_loss": float(loss[i])}, train_s=1.0, validate_s=0.0
        )
        for i in range(leg.epochs)
    ]
    right = {}
    if leg.epochs == grid.epochs:
        window = window_of(grid.epochs, METRIC)
        counts = np.rint(grid.last[place, seed, half::2] * window).astype(np.uint8).tobytes()
        right[leg.epochs] = Right.of(leg.epochs, window, counts)
    return Result.model_construct(trial_id=leg.id, status="ok", epochs=leg.epochs, history=history, right=right)


# --- who is named, and for how many epochs ----------------------------------------------------------------------------

Chooser = Callable[[Case], tuple[float, list[int]]]  # -> share of the epochs, configurations of which the best is named


def full(case: Case) -> tuple[float, list[int]]:
    return 1.0, list(range(len(case.truth)))


def raced(**changes: Any) -> Chooser:
    def choose(case: Case) -> tuple[float, list[int]]:
        course, results = race(case, **changes)
        epochs = case.grid.epochs
        ended = {trial_id for trial_id, result in results.items() if result.status == "ok" and result.epochs == epochs}
        trials = [trial for trial in case.grid.plan.trials if trial.id in ended]
        return sum(course.granted.values()) / len(case.truth) / epochs, [place_of(case.grid, t) for t in trials]

    return choose


def subset(share: float) -> Chooser:
    random = np.random.default_rng(0)

    def choose(case: Case) -> tuple[float, list[int]]:
        count = round(share * len(case.truth))
        return share, list(random.choice(len(case.truth), count, replace=False))

    return choose


def top(count: int, epochs: int) -> Chooser:
    """The best so many after so many epochs, in full."""

    def choose(case: Case) -> tuple[float, list[int]]:
        accuracy = case.grid.accuracy[:, case.seeds[0], epochs - 1, case.half]
        order = np.argsort(-accuracy, kind="stable")[:count]
        trials, whole = len(accuracy), case.grid.epochs
        return (trials * epochs + count * (whole - epochs)) / trials / whole, list(order)

    return choose


def asha(first: int, factor: int, order: int) -> Chooser:
    """Asynchronous halving as schedulers do it: whoever is not among the best 1/factor so far stops for good."""

    def choose(case: Case) -> tuple[float, list[int]]:
        accuracy = case.grid.accuracy[:, case.seeds[0], :, case.half]
        whole, used, ended = case.grid.epochs, 0, []
        steps = [first * factor**i for i in range(20) if first * factor**i < whole]
        seen: dict[int, list[float]] = {step: [] for step in steps}
        for place in np.random.default_rng(order).permutation(len(accuracy)):
            for step in steps:
                seen[step].append(accuracy[place, step - 1])
                if accuracy[place, step - 1] < np.quantile(seen[step], 1 - 1 / factor):
                    used += step
                    break
            else:
                used += whole
                ended.append(int(place))
        return used / len(accuracy) / whole, ended

    return choose


def judge(grids: list[Grid], choose: Chooser, last_epoch: bool = False) -> np.ndarray:
    """(cases, 4): share of the epochs, regret on the same seed and images, true regret, that of the full grid."""
    rows = []
    for case in itertools.chain.from_iterable(map(cases, grids)):
        finals = case.grid.finals(case.half)[:, case.seeds[0]]
        best = int(finals.argmax())
        share, candidates = choose(case)
        figures = case.grid.accuracy[:, case.seeds[0], -1, case.half] if last_epoch else finals
        named = max(candidates, key=lambda place: figures[place]) if candidates else 0
        truth = case.truth
        rows.append((share, finals[best] - finals[named], truth.max() - truth[named], truth.max() - truth[best]))
    return np.array(rows)


def say_choosers(grids: list[Grid], orders: int) -> None:
    print(f"{'named by':46} {'epochs':>7} {'regret: median':>15} {'95%':>6} {'true regret':>12} {'full grid':>10}")
    rows: list[tuple[str, list[np.ndarray]]] = [
        ("full grid, accuracy of the last epoch", [judge(grids, full, last_epoch=True)]),
        ("full grid, mean of the last fifth", [judge(grids, full)]),
        ("race", [judge(grids, raced())]),
        ("race with guards", [judge(grids, raced(guard="all"))]),
        ("race, a third goes on at 3 and 9", [judge(grids, raced(first=3, factor=3.0))]),
        ("race, open points trained on", [judge(grids, raced(share=1.0))]),
        ("a random half in full", [judge(grids, subset(0.5))]),
        ("one epoch for all, the best 6 in full", [judge(grids, top(6, 1))]),
        ("one epoch for all, the best 9 in full", [judge(grids, top(9, 1))]),
        ("four epochs for all, the best 9 in full", [judge(grids, top(9, 4))]),
        (f"ASHA, 4 epochs, half, {orders} orders", [judge(grids, asha(4, 2, i)) for i in range(orders)]),
        (f"ASHA, 1 epoch, a quarter, {orders} orders", [judge(grids, asha(1, 4, i)) for i in range(orders)]),
    ]
    for name, parts in rows:
        found = np.concatenate(parts)
        share, regret, true, whole = found.T
        print(
            f"{name:46} {share.mean():7.0%} {np.median(regret):15.4f} {np.quantile(regret, 0.95):6.4f} "
            f"{true.mean():12.4f} {whole.mean():10.4f}"
        )


# --- what is said of them ---------------------------------------------------------------------------------------------


def say_beaten(grids: list[Grid]) -> None:
    """How often a point that is among the best is called beaten, and how good what was stopped is."""
    near = called = stopped = beaten = races = best_called = better = 0
    of_value: dict[tuple[str, str, str], list[int]] = {}
    for case in itertools.chain.from_iterable(map(cases, grids)):
        course, _ = race(case)
        trials = {trial.id: trial for trial in case.grid.plan.trials}
        out = {place_of(case.grid, trials[i]): stop.beaten for i, stop in course.stopped.items()}
        finals = case.grid.finals(case.half)[:, case.seeds[0]]
        ended = [p for p in range(len(case.truth)) if p not in out and case.grid.accuracy[p, case.seeds[0]].any()]
        named = max(ended, key=lambda place: finals[place])
        races += 1
        stopped += len(out)
        beaten += sum(out.values())
        best_called += out.get(int(case.truth.argmax()), False)
        better += any(case.truth[place] > case.truth[named] + 0.01 for place in out)
        for place in np.flatnonzero(case.truth >= case.truth.max() - 0.005):
            near += 1
            called += out.get(int(place), False)
            for axis, value in configurations(GRIDS[case.grid.number])[place].items():
                counts = of_value.setdefault((case.grid.name, axis, str(value)), [0, 0])
                counts[0] += out.get(int(place), False)
                counts[1] += 1
    worst = max(((c / n, key) for key, (c, n) in of_value.items() if n >= 20), default=(0.0, None))
    print(f"stopped: {stopped / races:.1f} points a race, {beaten / stopped:.0%} of them beaten")
    print(f"truly best, or within 0.5 points of it, and called beaten: {called / near:.2%} of {near}")
    print(f"the truly best called beaten: {best_called / races:.2%} of {races} races; worst value of an axis: {worst}")
    print(f"something that was stopped is better than the named one by over a point: {better / races:.1%} of races")


def ranked_of(case: Case, places: list[int], seeds: dict[int, int]) -> Any:
    """Configurations of these places, each with its first so many seeds of the case, on its half of the images."""
    rows, right = [], {}
    for place in places:
        for number in range(seeds[place]):
            images = case.grid.last[place, case.seeds[number], case.half :: 2]
            name = f"{place}-{number}"
            right[name] = images
            rows.append(
                {"place": place, "seed": number, "point_id": name, "trial_id": name, "status": "ok", "train_s": None}
                | {"score": float(images.mean()), METRIC: float(images.mean()), "epochs_trained": case.grid.epochs}
            )
    return fold(rows, ["place"], METRIC, right)


class Verdicts:
    """Counts how often verdicts held."""

    def __init__(self) -> None:
        self.held = self.in_set = self.boards = 0
        self.bounds: list[float] = []
        self.shares: list[float] = []

    def add(self, case: Case, ranked: Any, looks: int, may_win: set[int], share: float) -> None:
        found = compare(ranked, METRIC, looks)
        named = ranked[0].values["place"]
        together = {r.values["place"] for r, c in zip(ranked, found.each, strict=True) if c.may_be_best} | may_win
        costs = found.costs if found.costs is not None else math.inf
        self.boards += 1
        self.held += case.truth.max() - case.truth[named] <= costs + 1e-9
        self.in_set += int(case.truth.argmax()) in together
        self.bounds.append(costs)
        self.shares.append(share)

    def say(self, name: str) -> None:
        print(
            f"{name:46} {np.mean(self.shares):7.0%} {self.in_set / self.boards:8.1%} {self.held / self.boards:8.1%} "
            f"{np.median(self.bounds):8.4f} {self.boards:7}"
        )


def say_verdicts(grids: list[Grid], draws: int) -> None:
    print(f"{'verdict of':46} {'epochs':>7} {'in set':>8} {'in bound':>8} {'bound':>8} {'boards':>7}")
    every: list[Verdicts] = []
    for seeds in (3, 5):
        whole = Verdicts()
        for case in itertools.chain.from_iterable(cases(grid, seeds, draws) for grid in grids):
            places = [p for p in range(len(case.truth)) if case.grid.accuracy[p, list(case.seeds)].any((1, 2)).all()]
            whole.add(case, ranked_of(case, places, dict.fromkeys(places, seeds)), 1, set(), float(seeds))
        whole.say(f"the full grid, {seeds} seeds")
        every.append(whole)
    for contenders in (4, 8):
        some = Verdicts()
        for case in itertools.chain.from_iterable(cases(grid, 5, draws) for grid in grids):
            course, results = race(case, contenders=contenders)
            trials = [t for t in case.grid.plan.trials if results.get(t.id) and results[t.id].status == "ok"]
            had: dict[int, int] = {}
            for trial in trials:
                if results[trial.id].epochs == case.grid.epochs:
                    place = place_of(case.grid, trial)
                    had[place] = had.get(place, 0) + 1
            first = {t.id: t for t in case.grid.plan.trials if t.seed == 0}
            may_win = {place_of(case.grid, first[i]) for i, s in course.stopped.items() if i in first and not s.beaten}
            share = sum(course.granted.values()) / len(case.truth) / case.grid.epochs
            some.add(case, ranked_of(case, list(had), had), course.looks, may_win, share)
        some.say(f"a race, up to 5 seeds for {contenders} contenders")
        every.append(some)
    boards = sum(each.boards for each in every)
    in_set, held = sum(each.in_set for each in every) / boards, sum(each.held for each in every) / boards
    print(f"calibration: the best was named in {in_set:.1%}, the bound held in {held:.1%} of {boards:,} boards")


def say_equals(grids: list[Grid]) -> None:
    """Seeds of one configuration dealt out as several: how often are some called behind?"""
    for seeds, equals in ((2, 4), (3, 3), (2, 2), (4, 2)):
        boards = ahead = 0
        for grid in grids:
            count = grid.accuracy.shape[1]
            random = np.random.default_rng(grid.number)
            for place, half in itertools.product(range(grid.accuracy.shape[0]), (0, 1)):
                if count < seeds * equals or not grid.accuracy[place].any((1, 2)).all():
                    continue
                dealt = random.permutation(count)[: seeds * equals].reshape(equals, seeds)
                rows, right = [], {}
                for number, own in enumerate(dealt):
                    for s, seed in enumerate(own):
                        name = f"{number}-{s}"
                        right[name] = grid.last[place, seed, half::2]
                        value = float(right[name].mean())
                        rows.append(
                            {"place": number, "seed": s, "point_id": name, "trial_id": name, "status": "ok"}
                            | {"score": value, METRIC: value, "epochs_trained": 1, "train_s": None}
                        )
                each = compare(fold(rows, ["place"], METRIC, right), METRIC).each
                boards += 1
                ahead += not all(one.may_be_best for one in each)
        print(
            f"one configuration as {equals}, {seeds} seeds each: some called behind in {ahead / boards:.2%} of {boards}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=Path, default=TRUTH)
    parser.add_argument("--pack", type=Path, help="make the truth file of this folder")
    parser.add_argument("--quick", action="store_true", help="fewer draws, in a minute")
    args = parser.parse_args()
    if args.pack:
        pack(args.pack, args.truth)
        return
    grids = list(read(args.truth))
    for name, chosen in (
        ("all grids", grids),
        ("the third that chose nothing", [g for g in grids if g.number % 3 == 2]),
    ):
        trials = sum(grid.accuracy.shape[0] * grid.accuracy.shape[1] for grid in chosen)
        print(f"\n== {name}: {len(chosen)}, {trials:,} trials ==")
        say_choosers(chosen, 2 if args.quick else 20)
        print()
        say_beaten(chosen)
        print()
        say_verdicts(chosen, 1 if args.quick else 6)
        print()
        say_equals(chosen)


if __name__ == "__main__":
    main()
