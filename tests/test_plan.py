"""plan: points in product order, ids that stay, trials that are shared, and what a person reads before starting."""

from collections import defaultdict
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import BadInput
from orchestrator.plans.describe import as_tree, describe, describe_outlook
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, count_by_state, differences, make_plan, remaining
from orchestrator.spec.code import Code, read_code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec
from orchestrator.words import clock, label

COUNTS = Counts(6404, 1601)
CODE = Code("c" * 64, {"dropout": 0.0, "l2": 0.0})


def networks(code: Code) -> Networks:
    """Those of any spec without a backbone: the model does not matter here."""
    return Networks(defaultdict(lambda: code))


def planned(share_epochs: bool = True, code: Code = CODE, counts: Counts = COUNTS, **spec: object) -> Plan:
    """A plan of the spec with these keys; image set and model are the same each time."""
    tree = {"name": "cats", "data": {"uri": "images"}, "grid": {"batch_size": [5, 10]}} | spec
    return make_plan(load_spec(yaml.safe_dump(tree, sort_keys=False)), counts, "i" * 64, networks(code), share_epochs)


def ids(plan: Plan) -> list[str]:
    return [point.id for point in plan.points]


def trial_ids(plan: Plan) -> set[str]:
    return {trial.id for trial in plan.trials}


def test_points_come_in_the_order_of_the_spec():
    """The last axis turns fastest, then come the seeds of one combination, then single points."""
    plan = planned(
        grid={"batch_size": [10, 5], "dropout": [0.5, 0.0]}, seeds=[7, 0], points=[{"batch_size": 3, "dropout": 0.1}]
    )
    found = [(point.values["batch_size"], point.values["dropout"], point.seed) for point in plan.points]
    pairs = [(10, 0.5), (10, 0.0), (5, 0.5), (5, 0.0), (3, 0.1)]
    assert found == [(*pair, seed) for pair in pairs for seed in (7, 0)]
    assert plan.axes == ("batch_size", "dropout")


def test_ids_are_the_ones_they_have_always_been():
    """A run folder of an older version is still known: whoever changes these ids orphans every result."""
    grid = {"batch_size": [5], "epochs": [2, 4], "image_size": [32]}
    of_0_1_0 = {"uri": "x", "rule": 1, "split_by": "order", "exif": "ignore"}
    plan = planned(grid=grid, seeds=[1], data=of_0_1_0)
    assert ids(plan) == ["18dc90779ac6", "fbe46833d723"]
    assert trial_ids(plan) == {"07041f6ab8d9"}
    assert trial_ids(planned(grid=grid, seeds=[1])) == {"d60ef8853dcf"}


def test_ids_do_not_depend_on_the_order_in_which_the_spec_lists_things():
    """The same points in another order of axes, values and seeds are the same points."""
    one = planned(grid={"batch_size": [5, 10], "dropout": [0, 0.5], "epochs": [1, 2]}, seeds=[0, 1])
    two = planned(grid={"epochs": [2, 1], "dropout": [0.5, 0.0], "batch_size": [10, 5]}, seeds=[1, 0])
    assert set(ids(one)) == set(ids(two))
    assert trial_ids(one) == trial_ids(two)


def test_points_that_differ_only_in_epochs_share_one_trial():
    """One trial of the most epochs is read off at each of them."""
    plan = planned(grid={"batch_size": [5, 10], "epochs": [10, 2, 4]})
    assert (len(plan.points), len(plan.trials)) == (6, 2)
    assert {trial.milestones for trial in plan.trials} == {(2, 4, 10)}
    assert (plan.epochs_asked, plan.epochs_trained) == (32, 20)
    assert all("epochs" not in trial.values for trial in plan.trials)


def test_nothing_is_shared_where_that_is_not_wanted():
    """Without sharing, each point trains alone."""
    plan = planned(share_epochs=False, grid={"batch_size": [5, 10], "epochs": [10, 2, 4]})
    assert (len(plan.points), len(plan.trials)) == (6, 6)
    assert plan.epochs_trained == plan.epochs_asked == 32


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("learning_rate", [0.01, 0.001]),
        ("optimizer", ["sgd", "adam"]),
        ("image_size", [32, 64]),
        ("horizontal_flip", [True, False]),
        ("dropout", [0.5, 0]),
        ("l2", [0.0, 0.1]),
        ("model", ["mlp", "small_cnn"]),
    ],
)
def test_a_new_axis_that_holds_the_old_default_keeps_what_is_trained(axis, values):
    """The points that stood at the default of the section or of the model keep their ids."""
    before = planned()
    after = planned(grid={"batch_size": [5, 10], axis: values})
    assert set(ids(before)) < set(ids(after))
    assert trial_ids(before) < trial_ids(after)
    assert differences(before.shared, after.shared) == []
    assert len(after.points) == 4


def test_each_model_stands_at_its_own_defaults():
    """Where models are compared: a point that leaves an argument out trains what its model would train alone."""
    own = Code("d" * 64, {"dropout": 0.3, "width": 8})
    codes = Networks({"small_cnn": CODE, "nets:own": own})
    tree = {"name": "cats", "data": {"uri": "images"}, "grid": {"batch_size": [5], "model": ["nets:own", "small_cnn"]}}
    both = make_plan(load_spec(yaml.safe_dump({**tree, "points": [{"dropout": 0.5}]})), COUNTS, "i" * 64, codes)
    assert [(p.values["model"], p.values["dropout"]) for p in both.points] == [
        ("nets:own", 0.3),
        ("small_cnn", 0.0),
        ("small_cnn", 0.5),
    ]
    for point, model, code in zip(both.points, ("nets:own", "small_cnn"), (own, CODE), strict=False):
        assert ids(planned(grid={"batch_size": [5]}, model=model, code=code)) == [point.id]


@pytest.mark.parametrize(
    "larger",
    [
        {"grid": {"batch_size": [5, 7, 10]}},
        {"seeds": [3, 0]},
        {"points": [{"batch_size": 99}]},
        {"grid": {"batch_size": [10, 5, 99], "dropout": [0.5, 0.0]}, "seeds": [1, 0]},
    ],
)
def test_a_larger_grid_keeps_every_id_and_only_adds(larger):
    """Whatever is trained stays trained."""
    before, after = planned(), planned(**larger)
    assert set(ids(before)) < set(ids(after))
    assert trial_ids(before) < trial_ids(after)


def test_more_epochs_for_the_same_points_are_more_work_for_the_same_trials():
    """A trial that is asked for more epochs keeps its id: it goes on from where it stopped."""
    short, long = planned(train={"epochs": 2}), planned(train={"epochs": 4})
    assert trial_ids(short) == trial_ids(long)
    assert not set(ids(short)) & set(ids(long))
    left = remaining(long, {trial.id: 2 for trial in short.trials})
    assert [trial.id for trial in left] == [trial.id for trial in long.trials]
    assert [2 * trial.forecast_s for trial in left] == [trial.forecast_s for trial in long.trials]


@pytest.mark.parametrize(
    "changed",
    [
        {"data": {"uri": "images", "resize": "area"}},
        {"data": {"uri": "images", "validation_split": 0.3}},
        {"augment": {"rotation_deg": 5}},
        {"train": {"learning_rate": 0.01}},
        {"train": {"early_stopping": {}}},
        {"code": Code("d" * 64, CODE.defaults)},
        {"code": Code("c" * 64, {"dropout": 0.1, "l2": 0.0})},
        {"code": Code("c" * 64, {**CODE.defaults, "optimizer": "mine"}), "train": {"optimizer": "sgd"}},
        {"grid": {"batch_size": [6, 11]}},
        {"seeds": [1]},
    ],
)
def test_whatever_decides_the_weights_decides_the_id(changed):
    """Another setting, model source, default or seed is another trial."""
    assert not trial_ids(planned()) & trial_ids(planned(**changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "dogs"},
        {"data": {"uri": "elsewhere"}},
        {"data": {"uri": "images", "on_bad_image": "skip"}},
        {"train": {"checkpoint_every_s": 1}},
        {"resources": {"cpus_per_trial": 2}},
        {"metric": "val_loss"},
        {"output": "s3://bucket/runs"},
    ],
)
def test_where_and_how_fast_it_trains_does_not_decide_the_id(changed):
    """The same trials on another machine, or of another name, are the same trials."""
    assert ids(planned(**changed)) == ids(planned())


def test_an_exclusion_takes_out_every_point_it_matches():
    """All the values that an exclusion names must match; equal numbers match in either writing."""
    plan = planned(grid={"batch_size": [5, 10], "dropout": [0, 0.5]}, exclude=[{"batch_size": 5, "dropout": 0.0}])
    assert [tuple(point.values.values()) for point in plan.points] == [(5, 0.5), (10, 0), (10, 0.5)]
    plan = planned(grid={"batch_size": [5, 10], "dropout": [0, 0.5]}, exclude=[{"dropout": 0.0}, {"batch_size": 5}])
    assert [tuple(point.values.values()) for point in plan.points] == [(10, 0.5)]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"exclude": [{"batch_size": 5}, {"batch_size": 7}]}, "exclude[1] must match at least one point of the grid"),
        ({"exclude": [{"batch_size": 5}, {"batch_size": 10}]}, "exclude takes out every point of the grid"),
        ({"points": [{"batch_size": 10}]}, "points[0] is the same as a point of the grid"),
        ({"points": [{"batch_size": 3}, {"batch_size": 3}]}, "points[1] is the same as points[0]"),
        # 10 is the default of epochs, so that this is the same point again
        ({"points": [{"batch_size": 3}, {"batch_size": 3, "epochs": 10}]}, "points[1] is the same as points[0]"),
        (
            {"points": [{"units": 3}]},
            "a point of the grid must name units, to which the model small_cnn gives no plain",
        ),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(spec, says):
    """Points that stand twice, exclusions without effect and grids without points are mistakes."""
    with pytest.raises(BadInput) as refused:
        planned(**spec)
    assert str(refused.value).startswith(says)


def test_a_point_beside_the_grid_stands_at_the_defaults_for_what_it_leaves_out():
    """Its values are those of the spec's sections and of the model's arguments."""
    plan = planned(
        grid={"batch_size": [5], "dropout": [0.5]}, points=[{"epochs": 3}], train={"batch_size": 8, "epochs": 2}
    )
    assert [point.values for point in plan.points] == [
        {"batch_size": 5, "dropout": 0.5, "epochs": 2},
        {"batch_size": 8, "dropout": 0.0, "epochs": 3},
    ]
    assert [point.epochs for point in plan.points] == [2, 3]


def test_an_exclusion_leaves_single_points_alone():
    """What is listed by hand is meant."""
    assert len(planned(points=[{"batch_size": 3, "dropout": 0.5}], exclude=[{"batch_size": 5}]).points) == 2


axes = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True),
        "epochs": st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
        "dropout": st.lists(st.floats(0, 0.9), min_size=1, max_size=3, unique=True),
        "optimizer": st.lists(st.sampled_from(["adam", "sgd"]), min_size=1, unique=True),
    },
).filter(bool)


@given(axes, st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), st.booleans())
def test_every_point_is_read_off_one_trial_and_no_two_are_the_same(grid, seeds, share_epochs):
    """Ids are unique, each trial serves exactly its points' epochs, and sharing only ever saves epochs."""
    plan = planned(share_epochs, grid=grid, seeds=seeds)
    expected = len(seeds)
    for values in grid.values():
        expected *= len(values)
    assert len(set(ids(plan))) == len(plan.points) == expected
    served = {trial.id: [] for trial in plan.trials}
    assert len(served) == len(plan.trials)
    for point in plan.points:
        served[point.trial_id].append(point.epochs)
    assert {trial.id: list(trial.milestones) for trial in plan.trials} == {k: sorted(v) for k, v in served.items()}
    assert plan.epochs_trained <= plan.epochs_asked
    forecasts = [trial.forecast_s for trial in plan.trials]
    assert forecasts == sorted(forecasts, reverse=True)
    assert min(forecasts) > 0


def test_what_remains_is_what_no_result_covers_longest_first():
    """A trial with a result of fewer epochs than asked remains; one with more does not."""
    plan = planned(grid={"batch_size": [5, 10, 20], "epochs": [2, 4]})
    slow, middle, fast = plan.trials
    assert remaining(plan, {}) == plan.trials
    left = remaining(plan, {slow.id: 2, middle.id: 4, "another": 9})
    assert left == (fast, replace(slow, forecast_s=slow.forecast_s / 2)), "half of the slow one is done"
    assert remaining(plan, {trial.id: 9 for trial in plan.trials}) == ()


def test_the_standing_counts_points_not_trials():
    """A point is done where its trial's result covers its epochs, missing where it was planned before, else new."""
    before = planned(grid={"batch_size": [5, 10], "epochs": [2, 4]})
    plan = planned(grid={"batch_size": [5, 10, 20], "epochs": [2, 4]})
    trial_id = before.points[0].trial_id
    assert count_by_state(plan, {}, ()) == {"done": 0, "missing": 0, "new": 6}
    assert count_by_state(plan, {trial_id: 2}, ids(before)) == {"done": 1, "missing": 3, "new": 2}
    assert count_by_state(plan, {trial_id: 4}, ids(before)) == {"done": 2, "missing": 2, "new": 2}


def test_differences_name_each_shared_setting_that_changed():
    """Old and new value of each, or that it changed; an axis in either of the two is no difference."""
    old = planned()
    new = planned(
        grid={"epochs": [1], "learning_rate": [0.1]},
        train={"optimizer": "sgd", "batch_size": 3},
        data={"uri": "x", "image_size": 32},
        code=Code("d" * 64, CODE.defaults),
    )
    assert differences(old.shared, new.shared) == [
        "data.image_size: (64, 64) -> (32, 32)",
        "train.optimizer: adam -> sgd",
        "the code of the model has changed",
    ]
    assert differences(old.shared, old.shared) == []


def test_the_description_shows_points_trials_steps_and_epochs():
    """The notebook's 6404 images make 641 steps of 10, the last of 4 images, and 201 of 32."""
    plan = planned(grid={"batch_size": [10, 32], "epochs": [5, 10]})
    spec = load_spec("{name: cats, data: {uri: x}, grid: {batch_size: [10, 32], epochs: [5, 10]}}")
    folder = "runs/cats: 1 done, 0 missing, 3 new"
    text = "\n".join(describe(plan, spec, ["8005 of 2 classes"], folder, describe_outlook(plan, spec, 2, plan.trials)))
    assert "cats: 4 points, 2 trials\n" in text
    assert "an epoch: 641 at batch size 10 (the last of 4); 201 at batch size 32 (the last of 4)\n" in text
    assert "30 asked for, 20 trained (points that differ only in epochs share a trial)\n" in text
    assert "runs/cats: 1 done, 0 missing, 3 new\n" in text
    assert [line for line in text.splitlines() if "5,10" in line] == [
        f"{trial.id}  5,10      {clock(trial.forecast_s):>8}  batch_size={trial.values['batch_size']}"
        for trial in plan.trials
    ]


def test_the_plan_as_json_gives_each_trials_steps():
    """The steps are those of its batch size, from the grid or the section."""
    tree = as_tree(planned(grid={"batch_size": [10, 32]}), {})
    assert {trial["batch_size"]: trial["steps_per_epoch"] for trial in tree["trials"]} == {10: 641, 32: 201}
    tree = as_tree(planned(grid={"dropout": [0.5]}, train={"batch_size": 6404}), {})
    assert [trial["steps_per_epoch"] for trial in tree["trials"]] == [1]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_times_read_as_people_say_them(seconds, text):
    """Seconds, minutes or hours, whichever suits."""
    assert clock(seconds) == text


def test_a_trials_label_names_its_values():
    """Sizes read 32x48, and the seed is named unless it is 0."""
    assert label({"image_size": (32, 48), "dropout": 0.5}, 3) == "image_size=32x48 dropout=0.5 seed=3"
    assert label({}, 0) == "every setting as in the spec"


def test_the_small_models_own_defaults_are_the_ones_that_count():
    """Adding the axis dropout: [0.0, 0.5] to a grid on small_cnn keeps the trials without it."""
    code = read_code("small_cnn", [])
    before, after = planned(code=code), planned(code=code, grid={"batch_size": [5, 10], "dropout": [0.0, 0.5]})
    assert trial_ids(before) < trial_ids(after)


def test_the_description_says_whether_images_are_kept_and_why():
    """Within the limit each node decodes them once; above it every epoch streams them anew."""
    plan = planned(grid={"image_size": [32, 64], "epochs": [1]})
    spec = load_spec("{name: cats, data: {uri: x, cache_limit_gb: 0.05}, grid: {image_size: [32, 64], epochs: [1]}}")
    text = "\n".join(describe(plan, spec, ["8005"], "runs/cats", describe_outlook(plan, spec, 2, plan.trials)))
    assert "24.6 MB decoded at 32x32: within data.cache_limit_gb, 0.05 GB" in text
    assert "98.4 MB decoded at 64x64: more than data.cache_limit_gb, 0.05 GB, so every epoch" in text


def test_streamed_shards_are_other_trials_and_streamed_objects_are_not():
    """Shards that are streamed come in another order; single objects in the same one, wherever they are read from."""

    def trial_id(limit_gb: float, packed: bool) -> str:
        spec = load_spec(f"{{name: a, data: {{uri: x, cache_limit_gb: {limit_gb}}}, grid: {{batch_size: [4]}}}}")
        return make_plan(spec, Counts(80, 20, packed), "i", networks(Code("c", {}))).trials[0].id

    assert trial_id(0, packed=False) == trial_id(20, packed=False) == trial_id(20, packed=True)
    assert trial_id(0, packed=True) != trial_id(20, packed=True)


def test_the_description_forecasts_time_and_cost_for_more_and_more_nodes():
    """Of what remains; with the list price of the nodes named, or a word where there is none."""
    text = "{name: cats, data: {uri: x}, grid: {batch_size: [10, 32]}, resources: {node_type: %s}}"
    plan = planned(grid={"batch_size": [10, 32]})
    said = list(describe_outlook(plan, load_spec(text % "g4dn.xlarge"), 1, plan.trials))
    assert any(line.startswith("  pace    a first guess") for line in said)
    assert "  price   $0.526 an hour for a g4dn.xlarge, while trials run on it" in said
    assert [line.split(" on ", 1)[1] for line in said if line.startswith("  time ")] == [
        "1 node like this one, 1 at once on each",
        "2 nodes like this one, 1 at once on each",
    ]
    assert all("$" in line for line in said if line.startswith("  time "))
    said = list(describe_outlook(plan, load_spec(text % "mine"), 1, plan.trials[:1]))
    assert "  price   no list price for a mine: set resources.usd_per_hour" in said
    assert sum(line.startswith("  time ") for line in said) == 1
    assert list(describe_outlook(plan, load_spec(text % "mine"), 1, ())) == []
