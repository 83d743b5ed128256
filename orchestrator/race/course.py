"""Course: spec, plan and results -> what is granted now, and what was stopped and why. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.board.comparison import Comparison, compare
from orchestrator.board.estimates import Configuration, estimate
from orchestrator.metrics import METRICS
from orchestrator.plans.points import Plan
from orchestrator.plans.trials import Trial
from orchestrator.race.rungs import Runner, divide, guarded_values, is_kept, quota, rungs, why_beaten
from orchestrator.runs.result import Result, restores_best
from orchestrator.spec.axes import canonical
from orchestrator.spec.sections import Race, Spec
from orchestrator.words import plural

_LEAST_TRIALS, _LEAST_EPOCHS = 6, 6
_BLOCKS = (3, 5, 10)  # how many seeds contenders have when they are compared
_LEAST_CONTENDERS = 3  # one seed's images alone cannot name a winner


@dataclass(frozen=True, slots=True)
class Stop:
    """A trial that gets no more epochs. Attributes: after: how many it was granted. beaten: it can no longer win."""

    after: int
    because: str
    beaten: bool


@dataclass(frozen=True)
class Course:
    """How a race stands.

    Attributes:
        legs: What may be trained now, in the order in which it starts; empty when the race is over.
        granted: Trial id -> epochs granted so far.
        stopped: Trial id -> why it gets no more.
        rungs: After how many epochs trials are compared.
        looks: How many times contenders are compared at most.
    """

    legs: tuple[Trial, ...]
    granted: Mapping[str, int]
    stopped: Mapping[str, Stop]
    rungs: tuple[int, ...]
    looks: int


def why_no_race(spec: Spec, plan: Plan) -> str | None:
    """Why the race that the spec asks for is none; None if it is one."""
    trials = sum(trial.draw == spec.draws[0] for trial in plan.trials)
    epochs = max(trial.epochs for trial in plan.trials)
    if spec.race and (trials < _LEAST_TRIALS or epochs < _LEAST_EPOCHS):
        return (
            f"no race: it takes {_LEAST_TRIALS} trials of {_LEAST_EPOCHS} epochs, and there are {trials} of {epochs}; "
            f"all are trained in full"
        )
    return None


def run_course(spec: Spec, plan: Plan, results: Mapping[str, Result]) -> Course | None:
    """How the race stands with these results; None where there is no race. results: trial id -> its longest one."""
    if spec.race is None or why_no_race(spec, plan):
        return None
    return _Running(spec, spec.race, plan, results).course()


@dataclass
class _Running:
    """The race, run again from its start: each step asks for results, and where one is lacking, that is a leg."""

    spec: Spec
    race: Race
    plan: Plan
    results: Mapping[str, Result]
    legs: list[Trial] = field(default_factory=list)
    granted: dict[str, int] = field(default_factory=dict)
    stopped: dict[str, Stop] = field(default_factory=dict)
    by_draw: dict[tuple[tuple[str, ...], tuple[int, int]], Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        restore = restores_best(self.spec.train)
        self.runners = {t.id: Runner(t, self.results.get(t.id), restore) for t in self.plan.trials}
        self.first = [t for t in self.plan.trials if t.draw == self.spec.draws[0]]
        self.rungs = rungs(self.race, {milestone for trial in self.first for milestone in trial.milestones})
        self.blocks = [b for b in _BLOCKS if b < len(self.spec.draws)] + [len(self.spec.draws)]

    def course(self) -> Course:
        finishers = self._run_rungs()
        if not self.legs:
            finishers = self._train_open(finishers)
        if not self.legs:
            self._add_seeds(finishers)
        left = [replace(leg, forecast_s=leg.left_s(self._epochs(leg))) for leg in self.legs]
        for leg in left:
            self.stopped.pop(leg.id, None)
        return Course(self.plan.in_order(left), self.granted, self.stopped, self.rungs, len(self.blocks))

    def _epochs(self, trial: Trial) -> int:
        result = self.results.get(trial.id)
        return len(result.history) if result and result.status == "ok" else 0

    def _grant(self, trial: Trial, epochs: int) -> bool:
        """Grant a trial epochs. Returns whether it is there, or has failed; otherwise that is a leg."""
        epochs = min(epochs, trial.epochs)
        self.granted[trial.id] = max(epochs, self.granted.get(trial.id, 0))
        runner = self.runners[trial.id]
        is_row = (
            epochs < trial.epochs or runner.failed or runner.covers(epochs)
        )  # what ended early may be asked for more
        if runner.failed or (runner.arrived(epochs) and is_row):
            return True
        self.legs.append(trial.leg(epochs))
        return False

    def _run_rungs(self) -> list[Runner]:
        """From rung to rung. Returns those of the first seed that are at their end."""
        guarded = guarded_values(self.race, self.spec, self.first)
        here = [self.runners[trial.id] for trial in self.first]
        may_come: list[Trial] = []
        for number, rung in enumerate(self.rungs):
            arrived = [runner for runner in here if self._grant(runner.trial, rung) and runner.arrived(rung)]
            there = {runner.trial.id for runner in arrived}
            coming = [*may_come, *(r.trial for r in here if not r.failed and r.trial.id not in there)]
            least = quota(self.race, len(self.first), number)
            here, stopped, undecided = divide(arrived, rung, least, guarded, coming, self._is_kept)
            may_come = [*coming, *(runner.trial for runner in undecided)]
            ordered = sorted(arrived, key=lambda runner: runner.place(rung))
            before = {runner.trial.id: place for place, runner in enumerate(ordered)}
            for runner in stopped:
                self._stop(runner, rung, f"{before[runner.trial.id]} others were ahead")
        return [r for r in here if self._grant(r.trial, r.trial.epochs) and r.is_at_end]

    def _train_open(self, finishers: list[Runner]) -> list[Runner]:
        """Train points on that were stopped and may still win, a rung at a time, within race.share."""
        most = self.race.share * sum(trial.epochs for trial in self.first)
        finishers = list(finishers)
        while True:
            may_win = self._name_beaten(finishers)
            used = sum(self.granted[trial.id] for trial in self.first)
            chosen = []
            for runner in sorted(may_win, key=lambda r: r.place(self.stopped[r.trial.id].after)):
                after = self.stopped[runner.trial.id].after
                until = next((rung for rung in self.rungs if rung > after), runner.trial.epochs)
                if used + until - after <= most:
                    used += until - after
                    chosen.append((runner, until))
            there = [self._grant(runner.trial, until) for runner, until in chosen]
            for (runner, until), is_there in zip(chosen, there, strict=True):
                if not is_there:
                    continue
                del self.stopped[runner.trial.id]
                if runner.arrived(until) and until < runner.trial.epochs:
                    self._stop(runner, until, "race.share of the epochs is used up")
                elif runner.is_at_end:
                    finishers.append(runner)
            if not all(there):
                return finishers
            if not chosen:
                return self._add_ended(finishers)

    def _add_ended(self, finishers: list[Runner]) -> list[Runner]:
        """Add those that were stopped and are at their end all the same: early stopping, or a grid without a race.

        Only now, and not at their rungs: what this race itself has trained on must not change what it grants.
        """
        ended = [self.runners[trial_id] for trial_id in self.stopped if self.runners[trial_id].is_at_end]
        for runner in ended:
            del self.stopped[runner.trial.id]
            self._grant(runner.trial, runner.trial.epochs)  # where the grid has grown since, it is asked once more
        if ended:
            self._name_beaten([*finishers, *ended])
        return [*finishers, *ended]

    def _stop(self, runner: Runner, after: int, why: str, beaten: bool = False) -> None:
        reached = METRICS[self.spec.metric].text(runner.score(after, self.spec.metric))
        self.stopped[runner.trial.id] = Stop(after, f"{reached} after {plural(after, 'epoch')}: {why}", beaten)

    def _name_beaten(self, finishers: Sequence[Runner]) -> list[Runner]:
        """Say which of the stopped points are beaten. Returns the others."""
        metric, images, others = self.spec.metric, self.plan.counts.validation, []
        sign = METRICS[metric].sign
        finals = {runner: sign * runner.score(runner.trial.epochs, metric) for runner in finishers}
        for trial_id, stop in list(self.stopped.items()):
            runner, why = self.runners[trial_id], None
            if finals:
                gain = max(final - sign * other.score(stop.after, metric) for other, final in finals.items())
                why = why_beaten(runner, stop.after, max(finals.values()), gain, images, metric)
            if why:
                self._stop(runner, stop.after, why, beaten=True)
            else:
                others.append(runner)
        return others

    def _add_seeds(self, finishers: Sequence[Runner]) -> None:
        """Give those that may be the best more seeds, block by block, until one is left or more say nothing new."""
        contenders = self._contenders(finishers)
        had = 1
        for block in self.blocks if len(contenders) > 1 else ():
            wanted = [self._of_draw(trial, draw) for draw in self.spec.draws[had:block] for trial in contenders]
            there = [self._grant(trial, trial.epochs) for trial in wanted]
            if not all(there):
                return
            had = block
            if self._is_settled(compare(self._ranked(contenders, had), self.spec.metric, len(self.blocks))):
                break
        names = {self._name(trial) for trial in contenders}
        for trial in self.plan.trials:
            if trial.id not in self.granted:
                why = f"the first {had} seeds tell enough" if self._name(trial) in names else "not among the contenders"
                why = why if finishers else f"no trial of seed {self.spec.seeds[0]} is ok"
                self.stopped[trial.id] = Stop(0, why, False)

    def _contenders(self, finishers: Sequence[Runner]) -> list[Trial]:
        """Those that may be the best by their images; by one seed alone, so that the next ones are asked too."""
        ranked = self._ranked([runner.trial for runner in finishers], 1)
        may = sum(each.may_be_best for each in compare(ranked, self.spec.metric).each) if ranked else 0
        trials = {trial.id: trial for trial in self.first}
        return [trials[each.trial_ids[0]] for each in ranked[: min(self.race.contenders, max(_LEAST_CONTENDERS, may))]]

    def _is_settled(self, found: Comparison) -> bool:
        """Whether more seeds would tell nothing new, or nothing that matters."""
        costs = found.costs if found.by_images or found.costs_here is None else found.costs_here
        if found.seeds < 2 or costs is None:
            return False
        alone = not any(each.may_be_best for each in found.each[1:])
        return alone or costs <= self.race.enough or found.mostly_images

    def _is_kept(self, trial: Trial) -> bool:
        return is_kept(self.race, trial.values)

    def _name(self, trial: Trial) -> tuple[str, ...]:
        """What is the same for all seeds of a trial."""
        return (*(f"{name}={canonical(value)}" for name, value in trial.values.items()), str(trial.milestones))

    def _of_draw(self, trial: Trial, draw: tuple[int, int]) -> Trial:
        if not self.by_draw:
            self.by_draw = {(self._name(each), each.draw): each for each in self.plan.trials}
        return self.by_draw[self._name(trial), draw]

    def _ranked(self, trials: Sequence[Trial], seeds: int) -> list[Configuration]:
        """Trials of the first seed as configurations of so many seeds, best first. trial_ids: the first seed's alone.

        Of a trial with several points, the one that is best.
        """
        metric, found = self.spec.metric, []
        sign = METRICS[metric].sign
        for trial in trials:
            own = self.runners[trial.id]
            epochs = max(trial.milestones, key=lambda epochs: sign * own.score(epochs, metric))
            others = [self._of_draw(trial, draw) for draw in self.spec.draws[1:seeds]]
            runners = [r for r in (own, *(self.runners[other.id] for other in others)) if r.arrived(epochs)]
            scores = {runner.trial.draw: runner.score(epochs, metric) for runner in runners}
            known = [(runner.trial.draw, runner.right(epochs, metric)) for runner in runners]
            right = {seed: images for seed, images in known if images is not None}
            mean = estimate(list(scores.values()), len({fold for _, fold in scores}))
            found.append(Configuration(trial.values, scores, mean, scores, right, (trial.id,), epochs, None))
        return sorted(found, key=lambda each: (-each.score.count, -sign * each.score.mean, each.trial_ids))
