"""Describe: the plan as a person reads it, and as JSON. Pure."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.plans.features import FeatureView
from orchestrator.plans.forecast import FIRST_GUESS, Pace, outlook, price
from orchestrator.plans.points import Plan
from orchestrator.plans.rates import RangeTest
from orchestrator.plans.trials import Trial
from orchestrator.spec.ranges import Range
from orchestrator.spec.sampled import drawn_axes
from orchestrator.spec.sections import Spec, is_streamed
from orchestrator.words import clock, label, plural


def describe(
    plan: Plan, spec: Spec, images: Sequence[str], folder: str, forecast: Iterable[str] = (), disk: str = ""
) -> list[str]:
    """The plan as a person reads it, line by line.

    images: lines on them. folder, disk: one line each. forecast: the lines of `describe_outlook`.
    """
    forecast_lines = list(forecast)
    sizes = sorted({(_training_images(plan, trial), _batch_size(plan, trial)) for trial in plan.trials})
    of_many = len({images for images, _ in sizes}) > 1
    steps = "; ".join(_steps(images, size, of_many) for images, size in sizes)
    what = "a trial, or its stable part" if any(trial.stable for trial in plan.trials) else "a trial"
    shared = "" if plan.epochs_asked == plan.epochs_trained else f" (points that differ only in epochs share {what})"
    lines = [
        f"{spec.name}: {plural(len(plan.points), 'point')}, {plural(len(plan.trials), 'trial')}",
        *(f"  {'images' if i == 0 else '':7} {line}" for i, line in enumerate(images)),
        *(f"  cache   {line}" for line in _cache_lines(plan, spec)),
        *(f"  feature {line}" for line in _feature_lines(plan)),
        *(f"  {'rates' if i == 0 else '':7} {line}" for i, line in enumerate(_rate_lines(plan))),
        *([f"  sample  {_say_sample(spec)}"] if spec.sample else []),
        f"  steps   an epoch: {steps}",
        f"  epochs  {plan.epochs_asked} asked for, {plan.epochs_trained} trained{shared}",
        *(f"          {line}" for line in _cosine_lines(plan)),
        *([f"  train   {plan.precision.describe()}"] if plan.precision else []),
        f"  folder  {folder}",
        *([f"  disk    {disk}"] if disk else []),
        *(["", *forecast_lines] if forecast_lines else []),
        "",
        "trial         epochs    forecast  values",
    ]
    for trial in plan.trials[:20]:
        milestones = ",".join(map(str, trial.milestones))
        branch = f"  after {trial.frozen}" if trial.frozen else ""
        if begins := trial.epochs_of_another:
            assert trial.stable
            branch = f"  after {plural(begins, 'epoch')} of {trial.stable.trainer}"
        name = trial.label
        lines.append(f"{trial.id}  {milestones:<8}  {clock(trial.left_s(begins)):>8}  {name}{branch}")
    if len(plan.trials) > 20:
        lines.append(f"and {len(plan.trials) - 20} more")
    return lines


def describe_outlook(
    plan: Plan,
    spec: Spec,
    slots: int,
    todo: Collection[Trial],
    pace: Pace = FIRST_GUESS,
    missing: Collection[FeatureView | RangeTest] = (),
) -> Iterator[str]:
    """Lines on how long the remaining trials take on 1, 2, 4, … nodes like this machine, and what that costs.

    slots: trials at once on a node. todo: the trials that remain, longest first; if there are none, no lines.
    missing: features that are still to be made, by all cores of a node, and range tests, each by one worker.
    """
    if not todo:
        return
    found = forecast_tree(plan, spec, slots, todo, pace, missing)
    if found["features_s"]:
        cores = plural(slots * spec.resources.cpus_per_trial, "core")
        yield f"  feature about {clock(found['features_s'])} on {cores} until all are made"
    if found["rates_s"]:
        yield f"  rates   about {clock(found['rates_s'])} until all are found, {slots} at once"
    yield f"  pace    {pace.source}"
    if (usd := found["usd_per_hour"]) is not None:
        yield f"  price   ${usd:g} an hour for a {spec.resources.node_type or 'node'}, while trials run on it"
    elif spec.resources.node_type:
        yield f"  price   no list price for a {spec.resources.node_type}: set resources.usd_per_hour"
    for each in found["nodes"]:
        cost = "" if each["usd"] is None else f", ${each['usd']:.2f}"
        where = f"{plural(each['nodes'], 'node')} like this one, {slots} at once on each"
        yield f"  time    about {clock(each['seconds'])}{cost} on {where}"


def forecast_tree(
    plan: Plan,
    spec: Spec,
    slots: int,
    todo: Collection[Trial],
    pace: Pace = FIRST_GUESS,
    missing: Collection[FeatureView | RangeTest] = (),
) -> dict[str, Any]:
    """What `describe_outlook` says, as plain values, for JSON; no nodes where nothing remains."""
    features_s = sum(each.core_s for each in missing if isinstance(each, FeatureView))
    features_s /= slots * spec.resources.cpus_per_trial
    rates_s = sum(each.core_s for each in missing if isinstance(each, RangeTest)) / slots
    usd = price(spec.resources, None)
    prepare_s = (plan.counts.images * pace.fill_image_s, features_s + rates_s)
    nodes = outlook([trial.forecast_s for trial in todo], slots, pace, prepare_s, usd) if todo else ()
    return {
        "pace": pace.source,
        "slots": slots,
        "usd_per_hour": usd,
        "features_s": features_s,
        "rates_s": rates_s,
        "nodes": [{"nodes": count, "seconds": hours * 3600, "usd": dollars} for count, hours, dollars in nodes],
    }


def as_tree(plan: Plan, points_by_state: Mapping[str, int]) -> dict[str, Any]:
    """The plan as plain values, for JSON. points_by_state: how many are done, missing and new in the run folder."""
    return {
        "points": [
            {"id": p.id, "trial_id": p.trial_id, "seed": p.seed, **_fold(plan, p.fold), "epochs": p.epochs, **p.values}
            for p in plan.points
        ],
        "trials": [
            {
                "id": t.id,
                "seed": t.seed,
                **_fold(plan, t.fold),
                "milestones": t.milestones,
                "forecast_s": round(t.left_s(t.epochs_of_another), 3),
                **t.values,
                "steps_per_epoch": math.ceil(_training_images(plan, t) / _batch_size(plan, t)),
                **({"branches_from": t.frozen} if t.frozen else {}),
                **({"rate_test": t.rate_test} if t.rate_test else {}),
                **({"forks_from": t.stable.trainer} if t.stable and t.stable.trainer else {}),
            }
            for t in plan.trials
        ],
        "features": [_feature_tree(view) for view in plan.features],
        "rate_tests": [_rate_tree(test) for test in plan.rate_tests],
        "training_images": plan.counts.training,
        "validation_images": plan.counts.validation,
        "test_images": plan.counts.test,
        "epochs_asked": plan.epochs_asked,
        "epochs_trained": plan.epochs_trained,
        "precision": {"became": plan.precision.value, "why": plan.precision.why} if plan.precision else None,
        "standing": dict(points_by_state),
    }


def _say_sample(spec: Spec) -> str:
    """What the points are drawn from."""
    assert spec.sample
    said = []
    for name in drawn_axes(spec.grid):
        values = spec.grid[name]
        if isinstance(values, Range):
            said.append(f"{name} {values.low:g} to {values.high:g}" + (" (log)" if values.scale == "log" else ""))
        else:
            said.append(f"{name} of {plural(len(values), 'value')}")
    return f"{spec.sample.points:,} drawn by {spec.sample.method}, seed {spec.sample.seed}: {', '.join(said)}"


def _fold(plan: Plan, fold: int) -> dict[str, int]:
    return {"fold": fold} if plan.shared.get("data.folds") else {}


def _cache_lines(plan: Plan, spec: Spec) -> Iterator[str]:
    """For each image size: whether a node keeps the decoded images, and why."""
    images = plan.counts.images
    for size in dict.fromkeys(trial.values.get("image_size", spec.data.image_size) for trial in plan.trials):
        data = spec.data.model_copy(update={"image_size": size})
        decoded = f"{images * 3 * math.prod(size) / 1e6:,.1f} MB decoded at {size[0]}x{size[1]}"
        limit = f"data.cache_limit_gb, {data.cache_limit_gb:g} GB"
        if is_streamed(data, images):
            yield f"{decoded}: more than {limit}, so every epoch of every trial streams them anew"
        else:
            yield f"{decoded}: within {limit}, so each node fetches and decodes them once"


def _cosine_lines(plan: Plan) -> Iterator[str]:
    """What it costs that a cosine depends on how many epochs there are."""
    if more := plan.cosine_epochs:
        yield f"with a cosine they share nothing, as its rates depend on the last epoch: {plural(more, 'epoch')} more"


def _feature_lines(plan: Plan) -> Iterator[str]:
    """For each backbone and image size: what is made of the images."""
    alike: dict[tuple[str, tuple[int, int]], list[FeatureView]] = {}
    for view in plan.features:
        alike.setdefault((view.backbone, view.image_size), []).append(view)
    for (backbone, size), views in alike.items():
        width, size_bytes = views[0].width, sum(view.size_bytes or 0 for view in views)
        each = f"{width} features each, {size_bytes / 1e6:,.1f} MB" if width else "their number is in the network"
        times = f" x {plural(len(views), 'view')}" if len(views) > 1 else ""
        at = f"{plural(views[0].images, 'image')}{times} at {size[0]}x{size[1]}"
        yield f"{at} through {backbone} ({views[0].pixels}): {each}"


def _feature_tree(view: FeatureView) -> dict[str, Any]:
    return {
        "id": view.id,
        "backbone": view.backbone,
        "image_size": view.image_size,
        "images": view.images,
        "size_bytes": view.size_bytes,
        "forecast_core_s": round(view.core_s, 3),
    }


def _rate_lines(plan: Plan) -> Iterator[str]:
    """How many range tests there are, and what for."""
    if not (tests := plan.rate_tests):
        return
    steps, trials = max(test.steps for test in tests), sum(test.trials for test in tests)
    count, served = plural(len(tests), "range test"), plural(trials, "trial")
    yield f"{count} of up to {steps} steps, for {served}: learning_rate auto"
    for test in tests[:8]:
        yield f"{test.id}  about {clock(test.core_s)} for {plural(test.trials, 'trial')}: {label(test.values)}"
    if len(tests) > 8:
        yield f"and {len(tests) - 8} more"


def _rate_tree(test: RangeTest) -> dict[str, Any]:
    return {
        "id": test.id,
        "values": dict(test.values),
        "steps": test.steps,
        "trials": test.trials,
        "forecast_s": round(test.core_s, 3),
    }


def _training_images(plan: Plan, trial: Trial) -> int:
    images = trial.values.get("training_images", plan.shared.get("data.training_images"))
    return plan.counts.training if images is None else int(images)


def _batch_size(plan: Plan, trial: Trial) -> int:
    return trial.values.get("batch_size", plan.shared.get("train.batch_size"))


def _steps(images: int, batch_size: int, say_images: bool) -> str:
    full, rest = divmod(images, batch_size)
    of = f" of {images:,} images" if say_images else ""
    return f"{full + bool(rest)} at batch size {batch_size}{of}" + (f" (the last of {rest})" if rest else "")
