"""train.precision auto: what it becomes on which machine, that a run keeps it, and what is said of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from orchestrator import machine
from orchestrator.driver import calibrate, lay_out, standing
from orchestrator.driver.lay_out import Options
from orchestrator.driver.line import orchestrate
from orchestrator.driver.standing import look
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import FIRST_GUESS, Counts, Pace, epoch_s
from orchestrator.plans.precision import as_asked, precision_on
from orchestrator.spec.axes import resolve
from orchestrator.spec.reading import load_spec, to_yaml
from orchestrator.terminal import make_console

AMX, AVX512_BF16, OLDER = "amx_bf16 avx512_bf16", "avx512_bf16", "avx512f"
SPEC = "{name: cats, data: {uri: 'sample://shirts'}, train: {precision: auto}, grid: {batch_size: [10, 32]}}"


def pace(gain: float) -> Pace:
    """Measured where small_cnn is so many times as fast in bfloat16."""
    step_s = {"float32": {10: 0.02, 32: 0.05}, "mixed_bfloat16": {10: 0.02 / gain, 32: 0.05 / gain}}
    return replace(FIRST_GUESS, source="measured", step_s=step_s)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Makes this machine one whose CPUs have these flags, and on which this was measured."""
    monkeypatch.chdir(tmp_path)
    has_bfloat16, has_amx = machine.has_bfloat16, machine.has_amx

    def become(flags: str, measured: Pace = FIRST_GUESS, gpu: bool = False) -> None:
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")
        monkeypatch.setattr(machine, "has_bfloat16", lambda: has_bfloat16(tmp_path))
        monkeypatch.setattr(machine, "has_amx", lambda: has_amx(tmp_path))
        monkeypatch.setattr(machine, "has_gpu", lambda: gpu)
        for module in (lay_out, standing):
            monkeypatch.setattr(module, "read_pace", lambda: measured)

    return become


def plan_lines(*overrides: str) -> list[str]:
    return look(load_spec(SPEC, overrides), Options(plan_only=True), make_console()).lines()


def said(label: str, *overrides: str) -> list[str]:
    """What the plan says after this word."""
    return [line.strip().partition(" ")[2].strip() for line in plan_lines(*overrides) if line.split()[:1] == [label]]


@pytest.mark.parametrize(
    ("flags", "measured", "gpu", "changes", "value", "why"),
    [
        (AMX, FIRST_GUESS, False, [], "mixed_bfloat16", "the CPUs here have AMX"),
        (AVX512_BF16, FIRST_GUESS, False, [], "float32", "no AMX"),  # there it may be slower
        (AVX512_BF16, pace(1.5), False, [], "mixed_bfloat16", "1.5 times as fast (measured)"),
        (AMX, pace(0.9), False, [], "float32", "0.9 times as fast (measured)"),
        (OLDER, FIRST_GUESS, False, [], "float32", "no AMX"),
        (OLDER, pace(2.0), False, [], "float32", "no AMX"),  # measured on a GPU
        (AMX, FIRST_GUESS, True, [], "float32", "trials take a GPU"),
        (AMX, FIRST_GUESS, True, ["resources.gpus_per_trial=0"], "mixed_bfloat16", "AMX"),
        (AMX, FIRST_GUESS, False, ["resources.gpus_per_trial=0.5"], "float32", "trials take a GPU"),
        (AMX, FIRST_GUESS, False, ["grid.model=[small_cnn, mlp]"], "float32", "mlp is hardly faster"),
        (AMX, FIRST_GUESS, False, ["model=nets:net"], "float32", "nobody has measured nets:net"),
        (AMX, FIRST_GUESS, False, ["backbone=MobileNetV2"], "float32", "trained on a backbone"),
    ],
)
def test_auto_is_what_is_fastest_and_safe(
    on: Callable[..., None], flags: str, measured: Pace, gpu: bool, changes: list[str], value: str, why: str
) -> None:
    """Bfloat16 where a unit for it, or a measurement, says that it pays, and for networks that gain."""
    on(flags, measured, gpu)
    found = precision_on(lay_out.node_here(), load_spec(SPEC, changes))
    assert found.value == value
    assert why in found.describe()


def test_a_run_keeps_what_it_began_with(on: Callable[..., None]) -> None:
    """On a machine without bfloat16, resumed and grown: the same trials, and a line that says so."""
    on(AMX)
    begun = look(load_spec(SPEC), Options(), make_console()).state
    run = begun.context.run
    asked = as_asked(begun.context.spec, begun.plan.precision)
    run.write_plan(to_yaml(asked), begun.plan.shared, [point.id for point in begun.plan.points])
    assert yaml.safe_load(run.store.read("spec.yaml"))["train"]["precision"] == "auto"
    assert run.read_plan()["shared"]["train.precision"] == "mixed_bfloat16"
    on(OLDER)
    grown = look(load_spec(SPEC, ["grid.batch_size=[10, 32, 64]"]), Options(), make_console())
    assert {trial.id for trial in begun.plan.trials} < {trial.id for trial in grown.state.plan.trials}
    assert resolve(grown.state.context.spec, {}).train.precision == "mixed_bfloat16"
    assert grown.tree()["precision"]["became"] == "mixed_bfloat16"
    (line,) = said("train")
    assert line.startswith("precision auto is mixed_bfloat16: so this run began, and so it stays; a new one would take")
    assert said("train", "train.precision=mixed_bfloat16") == []  # as good as auto here
    with pytest.raises(BadInput, match=r"train.precision: mixed_bfloat16 -> float32"):
        plan_lines("train.precision=float32")


@pytest.mark.parametrize("axis", ["grid.precision=[float32]", "points=[{precision: float32}]"])
def test_auto_stands_beside_no_axis(axis: str) -> None:
    """What it became would be written down nowhere."""
    with pytest.raises(BadInput, match=r"train.precision must be one of .* where precision is an axis, got auto: name"):
        load_spec(SPEC, [axis])


@pytest.mark.parametrize(
    ("flags", "measured", "changes", "hint"),
    [
        (AMX, pace(2.0), [], "mixed_bfloat16 trains 2.0 times as fast here (measured): --set train.precision=auto"),
        (AMX, FIRST_GUESS, [], "the CPUs here have AMX, with which mixed_bfloat16 is faster (python -m"),
        (AVX512_BF16, FIRST_GUESS, [], "python -m orchestrator.calibrate measures whether mixed_bfloat16 is faster"),
        (AVX512_BF16, pace(0.9), [], ""),
        (OLDER, FIRST_GUESS, [], ""),
        (AMX, pace(2.0), ["train.precision=auto"], ""),
        (AMX, pace(2.0), ["train.precision=mixed_bfloat16"], ""),
        (AMX, pace(2.0), ["grid.precision=[float32]"], ""),
        (AMX, pace(2.0), ["model=separable_cnn"], ""),
        (AMX, pace(2.0), ["data.cache_limit_gb=0"], ""),  # streamed
    ],
)
def test_the_plan_hints_where_bfloat16_would_be_faster(
    on: Callable[..., None], flags: str, measured: Pace, changes: list[str], hint: str
) -> None:
    """With the figure, if it was measured; nothing where it would not help, or nobody knows."""
    on(flags, measured)
    lines = said("hint", "train.precision=float32", *changes)
    assert [line[: len(hint)] for line in lines] == ([hint] if hint else [])


def test_a_run_that_has_begun_gets_no_hint(on: Callable[..., None]) -> None:
    """It cannot change its precision any more."""
    on(AMX, pace(2.0))
    state = look(load_spec(SPEC, ["train.precision=float32"]), Options(), make_console()).state
    state.context.run.write_plan("", state.plan.shared, [point.id for point in state.plan.points])
    assert said("hint", "train.precision=float32") == []
    assert said("train")[0].startswith("precision auto is float32: so this run began, and so it stays; a new one")


def test_calibrate_says_what_bfloat16_gains(tmp_path: Path) -> None:
    lines = calibrate.describe_pace(pace(2.0), tmp_path)
    assert "mixed_bfloat16: 2.0 to 2.0 times as fast as float32 here" in lines


def test_other_networks_gain_as_they_were_measured_to() -> None:
    """Where small_cnn gains nothing, so do they; where it gains, a depthwise one loses."""
    spec = load_spec("{name: a, data: {uri: b}, grid: {epochs: [1]}}")

    def gain(model: str, of_small_cnn: float) -> float:
        took_s = [
            epoch_s(resolve(spec, {"model": model, "precision": precision}), Counts(3200, 0), pace(of_small_cnn))
            for precision in ("float32", "mixed_bfloat16")
        ]
        return took_s[0] / took_s[1]

    assert gain("small_cnn", 2.0) == pytest.approx(2.0)
    assert gain("separable_cnn", 1.0) == pytest.approx(1.0)
    assert gain("separable_cnn", 2.0) < 1 < gain("wide_cnn", 2.0) < 2


def test_a_slow_node_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each of its trials."""
    from orchestrator.cluster import tune, worker

    monkeypatch.setattr(worker, "has_bfloat16", lambda: False)
    line = worker._say_slow(SimpleNamespace(gpus_per_trial=0))
    assert "do not multiply bfloat16 themselves: trials take longer there" in line
    assert worker._say_slow(SimpleNamespace(gpus_per_trial=1)) is None
    lines: list[str] = []
    watch = SimpleNamespace(say=lines.append, ready=lambda *args: None)
    callback = tune.WatchCallback({}, watch)
    for trial_id in "abc":
        report = {"event": "ready", "epochs_done": 0, "of_node": line if trial_id != "b" else None}
        callback.on_trial_result(0, [], SimpleNamespace(config={"trial": trial_id}), report)
    assert lines == [line]


@pytest.mark.slow
def test_a_run_in_what_auto_became_trains(on: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Its results are those of a run that names the precision."""
    on(AMX)
    small = ["data.image_size=28", "grid={epochs: [1]}"]
    assert orchestrate(load_spec(SPEC, small), Options()) == 0
    assert "precision auto is mixed_bfloat16: the CPUs here have AMX" in capsys.readouterr().out
    named = look(load_spec(SPEC, [*small, "train.precision=mixed_bfloat16"]), Options(), make_console())
    assert named.points == {"done": 1, "missing": 0, "new": 0}
