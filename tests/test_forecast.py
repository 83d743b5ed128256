"""forecast: seconds of an epoch, a schedule of whole trials on nodes, and what that costs."""

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plans.disk import describe_disk
from orchestrator.plans.forecast import (
    FIRST_GUESS,
    LIST_PRICES,
    Counts,
    Pace,
    epoch_s,
    gpu_memory_mb,
    outlook,
    price,
    schedule,
    trials_per_gpu,
)
from orchestrator.plans.points import make_plan
from orchestrator.spec.axes import resolve
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Resources

COUNTS = Counts(6404, 1601)
SPEC = load_spec("name: n\ndata: {uri: x}\ngrid: {dropout: [0]}")
MEASURED = Pace("", {"float32": {10: 0.02, 50: 0.06}}, {"float32": 0.0}, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch_size": 32}, {"batch_size": 10}),  # more steps
        ({"image_size": (64, 64)}, {"image_size": (64, 65)}),
        ({"precision": "mixed_bfloat16"}, {"precision": "float32"}),
    ],
)
def test_the_forecast_grows_with_the_work(less, more):
    """Smaller batches, larger images and wider numbers take longer."""
    assert 0 < epoch_s(resolve(SPEC, less), COUNTS) < epoch_s(resolve(SPEC, more), COUNTS)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 1000), st.integers(0, 1000))
def test_more_images_never_take_less_time(training, validation, more_training, more_validation):
    """The forecast is positive, and grows with both kinds of images."""
    settings = resolve(SPEC, {})
    few = epoch_s(settings, Counts(training, validation))
    many = epoch_s(settings, Counts(training + more_training, validation + more_validation))
    assert 0 < few <= many * (1 + 1e-12)


@pytest.mark.parametrize(
    ("batch_size", "step_s"),
    [
        (10, 0.02),  # as measured
        (30, 0.04),  # between
        (100, 0.11),  # beyond, along the last line
        (5, 0.015),  # below: what a step takes whatever its images, 10 ms, remains
    ],
)
def test_a_step_lies_on_the_line_between_what_was_measured(batch_size, step_s):
    """On images of 64 x 64, an epoch takes the time of its steps."""
    took_s = epoch_s(resolve(SPEC, {"batch_size": batch_size}), Counts(batch_size * 7, 1), MEASURED)
    assert took_s == pytest.approx(7 * step_s)


def test_only_what_depends_on_pixels_grows_with_them():
    """Four times the pixels: a step of 10 images takes 10 ms and four times 10 ms."""
    took_s = epoch_s(resolve(SPEC, {"batch_size": 10, "image_size": (128, 128)}), Counts(10, 1), MEASURED)
    assert took_s == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("trials", "nodes", "slots", "ends"),
    [
        ([4, 3, 2, 1], 1, 1, [10]),
        ([4, 3, 2, 1], 1, 2, [5]),  # 4 + 1 beside 3 + 2
        ([4, 3, 2, 1], 2, 1, [5, 5]),
        ([9, 1, 1, 1], 2, 1, [9, 3]),  # one long trial is the floor
        ([5], 3, 2, [5, 0, 0]),  # a node that gets none costs nothing
        ([], 1, 1, [0]),
    ],
)
def test_trials_go_to_the_worker_that_is_free_first(trials, nodes, slots, ends):
    """In the order given, longest first, as Ray Tune starts them."""
    assert schedule(trials, nodes, slots, 0.0) == ends


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 4), st.floats(0, 50))
def test_no_schedule_beats_the_arithmetic(trials, nodes, slots, start_s):
    """Never shorter than the longest trial or an even share of the work, never longer than one after the other."""
    last = max(schedule(sorted(trials, reverse=True), nodes, slots, start_s))
    floor = start_s + max(max(trials), sum(trials) / (nodes * slots))
    assert floor * (1 - 1e-9) <= last <= (start_s + sum(trials)) * (1 + 1e-9)


def test_the_outlook_doubles_nodes_until_more_do_not_help():
    """Eight trials, two at once on a node: 1, 2 and 4 nodes, with start-up, cache, and the price if there is one."""
    pace = replace(MEASURED, worker_start_s=50.0, trial_start_s=10.0, fill_image_s=0.01)
    found = list(outlook([590.0] * 8, 2, pace, (1000 * pace.fill_image_s, 0.0), 0.6))
    assert [nodes for nodes, _, _ in found] == [1, 2, 4]
    assert [hours * 3600 for _, hours, _ in found] == pytest.approx([60 + 4 * 600, 60 + 2 * 600, 60 + 600])
    assert [usd for _, _, usd in found] == pytest.approx([2460 / 6000, 2 * 1260 / 6000, 4 * 660 / 6000])
    assert next(outlook([1.0], 1, pace, (0.0, 0.0), None))[2] is None


def test_a_calibration_reads_back_as_it_was_written():
    """Through JSON, whose keys are texts."""
    assert Pace.from_tree(json.loads(json.dumps(asdict(FIRST_GUESS)))) == FIRST_GUESS


@pytest.mark.parametrize(
    "change",
    [
        {"step_s": {}},
        {"step_s": {"float32": {}}},
        {"step_s": {"float32": {"10": float("nan")}}},
        {"step_s": {"float32": {"ten": 1}}},
        {"fill_image_s": -1},
        {"validation_image_s": None},
    ],
)
def test_a_damaged_calibration_is_told_from_a_whole_one(change):
    """Whatever is wrong with it is an error that its reader expects."""
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        Pace.from_tree({**asdict(FIRST_GUESS), **change})


def test_a_price_is_the_specs_own_or_the_lists():
    """For the node's own type, then for every type, then from the list; the spec's type where the node says none."""
    assert price(Resources(), None) is None
    assert price(Resources(), "g4dn.xlarge") == LIST_PRICES["g4dn.xlarge"] == 0.526
    assert price(Resources(node_type="g5.xlarge"), None) == 1.006
    assert price(Resources(node_type="g5.xlarge"), "my-machine") is None
    assert price(Resources(usd_per_hour={"g4dn.xlarge": 0.2, "*": 1.0}), "g4dn.xlarge") == 0.2
    assert price(Resources(usd_per_hour={"g4dn.xlarge": 0.2, "*": 1.0}), "g5.xlarge") == 1.0
    assert (
        price(load_spec("{name: a, data: {uri: a}, grid: {epochs: [1]}, resources: {usd_per_hour: 2}}").resources, "x")
        == 2
    )


@pytest.mark.parametrize(
    ("gpu_mb", "trial_mb", "count"),
    [
        (15360, 2500, 5),
        (15360, 13824, 1),  # exactly what may be used
        (15360, 20000, 1),  # too large: it gets a GPU of its own, and says so itself
        (81920, 1600, 8),  # never more, however small
        (15360, math.inf, 1),
    ],
)
def test_a_gpu_is_shared_by_as_many_trials_as_fit(gpu_mb, trial_mb, count):
    """A tenth of its memory stays free."""
    assert trials_per_gpu(gpu_mb, trial_mb) == count


def test_a_trial_takes_more_of_a_gpu_the_more_it_holds():
    """Its data set, its batch, and a part for every process."""
    usual = gpu_memory_mb(resolve(SPEC, {}), COUNTS)
    assert usual > 1000
    assert gpu_memory_mb(resolve(SPEC, {"batch_size": 256}), COUNTS) > usual
    assert gpu_memory_mb(resolve(SPEC, {"image_size": (128, 128)}), COUNTS) > usual
    assert gpu_memory_mb(resolve(SPEC, {}), Counts(64040, 1601)) > usual


DISK = [
    (
        [],
        (4, 1),
        "about 9 MB in the run folder: 4 checkpoints and 1 model; a checkpoint takes 3 times what its weights",
    ),
    (["train.optimizer=sgd", "metric=best_val_accuracy"], (1, 8), "about 7 MB in the run folder: 1 checkpoint and 8"),
    (
        ["model=mine:own"],
        (4, 1),
        "4 checkpoints and 1 model; a checkpoint takes 3 times what its weights take, and the",
    ),
    (["grid={batch_size: [1, 2, 3, 4], optimizer: [sgd, adam]}"], (8, 0), "about 11 MB in the run folder: 8 chec"),
]


@pytest.mark.parametrize(("overrides", "kept", "told"), DISK)
def test_the_disk_is_foretold(overrides: list[str], kept: tuple[int, int], told: str):
    """A small_cnn at 32x32 has 166,977 weights of 4 bytes; a checkpoint also has what the optimizer keeps of each."""
    grid = "grid: {batch_size: [1, 2, 3, 4]}"
    spec = load_spec(f"name: n\ndata: {{uri: x, image_size: 32}}\n{grid}", overrides)
    plan = make_plan(spec, COUNTS, "i", Networks({resolve(spec, {}).model: Code("c", {})}))
    assert describe_disk(plan, spec, 2, [], kept).startswith(told)
    if "model=mine:own" in overrides:
        assert describe_disk(plan, spec, 2, [2 * 10**9], kept).startswith("about 8.7 GB in the run folder")
