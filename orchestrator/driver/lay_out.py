"""Lay out: spec -> what workers need, and the plan. What can be refused before Ray starts is refused here."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator import machine
from orchestrator.data.backbone import find_networks
from orchestrator.data.changes import describe_changes, describe_counts
from orchestrator.data.indexing import build_index
from orchestrator.data.layout import IMAGE_SUFFIXES
from orchestrator.data.listing import below
from orchestrator.data.weights import check_class_weights
from orchestrator.driver.calibrate import read_pace
from orchestrator.driver.summary import count
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS
from orchestrator.plans.points import IMAGES, SPLIT, Plan, differences, make_plan, samples
from orchestrator.plans.precision import Node, precision_on, settle
from orchestrator.runs.checkpoints import KeepCheckpoints
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import KeepModels, Run
from orchestrator.spec.axes import as_begun
from orchestrator.spec.sections import Spec
from orchestrator.store import Aside, Store, open_store


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for in addition to the spec.

    Attributes:
        plan_only: Say what would be trained, and train nothing.
        as_json: Print one document for programs to stdout, and everything else to stderr.
        share_epochs: Points that differ only in epochs share one trial.
        takeover: Take the lease even if another driver has it.
        mlflow: Address of the server to log to.
        serve: Serve the page while it trains.
        refit: Train the winner once more, on training and validation images together.
        suggest: Suggest so many points to train next, and train nothing.
        again: The command without that, as it is typed.
        show: File for a picture of augmented samples; with plan_only.
        folder: Where the spec lies, from the current folder, and with it maybe the model's module.
    """

    plan_only: bool = False
    as_json: bool = False
    share_epochs: bool = True
    takeover: bool = False
    keep: KeepModels = KeepModels.best
    mlflow: str | None = None
    keep_checkpoints: KeepCheckpoints = KeepCheckpoints.all
    folder: str = "."
    serve: bool = False
    refit: bool = False
    suggest: int | None = None
    again: str = ""
    show: str | None = None


def lay_out(spec: Spec, options: Options) -> tuple[WorkerContext, Plan]:
    """List the images, read the model's code, and plan. Writes nothing. Raises BadInput."""
    images = open_store(spec.data.uri)
    images.check()
    run = Run(open_store(f"{spec.output.rstrip('/')}/{spec.name}", create=True))
    run.store.check()
    before = run.read_plan()
    if before:
        spec = as_begun(spec, before["shared"])
    begun = before["shared"].get("train.precision") if before else None
    spec, precision = settle(spec, precision_on(node_here(), spec), begun)
    index = build_index(images, spec.data, _own_prefix(spec, run, images, is_begun=before is not None))
    check_class_weights(spec, index.classes)
    _check_metric(spec.metric, index.classes)
    networks, weights = find_networks(spec, options.folder)
    plan = make_plan(spec, count(index), index.digest, networks, options.share_epochs, read_pace())
    plan = replace(plan, precision=precision)
    spec = spec.without_secrets()
    shown = samples(plan, spec)
    return WorkerContext(spec, index, images, run, options.keep, False, networks, weights, shown), plan


def node_here() -> Node:
    """This machine, on which `--plan` says what is fastest, and which decides where a run begins."""
    return Node(machine.has_bfloat16(), machine.has_amx(), machine.has_gpu(), read_pace())


def _check_metric(metric: str, classes: Sequence[str]) -> None:
    """Raise BadInput for a metric that so few classes do not have."""
    if len(classes) < (least := METRICS[metric].least_classes):
        raise BadInput(
            f"metric {metric} must have at least {least} classes, got {len(classes)} ({', '.join(classes)}): rank by "
            f"another, such as --set metric=val_accuracy"
        )


def _own_prefix(spec: Spec, run: Run, images: Store, is_begun: bool) -> str:
    """What the keys of the images begin with that this and other runs write; "" where that is elsewhere.

    Raises BadInput where a run that has not begun would write among images.
    """
    output = open_store(spec.output, create=True).uri
    own = below(output, images.uri) or below(run.store.uri, images.uri) or ""
    inside = () if is_begun or not own else images.list(own.rstrip("/"), Aside())
    if taken := next((o.key for o in inside if o.key.lower().endswith(IMAGE_SUFFIXES)), None):
        raise BadInput(
            f"output must be a folder without images, got {own.rstrip('/')} with {taken} in it: give another"
        )
    return own


def points_planned_before(context: WorkerContext, plan: Plan) -> list[str]:
    """The ids of points in the last plan. Raises BadInput if its trials share other settings or images."""
    run, index = context.run, context.index
    before = run.read_plan()
    if before is None:
        return []
    changed = differences(before["shared"], plan.shared)
    settings = [what for what in changed if what not in (IMAGES, SPLIT)]
    if IMAGES in changed or (SPLIT in changed and not settings):
        if (remembered := run.read_index()) is not None:
            which = describe_changes(remembered, index)
        else:
            which = describe_counts(run.read_dataset().get("classes", {}), index)
        which = "; ".join([which, *settings])
        raise BadInput(
            f"{run.store.uri} holds a run on images that have changed since ({which}): put them "
            f"back, or train on these as they are in another run: the same command with --name {_next_name(context)}"
        )
    if settings:
        raise BadInput(
            f"{run.store.uri} holds a run whose trials share other settings ({'; '.join(settings)}): give this one "
            f"another name, such as --name {_next_name(context)}, or set them back"
        )
    return list(before["points"])


def _next_name(context: WorkerContext) -> str:
    """A name like this run's that no run beside it has yet."""
    output, name = context.spec.output.rstrip("/"), context.spec.name
    stem, number = found.groups() if (found := re.fullmatch(r"(.+)-(\d{1,6})", name)) else (name[:90], "1")
    names = (f"{stem}-{other}" for other in itertools.count(int(number) + 1))
    return next(each for each in names if Run(open_store(f"{output}/{each}", create=True)).read_plan() is None)
