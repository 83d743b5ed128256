"""Tune: in which order Ray Tune starts trials, when it stops, and how it tells a watch; and the call of Ray Tune."""

import threading
import time
from typing import Any

from orchestrator.cluster import patches, worker
from orchestrator.cluster.connect import Cluster
from orchestrator.cluster.stop_signal import STOP_S, RaisedSignal, stop_signal
from orchestrator.cluster.watch import GuardedWatch, LeaveTune, Legs
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.result import Epoch, Result
from orchestrator.scratch import scratch

# isort: split
import ray
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

TRIES = 3  # workers in a row that may die on a trial without getting it any further
REPORT_INTERVAL_S = 0.02  # a trial's reports are this far apart, times the trials at once, so that the driver keeps up


def train_all(
    context: WorkerContext,
    cluster: Cluster,
    legs: Legs,
    watch: GuardedWatch,
    stop: threading.Event,
    kill: threading.Event,
) -> None:
    """What fan_out does, through Ray Tune. Raises LeaveTune where it is stopped."""
    patches.prepare_tune(cluster.most)
    by_id = {trial.id: trial for trial in legs.trials}
    report_interval_s = REPORT_INTERVAL_S * min(cluster.most, len(by_id))
    workload = ray.put(worker.Workload(context, cluster, by_id, report_interval_s, worker.load_trial_module))
    callback = WatchCallback(by_id, watch)
    with scratch() as folder, stop_signal(kill) as signal:
        tune.Tuner(
            tune.with_resources(
                # in a list: Tune would fetch bare references again for every trial
                tune.with_parameters(worker.train, refs=[workload, signal.stopping, signal.aws_keys]),
                {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial},
            ),
            tune_config=tune.TuneConfig(
                search_alg=LegSearcher(legs),
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=context.spec.resources.max_concurrent,
                scheduler=InOrderOfLegs(legs),
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(folder),
                verbose=0,
                progress_reporter=Silent(),
                callbacks=[callback],
                stop=StopOnRequest(callback, signal, stop),
                failure_config=tune.FailureConfig(max_failures=TRIES - 1),
            ),
        ).fit()


class Silent(tune.ProgressReporter):
    """In a notebook Tune would clear the cell, whatever `verbose` says."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False


class NotPickled:
    """Tune pickles what it is given into a file that nobody reads: an empty object goes there instead."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


class LegSearcher(NotPickled, Searcher):
    """Gives Tune one leg after the other: each is a trial of Tune's."""

    def __init__(self, legs: Legs) -> None:
        super().__init__()
        self._legs, self._taken = legs, 0

    def suggest(self, trial_id: str) -> Any:
        leg = self._legs.take()
        if leg is None:
            return Searcher.FINISHED if self._legs.over() else None
        self._taken += 1
        return {"trial": leg.id, "epochs": leg.epochs, "place": self._taken}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class InOrderOfLegs(NotPickled, FIFOScheduler):
    """Starts the waiting leg that was taken first.

    Tune alone puts a trial whose worker died last, and gives a free worker to any of the next sixteen or more.
    """

    def __init__(self, legs: Legs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._legs = legs
        self._homes: dict[str, Any] = {}  # trial id -> the worker of its last leg

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        patches.keep_idle_workers(tune_controller, self._legs.may_grow and not self._legs.over())
        idle = patches.next_idle_worker(tune_controller)

        def place(trial: Any) -> tuple[bool, int]:
            """First those that the idle worker has trained up to a rung, and still holds as they were built."""
            return idle is None or self._homes.get(trial.config["trial"]) != idle, trial.config["place"]

        return min(patches.waiting_trials(tune_controller), key=place, default=None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
        self._homes[trial.config["trial"]] = patches.worker_of(tune_controller, trial)
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        patches.forget_reset(tune_controller, trial)


class WatchCallback(NotPickled, Callback):
    """Tells a watch what Tune and the workers report.

    Attributes:
        trials: By id.
        training: Ids of the trials whose workers are ready and at work.
    """

    def __init__(self, trials: dict[str, Trial], watch: GuardedWatch) -> None:
        self.trials, self.watch = trials, watch
        self.training: set[str] = set()
        self._said_of_nodes: set[str] = set()  # once for each node, not for each trial on it
        self._changing_worker: set[str] = set()  # the worker has grown too large, and is about to end itself
        self._epochs_done: dict[str, float] = {}  # trial id -> where its last worker took it up

    def leg(self, trial_id: str, epochs: int) -> Trial:
        """The trial up to so many epochs."""
        return self.trials[trial_id].leg(epochs)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.watch.started(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        trial_id = trial.config["trial"]
        for line in result.get("lines", ()):
            self.watch.say(line)
        for epoch in result.get("epochs", ()):
            self.watch.epoch(trial_id, Epoch.model_validate_json(epoch))
        match result.get("event"):
            case "preparing":
                self.watch.preparing(trial_id, *result["facts"])
            case "ready":
                self._tell_ready(trial, result)
            case "reached":
                self.watch.reached(Result.model_validate_json(result["result"]))
            case "worker too large":
                patches.excuse_next_death(trial)
                self._changing_worker.add(trial_id)
            case "result":
                self.training.discard(trial_id)
                self.watch.ended(Result.model_validate_json(result["result"]))
            case "refused":
                self.training.discard(trial_id)
                self.watch.refused(self.leg(trial_id, trial.config["epochs"]), result["why"])
            case "stopped":
                self.training.discard(trial_id)

    def _tell_ready(self, trial: Any, report: dict[str, Any]) -> None:
        trial_id, epochs_done = trial.config["trial"], report["epochs_done"]
        if epochs_done > self._epochs_done.get(trial_id, 0):  # the last worker died, but got the trial further
            patches.allow_deaths(trial, TRIES - 1)
        self._epochs_done[trial_id] = epochs_done
        self.training.add(trial_id)
        if (line := report["of_node"]) and line not in self._said_of_nodes:
            self._said_of_nodes.add(line)
            self.watch.say(line)
        self.watch.ready(trial_id, epochs_done)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.training.discard(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune: the trial's worker died, and it is to go on in another."""
        trial_id = trial.config["trial"]
        self.training.discard(trial_id)
        if trial_id in self._changing_worker:
            self._changing_worker.discard(trial_id)
        else:
            name = self.trials[trial_id].label
            cause = patches.cause_of_death(trial)
            self.watch.say(f"{name} goes on in another worker, as its last one died: {cause}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune: the trial's worker died once too often."""
        trial_id = trial.config["trial"]
        self.training.discard(trial_id)
        why = f"its worker died {TRIES} times: {patches.cause_of_death(trial).splitlines()[-1][:300]}"
        epochs = trial.config["epochs"]
        self.watch.ended(Result(trial_id=trial_id, status="failed", epochs=epochs, error=why))


class StopOnRequest(NotPickled, Stopper):
    """Stops a trial that the watch does not let start, and all of them when `stop` is set or the watch is over."""

    def __init__(self, callback: WatchCallback, signal: RaisedSignal, stop: threading.Event) -> None:
        self._callback, self._signal, self._stop = callback, signal, stop
        self._saving: set[str] = set()  # trials that were training when they were told to stop, and still are
        self._deadline_s: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result.get("event") != "ready":
            return False
        facts = [result[name] for name in ("epochs_done", "unreadable", "node_type", "node_share")]
        return not self._callback.watch.may_start(self._callback.leg(result["trial"], result["until"]), *facts)

    def stop_all(self) -> bool:
        """Raises LeaveTune once all have stopped: Tune would wait up to 15 s for workers in mid-epoch."""
        watch = self._callback.watch
        watch.check()
        if self._deadline_s is None:
            if not (self._stop.is_set() or watch.over()):
                return False
            self._signal.stop_workers()
            self._saving, self._deadline_s = set(self._callback.training), time.monotonic() + STOP_S
        self._saving &= self._callback.training
        if not self._saving or time.monotonic() > self._deadline_s:
            raise LeaveTune
        return False
