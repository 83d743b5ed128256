"""Patches: all that is changed in Ray and Tune, and all that is read there though it is private. No other file does so.

Each says what it changes, why, and which test covers it, if one does. All were compared with the source of Ray 2.60.0,
the oldest that pyproject.toml allows; compare them again before a newer one. Import this file before `ray`, which reads
some of these environment variables as it is imported.
"""

import functools
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.cluster.address import named_address

os.environ |= {
    # No result files of Tune's own (CSV, JSON, TensorBoard): nobody reads them, and they cost more than the trials.
    # Seen by bench_scale.py, part `driver`.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The old console output, which verbose=0 silences. Test: test_a_job_log_is_plain_lines.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A worker stays in its working directory, where a user's model file lies.
    # Test: test_a_users_model_is_trained_or_refused.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ctrl-C is ours. A precaution: Tune installs its handler on the main thread alone, and we run it on another.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # No tracebacks of dead workers on the console. Test: test_a_trial_that_kills_its_workers_fails_alone.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # A call after Ray has shut down must fail, not start another Ray. No test covers it.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # A trial without a GPU keeps its CUDA_VISIBLE_DEVICES: Ray 2.60's default, here whatever the user's shell says.
    # No test covers it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # No warnings about Ray Train's second version. Test: test_a_job_log_is_plain_lines.
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Read in the worker: with Tune's 2 s, a trial fails where the thread of the one before it is slow to end. No test.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
}
# Ray imports tqdm where there is one, and that asks a notebook for widgets that nobody needs here.
# Test: test_a_lost_notebook_goes_on_and_ends.
warnings.filterwarnings("ignore", message="IProgress not found")
if not named_address():
    # A Ray of this machine alone takes 127.0.0.1 for its node's address, as it does on a Mac, so it listens on loopback
    # alone. Test: test_ray_on_a_laptop_listens_on_loopback_alone.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

# In a notebook Ray says, as it is imported, that ipywidgets is not there. Test: test_a_lost_notebook_goes_on_and_ends.
logging.getLogger("ray.widgets").setLevel(logging.ERROR)

import ray  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray._private import utils as ray_utils  # noqa: E402
from ray._private import worker as ray_worker  # noqa: E402

# How long the head may be silent, in seconds. Ray's C++ reads this variable too, and ends the driver after twice that.
# Test: test_a_part_of_ray_killed, where the head ends and nobody presses Ctrl-C.
HEAD_SILENT_S = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", 60)) / 2  # noqa: SIM112
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
_MANY = 1_000_000
_AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
_THEIR_PORTS = ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN", "RUNTIME_ENV_AGENT")
_NOBODY = 1  # a port where nobody listens
_CAUSES = {  # a part of Ray's text about a death -> what people are told
    "low on memory": "its node ran out of memory",
    "node has died": "its node was lost",
    "The actor died unexpectedly": "killed, as when memory runs out, or crashed",
}


# --- the driver's process ---------------------------------------------------------------------------------------------


def silence() -> None:
    """Ray prints each dead worker to stdout, between this command's lines or JSON; its loggers repeat it.

    Replaces ray._private.worker.print_to_stdstream. Test: test_a_trial_that_kills_its_workers_fails_alone.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are rows of the board
    ray_worker.print_to_stdstream = lambda *_, **__: None


def find_cluster() -> str:
    """HOST:PORT of the cluster on this machine, which RAY_ADDRESS=auto means. Raises ConnectionError.

    Calls ray._private.services.canonicalize_bootstrap_address. No test covers it: it finds whatever runs here.
    """
    from ray._private import services

    return str(services.canonicalize_bootstrap_address("auto"))


@contextmanager
def own_signals() -> Iterator[None]:
    """Around ray.init: signals stay this command's.

    ray.init installs a handler of SIGTERM in Python, through ray._private.utils.set_sigterm_handler, and another in
    C++, which only setting ours again removes. A closed terminal sends SIGHUP to all that were started in it: Ray and
    its workers are started with it blocked, as Ray does with SIGINT, so that they live until the driver has told them.
    Test: test_interrupted_in_mid_epoch, with SIGTERM and SIGHUP.
    """
    ray_utils.set_sigterm_handler = lambda handler: None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def join_briefly() -> None:
    """ray.init asks a head that does not answer 20 times, for 14 minutes: twice is longer than anybody waits for it.

    Sets ray._private.ray_constants.NUM_REDIS_GET_RETRIES. No test covers it: it takes a minute.
    """
    ray_constants.NUM_REDIS_GET_RETRIES = 2


@contextmanager
def without_bystanders() -> Iterator[None]:
    """Around ray.init of a Ray of this machine alone: it starts without the processes that nobody here asks anything.

    These are the dashboard's head, the autoscaler, the one that passes workers' output on, and two agents: of metrics,
    and of the runtime environments, which no worker of this Ray has. Each is a Python that starts while the workers do.
    The raylet ends with its agents, and waits until they have written down their ports: a stand-in runs in the place of
    each, and a port where nobody listens is written down before. Nor does it import what the dashboard needs, to see
    whether that is installed. Replaces three methods of ray._private.node.Node, services.start_ray_process and
    utils.get_dashboard_dependency_error. Calls ray._raylet.persist_port.
    Test: test_ray_on_a_laptop_listens_on_loopback_alone.
    """
    from ray._private import services
    from ray._private.node import Node

    start_ray_process = services.start_ray_process

    def start_without_agents(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        is_raylet = process_type == ray_constants.PROCESS_TYPE_RAYLET
        return start_ray_process(_without_agents(command) if is_raylet else command, process_type, *args, **kwargs)

    def nothing(*_: Any, **__: Any) -> None:
        pass

    replaced: list[tuple[Any, str, Any]] = [
        *((Node, name, nothing) for name in ("start_api_server", "start_monitor", "start_log_monitor")),
        (services, "start_ray_process", start_without_agents),
        (ray_utils, "get_dashboard_dependency_error", nothing),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, new in replaced:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for (owner, name, _), old in zip(replaced, before, strict=True):
            setattr(owner, name, old)


def _without_agents(raylet: list[str]) -> list[str]:
    """The command of a raylet with stand-ins for its agents, whose ports are written down."""
    private: Any = ray._raylet
    settings = dict(part[2:].split("=", 1) for part in raylet if part.startswith("--") and "=" in part)
    for name in _THEIR_PORTS:
        port = getattr(private, f"{name}_PORT_NAME")
        private.persist_port(settings["session_dir"], settings["node_id"], port, _NOBODY)
    stand_in = subprocess.list2cmdline([sys.executable, "-I", "-S", str(Path(__file__).with_name("stand_in.py"))])
    return [f"{part.partition('=')[0]}={stand_in}" if part.startswith(_AGENTS) else part for part in raylet]


_abandoned = threading.Event()


def abandon_ray() -> None:
    """A part of Ray does not answer. Calls to it would wait, ray.shutdown too: from now on nobody makes any.

    Test: test_a_part_of_ray_killed.
    """
    _abandoned.set()


def is_ray_abandoned() -> bool:
    return _abandoned.is_set()


def stop_collecting_garbage() -> None:
    """Tune's objects call Ray when they are collected, on whatever thread that is. With Ray gone, it would wait.

    Test: test_a_part_of_ray_killed.
    """
    gc.disable()


def collect_garbage_again() -> None:
    """Ray is there."""
    gc.enable()


# --- Tune, before it runs ---------------------------------------------------------------------------------------------


def prepare_tune(most: int, is_own: bool) -> None:
    """Apply the patches of Tune itself. Call it before each run of Tune. Imports Tune, which takes a second.

    most: trials at once. So many may wait for a worker: with a searcher of one's own Tune lets one wait, and starts one
    worker after the other. Test: test_trials_start_in_the_order_of_the_plan_and_a_killed_one_comes_first.
    is_own: on a Ray of this machine alone.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(200, most))
    _hand_on_environment(is_own)
    _tell_nobody_of_callbacks()
    _keep_trainable()
    _treat_all_failures_as_deaths()
    _keep_no_state()
    _keep_no_statistics()
    _ask_for_few_placement_groups(most)


def _hand_on_environment(is_own: bool) -> None:
    """Tune hands environment variables on to its workers in a runtime environment.

    AWS_KEYS are none of them: Ray writes runtime environments into its logs. StopSignal carries them. The workers of a
    Ray of this machine alone have the driver's environment anyway: without a runtime environment they start sooner.
    Sets two names of ray.tune.execution.class_cache. Test: test_a_grid_from_bucket_to_bucket. Seen by bench_scale.py,
    part `start`.
    """
    from ray.tune.execution import class_cache

    defaults, names = _handed_on()
    class_cache.DEFAULT_ENV_VARS = {} if is_own else defaults
    class_cache.ENV_VARS_TO_PROPAGATE = set() if is_own else names - set(AWS_KEYS)


@functools.cache
def _handed_on() -> tuple[dict[str, str], set[str]]:
    from ray.tune.execution import class_cache

    return class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE


def _tell_nobody_of_callbacks() -> None:
    """For Ray's usage statistics Tune counts whose callbacks it is given, and imports MLflow for that, if there is one.

    Replaces ray.air._internal.usage.tag_callbacks. Seen by bench_scale.py, part `start`.
    """
    from ray.air._internal import usage

    module: Any = usage
    module.tag_callbacks = lambda callbacks: False


def _keep_trainable() -> None:
    """Tune asks Ray for each trial whether the trainable is there, and fetches and unpickles it several times.

    That was a third of the driver's time. Replaces validate_trainable and get_trainable_cls in
    ray.tune.experiment.trial. The cache is a new one for each run of Tune, because the next run registers another
    trainable under the same name. Seen by bench_scale.py, part `driver`.
    """
    from ray.tune import registry
    from ray.tune.experiment import trial

    module: Any = trial
    module.get_trainable_cls = functools.cache(registry.get_trainable_cls)
    module.validate_trainable = lambda trainable_name: None


def _keep_no_state() -> None:
    """Tune writes what it knows of every trial into its folder, and reads it again at the end: 1 ms for each.

    The run folder is the state, so nothing is written, and the analysis that Tune ends with holds no trial. Replaces
    checkpoint and _mark_trial_to_checkpoint of TuneController, and ray.tune.tune.ExperimentAnalysis.
    Seen by bench_scale.py, part `driver`.
    """
    from ray.tune import tune
    from ray.tune.execution.tune_controller import TuneController

    controller: Any = TuneController
    controller.checkpoint = controller._mark_trial_to_checkpoint = lambda *_, **__: None
    module: Any = tune
    module.ExperimentAnalysis = lambda **_: SimpleNamespace(trials=())


def _keep_no_statistics() -> None:
    """Tune keeps the least, largest and mean of each number that a trial reports, 17 kB a trial, which nobody reads.

    It also asks a worker twice for facts that would stand for a result before there is one. Replaces
    Trial.update_last_result and Trial.set_ray_actor. Seen by bench_scale.py, part `driver`.
    """
    from ray.tune.experiment import Trial

    def set_ray_actor(trial: Any, ray_actor: Any) -> None:
        trial.temporary_state.ray_actor = ray_actor

    trial: Any = Trial
    trial.update_last_result, trial.set_ray_actor = lambda *_: None, set_ray_actor


def _ask_for_few_placement_groups(most: int) -> None:
    """Tune asks Ray for a placement group for each trial that waits, and takes it back as a worker becomes free: 2 ms.

    So as many are asked for as may find a place, and the trials that come and go share them. Replaces
    ray.tune.execution.tune_controller.PlacementGroupResourceManager. Seen by bench_scale.py, part `driver`.
    Test: test_node_lost_and_joined.
    """
    from ray.air.execution import PlacementGroupResourceManager
    from ray.tune.execution import tune_controller

    base: Any = PlacementGroupResourceManager

    class FewPlacementGroups(base):  # type: ignore[misc]
        """All trials of a run need the same resources."""

        _wanted = 0  # trials that wait for a worker of their own

        def request_resources(self, resource_request: Any) -> None:
            self._wanted += 1
            self._ask(resource_request)

        def cancel_resource_request(self, resource_request: Any) -> None:
            self._wanted -= 1
            if self._asked(resource_request) > self._wanted:
                super().cancel_resource_request(resource_request)

        def acquire_resources(self, resource_request: Any) -> Any:
            acquired = super().acquire_resources(resource_request)
            if acquired:
                self._wanted -= 1
                self._ask(resource_request)
            return acquired

        def _asked(self, resource_request: Any) -> int:
            groups = (self._request_to_staged_pgs, self._request_to_ready_pgs)
            return sum(len(of[resource_request]) for of in groups)

        def _ask(self, resource_request: Any) -> None:
            if self._asked(resource_request) < min(self._wanted, most):
                super().request_resources(resource_request)

    module: Any = tune_controller
    module.PlacementGroupResourceManager = FewPlacementGroups


@functools.cache
def _treat_all_failures_as_deaths() -> None:
    """Tune ends the driver on an exception that it does not expect, such as Ray's where a node runs out of memory.

    Wraps RayActorManager._actor_task_failed. Test: test_a_node_that_runs_out_of_memory.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager

    manager: Any = RayActorManager
    manager._actor_task_failed = _as_death(manager._actor_task_failed)


def _as_death(task_failed: Callable[..., None]) -> Callable[..., None]:
    def task_failed_or_died(*args: Any, exception: Exception, **kwargs: Any) -> None:
        expected = isinstance(exception, (ray.exceptions.RayActorError, ray.exceptions.RayTaskError))
        death = exception if expected else ray.exceptions.RayActorError(error_msg=str(exception))
        task_failed(*args, exception=death, **kwargs)

    return task_failed_or_died


# --- Tune, while it runs ----------------------------------------------------------------------------------------------


def waiting_trials(controller: Any) -> set[Any]:
    """Tune's trials that wait for a worker; none where no worker is idle, and each of them has asked for one.

    controller: what a scheduler's choose_trial_to_run is given. Reads its _pending_trials, _staged_trials and
    _resetting_trials.
    Test: test_trials_start_in_the_order_of_the_plan_and_a_killed_one_comes_first.
    """
    tune_controller = controller._tune_controller
    if next_idle_worker(controller) is None and tune_controller._pending_trials <= tune_controller._staged_trials:
        return set()  # Tune asks in each of its steps
    waiting: set[Any] = tune_controller._pending_trials - tune_controller._resetting_trials
    return waiting


def keep_idle_workers(controller: Any, keep: bool) -> None:
    """Tune ends a worker for which no trial waits: in a race more trials come for it soon.

    controller: what a scheduler's choose_trial_to_run is given. Changes the most objects that its _actor_cache keeps.
    Test: test_a_race_is_the_same_whatever_dies.
    """
    tune_controller = controller._tune_controller
    cache = tune_controller._actor_cache
    if keep == bool(getattr(cache, "kept", None)):
        return
    if keep:
        trials = tune_controller.get_trials()
        if trials:
            cache.kept = {trial.placement_group_factory for trial in trials[:1]}
            for resources in cache.kept:
                cache.increase_max(resources, _MANY)
    else:
        for resources in cache.kept:
            cache.decrease_max(resources, _MANY)
        cache.kept = None


def next_idle_worker(controller: Any) -> Any:
    """The worker that the next trial gets, if one is idle. controller: what a scheduler's choose_trial_to_run is given.

    Reads _actor_cache and its _cached_objects. Test: test_a_race_is_the_same_whatever_dies.
    """
    cached = controller._tune_controller._actor_cache._cached_objects
    return next((workers[0] for workers in cached.values() if workers), None)


def worker_of(controller: Any, trial: Any) -> Any:
    """The worker at work on a trial. controller: what a scheduler's on_trial_result is given. Reads _trial_to_actor."""
    return controller._tune_controller._trial_to_actor.get(trial)


def forget_reset(controller: Any, trial: Any) -> None:
    """A worker may die while it takes a trial over. Tune then never starts the trial again: it counts as being reset.

    controller: what a scheduler's on_trial_error is given. Changes its _resetting_trials. Test: test_workers_killed.
    """
    controller._resetting_trials.discard(trial)


def allow_deaths(trial: Any, more: int) -> None:
    """From now on, `more` deaths of its workers do not make the trial fail.

    Sets Tune's Trial.max_failures, which Tune compares with Trial.num_failures: all its deaths so far.
    Test: test_workers_killed.
    """
    trial.max_failures = trial.num_failures + more


def excuse_next_death(trial: Any) -> None:
    """The next death of its worker does not count. Test: test_a_worker_that_grows_is_replaced."""
    trial.max_failures += 1


def cause_of_death(trial: Any) -> str:
    """Why the trial's last worker died: a few words, or the whole traceback where the error was one of ours.

    Reads Trial.error_file, to which Tune adds each failure. Test: test_a_trial_that_kills_its_workers_fails_alone.
    """
    text = Path(trial.error_file).read_text().rpartition("Failure # ")[2].partition("\n")[2].strip()
    return next((cause for part, cause in _CAUSES.items() if part in text), text or "no word of why")
