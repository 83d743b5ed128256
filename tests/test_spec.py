"""spec: what is accepted, what is refused and in which words, and that the resolved spec reads back as itself."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.board.table import COLUMNS
from orchestrator.data.backbone import find_networks
from orchestrator.errors import BadInput
from orchestrator.plans.describe import as_tree
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import make_plan
from orchestrator.spec.axes import AXIS_PATHS, RESERVED_AXES
from orchestrator.spec.code import read_code
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.reading import load_spec, to_yaml, validate
from orchestrator.spec.sections import Spec

SMALL = """
name: cats
data: {uri: images}
grid: {batch_size: [5, 10]}
"""


def spec_with(path: str, value: object) -> Spec:
    """The small spec with one key set, as its YAML would say it."""
    tree = yaml.safe_load(SMALL)
    *sections, last = path.split(".")
    inner = tree
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return load_spec(yaml.safe_dump(tree))


def complaint(text: str, overrides: tuple[str, ...] = ()) -> str:
    """The message of a refused spec, which is always one line."""
    with pytest.raises(BadInput) as refused:
        load_spec(text, overrides, "spec.yaml")
    message = str(refused.value)
    assert message.splitlines() == [message]
    return message


AXES = ", ".join(AXIS_PATHS)
WRONG = [
    # sections
    (
        "nam",
        "x",
        "nam is not a known key (did you mean name?); known: name, data, augment, backbone, model, train, grid",
    ),
    ("data.urk", "x", "data.urk is not a known key (did you mean uri?); known: uri, layout, labels"),
    ("train.early_stopping.patiense", 3, "train.early_stopping.patiense is not a known key (did you mean patience?)"),
    ("resources.max_concurent", 3, "resources.max_concurent is not a known key (did you mean max_concurrent?)"),
    ("a\nb", 3, "'a\\nb' is not a known key"),
    ("train", None, "train must be a mapping, got null"),
    ("train", [1], "train must be a mapping, got [1]"),
    ("data", {}, "data.uri is missing: add it to the spec"),
    # wrong type
    ("name", 3, "name must be a text, got 3"),
    ("name", None, "name must be a text, got null"),
    ("name", "a/b", "name must be letters, digits, '.', '_' and '-' (at most 100, the first a letter or digit)"),
    ("name", "..", "name must be letters, digits"),
    ("name", "a\n", "name must be letters, digits"),
    ("data.uri", "", "data.uri must be a non-empty text, got ''"),
    ("train.epochs", 1.5, "train.epochs must be a whole number, got 1.5"),
    ("train.epochs", 2.0, "train.epochs must be a whole number, got 2.0"),
    ("train.epochs", True, "train.epochs must be a whole number, got true"),
    ("train.learning_rate", "fast", "train.learning_rate must be auto or a number above 0, got 'fast'"),
    ("train.learning_rate", float("inf"), "train.learning_rate must be auto or a number above 0, got inf"),
    ("train.precision", "half", "train.precision must be one of 'auto', 'float32', 'mixed_bfloat16' or"),
    ("grid.precision", ["float32", "auto"], "grid.precision[1] must be one of float32, mixed_bfloat16, mixed_float16"),
    ("grid.precision", ["half"], "grid.precision[0] must be one of float32, mixed_bfloat16, mixed_float16, got 'half'"),
    ("points", [{"precision": "auto"}], "points[0].precision must be one of float32, mixed_bfloat16, mixed_float16"),
    ("augment.horizontal_flip", "yes", "augment.horizontal_flip must be true or false, got 'yes'"),
    ("augment.horizontal_flip", 1, "augment.horizontal_flip must be true or false, got 1"),
    ("train.early_stopping", 3, "train.early_stopping must be a mapping, got 3"),
    (
        "model",
        "resnet",
        f"model must be auto, head, {', '.join(OWN_MODELS)} or package.module:function, got 'resnet'",
    ),
    ("model", "a..b:c", "model must be auto, head, small_cnn, "),
    (
        "metric",
        "f1",
        "metric must be one of val_accuracy, val_loss, accuracy, loss, val_balanced_accuracy,",
    ),
    ("resources.gpus_per_trial", "two", "resources.gpus_per_trial must be auto or a number of at least 0, got 'two'"),
    ("resources.usd_per_hour", "cheap", "resources.usd_per_hour must be a mapping, got 'cheap'"),
    (
        "resources.usd_per_hour",
        {"g5.xlarge": -1},
        "resources.usd_per_hour.g5.xlarge must be a number of at least 0, got -1",
    ),
    ("budget.max_hours", 0, "budget.max_hours must be a number above 0, got 0"),
    ("budget.max_usd", "ten", "budget.max_usd must be a number, got 'ten'"),
    ("budget.max_hour", 3, "budget.max_hour is not a known key (did you mean max_hours?); known: max_usd, max_hours"),
    ("resources.gpus_per_trial", -1, "resources.gpus_per_trial must be auto or a number of at least 0, got -1"),
    # out of range
    ("train.epochs", 0, "train.epochs must be a whole number of at least 1, got 0"),
    ("train.batch_size", 2**31, "train.batch_size must be a whole number below 2147483648, got 2147483648"),
    ("train.learning_rate", 0, "train.learning_rate must be auto or a number above 0, got 0"),
    ("augment.width_shift", 1, "augment.width_shift must be a number below 1, got 1"),
    ("augment.zoom", 1, "augment.zoom must be a number below 1, got 1"),
    ("augment.shear", 90, "augment.shear must be a number below 90, got 90"),
    ("augment.brightness", 2, "augment.brightness must be a number of at most 1, got 2"),
    ("augment.mixup", -1, "augment.mixup must be a number of at least 0, got -1"),
    ("augment.preset", "some", "augment.preset must be one of 'none', 'light', 'medium' or 'strong', got 'some'"),
    ("augment.rotation_deg", 200, "augment.rotation_deg must be a number of at most 180, got 200"),
    ("data.validation_split", 0, "data.validation_split must be a number above 0, got 0"),
    ("data.image_size", [64, 4], "data.image_size[1] must be a whole number of at least 8, got 4"),
    ("data.image_size", [64], "data.image_size must be [height, width], such as [64, 64], got"),
    ("data.image_size", [64, 64, 3], "data.image_size must be [height, width], such as [64, 64], got"),
    ("data.image_size", "big", "data.image_size must be [height, width], such as [64, 64], got 'big'"),
    ("seeds", [], "seeds must be a list with at least one value, got []"),
    ("seeds", [3, 3], "seeds holds 3 twice"),
    ("seeds", [-1], "seeds[0] must be a whole number of at least 0, got -1"),
    ("seeds", [0, 2**31], "seeds[1] must be a whole number below 2147483648, got 2147483648"),
    (
        "train",
        {"epochs": 0, "batch_size": 0},
        "train.batch_size must be a whole number of at least 1, got 0; also wrong: train.epochs",
    ),
    ("grid", {"dropout": [0, 1.5]}, "grid.dropout[1] must be a number of at most 1, got 1.5"),
    ("grid", {"l2": ["no"]}, "grid.l2[0] must be a number, got 'no'"),
    ("points", [{"dropout": -1}], "points[0].dropout must be a number of at least 0, got -1"),
    ("budget", {"max_hours": "1:30"}, "budget.max_hours must be a number, got '1:30'"),
    # axes
    ("grid.batch_size", [5, 10, 0], "grid.batch_size[2] must be a whole number of at least 1, got 0"),
    ("grid.epochs", [2, "a"], "grid.epochs[1] must be a whole number, got 'a'"),
    ("grid.optimizer", ["adam", "adamm"], "grid.optimizer[1] must be one of 'adam', 'adamw'"),
    ("grid.learning_rate", [float("nan")], "grid.learning_rate[0] must be auto or a number above 0, got nan"),
    ("grid.learning_rate", [float("inf")], "grid.learning_rate[0] must be auto or a number above 0, got inf"),
    ("grid.image_size", [64, [32, 4]], "grid.image_size[1][1] must be a whole number of at least 8, got 4"),
    ("grid.image_size", [64, [32]], "grid.image_size[1] must be [height, width], such as [64, 64], got"),
    ("grid.batch_size", [], "grid.batch_size must hold at least one value, got an empty list"),
    ("grid.batch_size", 5, "grid.batch_size must be a list, got 5"),
    # ranges
    (
        "grid.dropout",
        {"from": 0, "to": 0.8},
        "sample must say how many points to draw, as grid.dropout is a range: add sample: {points: 64}",
    ),
    ("grid.learning_rate", {"from": 0, "to": 1}, "grid.learning_rate.from must be auto or a number above 0, got 0"),
    ("grid.dropout", {"from": 0.8, "to": 0.8}, "grid.dropout.to must be above from, 0.8, got 0.8"),
    ("grid.dropout", {"from": 0, "to": 2}, "grid.dropout.to must be a number of at most 1, got 2"),
    ("grid.dropout", {"from": 0, "to": 1, "scale": "log"}, "grid.dropout.from must be above 0 on a log scale, got 0"),
    ("grid.dropout", {"from": 0, "to": 1, "scale": "ln"}, "grid.dropout.scale must be one of 'linear' or 'log'"),
    ("grid.dropout", {"form": 0, "to": 1}, "grid.dropout.form is not a known key of a range (did you mean from?)"),
    ("grid.dropout", {"from": 0}, "grid.dropout.to is missing: a range has two ends"),
    ("grid.batch_size", {"from": 1.5, "to": 8}, "grid.batch_size.from must be a whole number, got 1.5"),
    ("grid.optimizer", {"from": "adam", "to": "sgd"}, "grid.optimizer.from must be a number, got 'adam': give other"),
    ("grid.hidden", {"from": 0.5, "to": 8}, "grid.hidden.from must be a whole number, got 0.5"),
    ("sample", {"points": 3}, "sample.points must be at most 2, as the grid has no more combinations, got 3"),
    ("sample.method", "lhs", "sample.points is missing: add it to the spec; also wrong: sample.method"),
    ("order", "fair", "order must be one of 'longest' or 'balanced', got 'fair'"),
    ("grid.batch_size", [5, 6, 5], "grid.batch_size[2] repeats the value 5: remove one of them"),
    ("grid.dropout", [0, 0.5, 0.0], "grid.dropout[2] repeats the value 0"),  # equal numbers train alike
    ("grid.image_size", [64, [64, 64]], "grid.image_size[1] repeats the value [64, 64]"),
    ("grid.dropout", [0, "a"], "grid.dropout must hold values of one type, got [0, 'a']"),
    ("grid.dropout", [0, True], "grid.dropout must hold values of one type, got [0, true]"),
    ("grid.units", [None], "grid.units[0] must be a number, a text or true/false, got null"),
    ("grid.units", [[1, 2]], "grid.units[0] must be a number, a text or true/false, got [1, 2]"),
    ("grid.units", [2**63], "grid.units[0] must be a whole number of at most 64 bits, got a number of 64 bits"),
    ("grid.a b", [1], f"grid.'a b'[0]: 'a b' cannot be an axis: axes are {AXES}, and the arguments of the model"),
    ("grid.a\nb", [1], "grid.'a\\nb'[0]: 'a\\nb' cannot be an axis"),
    ("grid.early_stopping", [3], "grid.early_stopping[0]: 'early_stopping' cannot be an axis"),
    ("grid", {}, "grid and points are both empty"),
    ("grid", None, "grid must be a mapping, got null"),
    # points and exclusions
    ("points", [{}], "points[0] must name at least one axis"),
    ("points", [3], "points[0] must be a mapping, got 3"),
    ("points", [{"epochs": 2}, {"epochs": 0}], "points[1].epochs must be a whole number of at least 1, got 0"),
    ("points", [{"seed": 1}], "points[0].seed: 'seed' cannot be an axis"),
    ("exclude", [{"epochs": 2}], "exclude[0].epochs must be an axis of the grid (batch_size)"),
    ("exclude", [{"batch_size": "a"}], "exclude[0].batch_size must be a whole number, got 'a'"),
]


@pytest.mark.parametrize(("path", "value", "says"), WRONG, ids=[f"{p}={v}"[:60] for p, v, _ in WRONG])
def test_a_wrong_value_is_named_with_what_it_must_be_and_what_it_was(path, value, says):
    """Each mistake gives one line that begins with the field's path."""
    with pytest.raises(BadInput) as refused:
        spec_with(path, value)
    message = str(refused.value)
    assert message.startswith(says)
    assert message.splitlines() == [message]


def test_a_whole_spec_that_is_no_mapping_is_refused():
    """An empty file is told which keys it must have."""
    assert complaint("").startswith("spec.yaml must be a mapping with the keys name, data,")


NOT_YAML = [
    ("a: [1,\nb: [", "line 2 column 5: expected the node content"),
    ("a: b: c", "line 1 column 5: mapping values are not allowed here"),
    ("name: a\ndata: {uri: x,\n  uri: y}", "line 3 column 3: the key 'uri' stands twice: keep one"),
    ("name: a\nname: b", "line 2 column 1: the key 'name' stands twice"),
    ("grid:\n  1: [2]", "line 2 column 3: a key must be a text, got 1: put it in quotes"),
    ("grid:\n  off: [2]", "line 2 column 3: a key must be a text, got off: put it in quotes"),
    ("? [a]\n: 1", "line 1 column 3: a key must be a text, got a sequence"),
    ("a: !!python/object:os.system x", "line 1 column 4: the tag 'tag:yaml.org,2002:python/object:os.system' has no"),
    ("a: !!bool maybe", "line 1 column 4: the tag"),
    ("a: *nowhere", "line 1 column 4: found undefined alias 'nowhere'"),
    ("a: 1\n--- 2", "line 2 column 1: but found another document"),
    ("a: \x00", "special characters are not allowed"),
    ("a: " + "9" * 5000, "Exceeds the limit"),
]


@pytest.mark.parametrize(("text", "says"), NOT_YAML, ids=[text[:20] for text, _ in NOT_YAML])
def test_what_is_not_yaml_is_refused_with_line_and_column(text, says):
    """Bad YAML, repeated keys, keys that are no text and tags are refused where they stand."""
    message = complaint(text)
    assert message.startswith("spec.yaml must be YAML")
    assert says in message


def billion(name: str) -> str:
    """Nine lists of nine of the one before: nothing to store, 9**9 to walk through."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x]"]
    lists += [f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    return f"{name}: [{', '.join(lists)}]"


MERGES = "\n".join(["m0: &m0 {a: 1}", *(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, 40))])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 20000, id="deep lists"),
        pytest.param("{a: " * 3000, id="deep mappings"),
        pytest.param(f"{SMALL}points: [{{{billion('x')}}}]", id="billion laughs in a point"),
        pytest.param(f"{SMALL}seeds: [{{{billion('x')}}}]", id="billion laughs in a section"),
        pytest.param(f"{SMALL}{MERGES}", id="exponential merges"),
        pytest.param(f"{SMALL}points: &p [*p]", id="a list that holds itself"),
        pytest.param(f"{SMALL}points: [&p {{x: *p}}]", id="a mapping that holds itself"),
    ],
)
def test_a_spec_made_to_hang_the_reader_is_refused_at_once(text):
    """Deep nesting, aliases that multiply and mappings that hold themselves give one line, soon."""
    assert complaint(text)


def test_numbers_texts_and_dates_read_as_people_expect():
    """1e-3 is a number, a date is a text, and aliases work."""
    spec = load_spec(
        """
        name: 2024-01-31
        data: {uri: images, image_size: 32}
        train: {learning_rate: 1e-3}
        grid: {learning_rate: [1e-4, 2E-4, 1.5e+2, .5e-1], note: [2024-01-31, 12:30:00x]}
        points: [&one {learning_rate: 7e-1}]
        exclude: [*one]
        """
    )
    assert spec.name == "2024-01-31"
    assert spec.data.image_size == (32, 32)
    assert spec.train.learning_rate == 0.001
    assert spec.grid == {"learning_rate": [1e-4, 2e-4, 150.0, 0.05], "note": ["2024-01-31", "12:30:00x"]}
    assert spec.exclude == spec.points == [{"learning_rate": 0.7}]


@pytest.mark.parametrize(
    ("override", "grid", "epochs"),
    [
        ("grid={batch_size: [5, 10], epochs: [2]}", {"batch_size": [5, 10], "epochs": [2]}, 10),
        ("grid={dropout: [0.5]}", {"dropout": [0.5]}, 10),  # replaces the grid as a whole
        ("grid.epochs=[2,4]", {"batch_size": [5, 10], "epochs": [2, 4]}, 10),  # one axis more
        ("grid.batch_size=[7]", {"batch_size": [7]}, 10),
        (" train.epochs = 3", {"batch_size": [5, 10]}, 3),
        ("train.early_stopping.patience=3", {"batch_size": [5, 10]}, 10),  # a section that was null
    ],
)
def test_set_changes_one_field_or_replaces_a_whole_section(override, grid, epochs):
    """--set PATH=VALUE takes YAML, replaces what the path names, and makes sections that are not there."""
    spec = load_spec(SMALL, [override])
    assert spec.grid == grid
    assert spec.train.epochs == epochs


def test_the_last_of_several_sets_wins():
    """Overrides apply in the order given."""
    assert load_spec(SMALL, ["train.epochs=3", "train.epochs=4", "name=dogs"]).train.epochs == 4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epochs", "--set must look like PATH=VALUE (say train.learning_rate=0.01), got 'epochs'"),
        ("=3", "--set must look like PATH=VALUE"),
        ("train.=3", "--set must look like PATH=VALUE"),
        ("train..epochs=3", "--set must look like PATH=VALUE"),
        ("points[0].epochs=3", "--set must look like PATH=VALUE"),
        ("train\n.epochs=3", "--set must look like PATH=VALUE"),
        ("name.first=3", "--set name.first: name must be a mapping, got 'cats': set it as a whole"),
        ("grid.batch_size.0=a\nb", "--set grid.batch_size.0: grid.batch_size must be a mapping, got [5, 10]"),
        ("name=[", "--set name must be YAML, line 1 column 2: expected the node content"),
        ("train={epochs: 1, epochs: 2}", "--set train must be YAML, line 1 column 13: the key 'epochs' stands twice"),
        ("trian.epochs=3", "trian is not a known key (did you mean train?)"),
        ("train.epoch=3", "train.epoch is not a known key (did you mean epochs?)"),
        ("train.learning_rate=", "train.learning_rate must be auto or a number above 0, got null"),
        ("grid.epochs=2", "grid.epochs must be a list, got 2"),
        ("output=" + "9" * 4000, "output must be a text, got a number of 13288 bits"),
    ],
)
def test_a_wrong_set_is_refused(override, says):
    """A --set that has no path, leads nowhere or holds a wrong value is named."""
    assert complaint(SMALL, (override,)).startswith(says)


def test_no_axis_can_take_the_name_of_a_column_or_a_key_of_the_plan():
    """Every fixed column of the leaderboard, and every key of `--plan --json`, is reserved."""
    spec = load_spec(SMALL)
    plan = as_tree(make_plan(spec, Counts(10, 2), "d", find_networks(spec)[0]), {})
    keys = {*plan["points"][0], *plan["trials"][0]} - set(AXIS_PATHS)
    assert {*COLUMNS, *keys} <= RESERVED_AXES
    for name in COLUMNS:
        assert "cannot be an axis" in complaint(SMALL, (f"grid.{name}=[1, 2]",))


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
AXES_OF_SPECS = {
    "batch_size": st.integers(1, 4096),
    "epochs": st.integers(1, 500),
    "learning_rate": st.floats(1e-9, 10),
    "optimizer": st.sampled_from(["adam", "sgd"]),
    "horizontal_flip": st.booleans(),
    "image_size": st.integers(8, 2048) | st.tuples(st.integers(8, 2048), st.integers(8, 2048)).map(list),
    "units": st.integers(-(2**63), 2**63 - 1),
    "note": texts,
}


@st.composite
def trees(draw):
    """A valid spec as a person may write it."""
    names = draw(st.lists(st.sampled_from(sorted(AXES_OF_SPECS)), min_size=1, unique=True))

    def pair(value):
        return tuple(value) if isinstance(value, list) else (value, value)

    same = {"image_size": pair}  # 64 is [64, 64]
    lists = {n: st.lists(AXES_OF_SPECS[n], min_size=1, max_size=4, unique_by=same.get(n, lambda v: v)) for n in names}
    grid = {name: draw(values) for name, values in lists.items()}
    return {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        "data": {"uri": draw(texts.filter(bool)), "validation_split": draw(st.floats(0.01, 0.99))},
        "grid": grid,
        "points": draw(st.lists(st.fixed_dictionaries({n: AXES_OF_SPECS[n] for n in names}), max_size=2)),
        "seeds": draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3, unique=True)),
        "train": draw(st.fixed_dictionaries({}, optional={"early_stopping": st.just({"patience": 2}) | st.none()})),
        "resources": {"gpus_per_trial": draw(st.sampled_from(["auto", 0, 0.5, 2]))},
    }


@pytest.mark.parametrize("name", ["0E0", "1e5", "010", "1.5", "0x1F", "1_000", "no", "null", "1e"])
def test_a_name_that_looks_like_a_number_reads_back_as_a_text(name: str):
    """Whatever YAML 1.1 or 1.2 make of it without quotes."""
    spec = load_spec(f"{{name: '{name}', data: {{uri: x}}, grid: {{batch_size: [1]}}}}")
    assert load_spec(to_yaml(spec)).name == name


@given(trees())
def test_the_resolved_spec_reads_back_as_itself(tree):
    """spec.yaml in a run folder, with every default written out, is the very spec that was run."""
    spec = validate(tree)
    assert load_spec(to_yaml(spec)) == spec


@given(
    st.text(max_size=60)
    | st.text("abc:{}[],&*!?-|>'\"%@# \n\t01.eE+<=~", max_size=40)
    | st.tuples(st.sampled_from(["grid", "points", "train", "data", "seeds"]), st.text(max_size=30)).map(
        lambda pair: f"{SMALL.replace('grid', 'grids')}{pair[0]}: {pair[1]}"
    )
)
def test_any_text_at_all_gives_a_spec_or_one_line(text):
    """No text, as a spec or a --set, makes the reader raise anything but BadInput, and its message is one line."""
    for spec, overrides in ((text, []), (SMALL, [text])):
        try:
            load_spec(spec, overrides)
        except BadInput as refused:
            message = str(refused)
        else:
            continue
        assert message.splitlines() == [message]


plain = st.recursive(st.none() | st.booleans() | numbers | texts, lambda x: st.lists(x) | st.dictionaries(texts, x))


@given(st.sampled_from([*Spec.model_fields, "grid.units", "grid.batch_size", "data.image_size"]), plain)
def test_any_value_in_any_field_gives_a_spec_or_one_line(path, value):
    """No plain value makes a field raise anything but BadInput; what is taken reads back as itself."""
    try:
        spec = spec_with(path, value)
    except BadInput as refused:
        message = str(refused)
    else:
        assert load_spec(to_yaml(spec)) == spec
        return
    assert message.splitlines() == [message]


def test_numbers_are_read_as_they_are_written():
    """010 is ten, not eight as in YAML 1.1; 1:30 is no number, nor is it ninety."""
    spec = load_spec("{name: a, data: {uri: x}, grid: {batch_size: [010, 016], learning_rate: [1e-3, .5, 1_0.0]}}")
    assert spec.grid == {"batch_size": [10, 16], "learning_rate": [0.001, 0.5, 10.0]}
    with pytest.raises(BadInput, match=r"budget\.max_hours must be a number, got '1:30'"):
        load_spec("{name: a, data: {uri: x}, grid: {batch_size: [1]}, budget: {max_hours: 1:30}}")


def test_a_point_is_of_its_axis_type():
    """`off` without quotes is false, which no text compares with."""
    with pytest.raises(BadInput) as refused:
        load_spec("{name: a, data: {uri: x}, grid: {norm: [batch, layer]}, points: [{norm: off}]}")
    assert str(refused.value) == (
        "points[0].norm must be of one type with the other values of norm ('batch', 'layer'), got false: "
        "put texts such as off in quotes"
    )


def test_a_misspelt_axis_is_recognised():
    with pytest.raises(BadInput, match=r"grid.batchsize \(did you mean batch_size\?\) must be an argument"):
        read_code("small_cnn", ["batchsize"])
