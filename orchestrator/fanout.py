"""Fan-out: trials -> results over the cluster. The only room that imports Ray; only workers load TensorFlow."""

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Tune writes what nobody here reads: its own result files, its own table, its own folder per trial
os.environ |= {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}

import ray

from orchestrator.errors import BadInput
from orchestrator.plan import Trial
from orchestrator.result import Epoch, Result
from orchestrator.run import Work
from orchestrator.spec import Resources

TRIES = 3


class Watch(Protocol):
    """Who is told what happens, in the order it happens, on one thread."""

    def started(self, trial_id: str) -> None: ...
    def ready(self, unreadable: dict[int, str]) -> None:
        """A worker has its node's cache open and is about to train. unreadable: row of the index -> reason."""

    def refused(self, trial: Trial, why: str) -> None:
        """A worker cannot train this trial: bad data, a model that does not fit, a full disk."""

    def epoch(self, trial_id: str, epoch: Epoch) -> None: ...
    def ended(self, result: Result) -> None: ...


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a trial takes and how many run at once. Attributes: slots: trials that fit at this moment, at least 1."""

    cpus_per_trial: int
    gpus_per_trial: float
    slots: int


@contextlib.contextmanager
def connect(resources: Resources) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS names (as in `ray job submit`), or start a Ray of this machine alone."""
    address = os.environ.get("RAY_ADDRESS")
    own = (
        {} if address else {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, resources.cpus_per_trial)}
    )
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except ConnectionError as error:
        raise BadInput(
            f"RAY_ADDRESS must name a running cluster, got {address}: {str(error).splitlines()[0]}"
        ) from None
    try:
        has = ray.cluster_resources()
        gpus = resources.gpus_per_trial
        gpus = (1.0 if has.get("GPU") else 0.0) if gpus == "auto" else gpus
        if not address and gpus > has.get("GPU", 0):
            raise BadInput(
                f"resources.gpus_per_trial must be at most the {has.get('GPU', 0):g} GPUs here, got {gpus:g}: "
                f"leave it at auto, or run on a cluster that has them"
            )
        fits = [has.get("CPU", 0) // resources.cpus_per_trial]
        if gpus:
            fits.append(has.get("GPU", 0) / gpus)
        slots = max(1, int(min([*fits, *([resources.max_concurrent] if resources.max_concurrent else [])])))
        yield Cluster(resources.cpus_per_trial, gpus, slots)
    finally:
        ray.shutdown()


def fan_out(work: Work, cluster: Cluster, trials: Sequence[Trial], watch: Watch, stop: threading.Event) -> None:
    """Train every trial once, in the order given, and tell `watch`; return when all have ended or `stop` is set.

    A trial whose worker dies is tried again on another, TRIES times in all; then it has failed.
    """
    from ray import tune
    from ray.tune import Callback, Stopper

    by_id = {trial.id: trial for trial in trials}

    def train(config: dict[str, str], work: Work, by_id: dict[str, Trial]) -> None:
        try:
            result = _trial_room(work).run_trial(
                by_id[config["trial"]],
                work,
                # report returns when the driver has taken it, and may have stopped the run
                ready=lambda unreadable: tune.report({"ready": unreadable}),
                report=lambda epoch: tune.report({"epoch": epoch.model_dump_json()}),
            )
        except BadInput as error:
            tune.report({"refused": str(error)})
        else:
            tune.report({"result": result.model_dump_json()})

    class Unsaved:
        """Tune pickles whatever it is given, into a file that nobody reads."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return object, ()

    class Tell(Unsaved, Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.started(trial.config["trial"])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "epoch" in result:
                watch.epoch(trial.config["trial"], Epoch.model_validate_json(result["epoch"]))
            elif "result" in result:
                watch.ended(Result.model_validate_json(result["result"]))
            elif "ready" in result:
                watch.ready(result["ready"])
            elif "refused" in result:
                watch.refused(by_id[trial.config["trial"]], result["refused"])

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.refused(by_id[trial.config["trial"]], f"its worker died {TRIES} times: {_cause(trial)}")

    class OnStop(Unsaved, Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop.is_set()

    with tempfile.TemporaryDirectory(prefix="orchestrator-") as scratch:
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(train, work=work, by_id=by_id),
                {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial},
            ),
            param_space={"trial": tune.grid_search([trial.id for trial in trials])},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=cluster.slots if work.spec.resources.max_concurrent else None
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                callbacks=[Tell()],
                stop=OnStop(),
                failure_config=tune.FailureConfig(max_failures=TRIES - 1),
            ),
        ).fit()


def _trial_room(work: Work) -> Any:
    """The trial module, in a worker: TensorFlow is imported here, once per process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # or the next trial fails where the last one's thread is slow
    from orchestrator import trial

    trial.use_threads(work.spec.resources.cpus_per_trial)
    return trial


def _cause(trial: Any) -> str:
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return (lines[-1] if lines else "no word of why")[:300]
