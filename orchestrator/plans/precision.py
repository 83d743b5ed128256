"""Precision: what `train.precision: auto` becomes, once for a run, and where another one would be faster. Pure."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.plans.forecast import BFLOAT16, EPOCH_DEPENDS_ON, FIRST_GUESS, Counts, Pace, epoch_s
from orchestrator.plans.trials import Trial
from orchestrator.spec.axes import backbone_names, models, resolve
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.sections import AUTO, NO_BACKBONE, Spec, is_streamed

_FASTER = 1.1  # times as fast as float32: below that it is not worth other numbers


@dataclass(frozen=True, slots=True)
class Node:
    """What a machine is quick at.

    Attributes:
        has_bfloat16: Its CPUs multiply bfloat16 themselves. has_amx: in a unit for matrices, where it pays.
        has_gpu: Trials on it may take a GPU.
        pace: What was measured on it, or a first guess.
    """

    has_bfloat16: bool
    has_amx: bool
    has_gpu: bool
    pace: Pace

    @property
    def gain(self) -> float | None:
        """How many times as fast as in float32 small_cnn trains in bfloat16; None where nobody has measured it."""
        if self.pace is FIRST_GUESS or BFLOAT16 not in self.pace.step_s:
            return None
        wide, half = self.pace.step_s["float32"], self.pace.step_s[BFLOAT16]
        return statistics.median(wide[size] / half[size] for size in wide.keys() & half.keys())


@dataclass(frozen=True, slots=True)
class Precision:
    """What `auto` is, and why, in words."""

    value: str
    why: str

    def describe(self) -> str:
        """In a line."""
        return f"precision auto is {self.value}: {self.why}"

    def describe_on(self, gpus_per_trial: float) -> Iterator[str]:
        """The same where trials run, in lines."""
        yield self.describe()
        if gpus_per_trial and self.value != "float32":
            yield (
                f"trials take a GPU, and nobody has measured {self.value} there: to compare, run it under another "
                f"--name with --set train.precision=float32"
            )


def precision_on(node: Node, spec: Spec) -> Precision:
    """What `auto` is in a run that begins on this machine: the faster of float32 and mixed_bfloat16, if it is safe."""
    if against := _against(node, spec):
        return Precision("float32", against)
    if node.has_bfloat16 and (gain := node.gain) is not None:
        return Precision(BFLOAT16 if gain >= _FASTER else "float32", f"bfloat16 is {gain:.1f} times as fast (measured)")
    if node.has_amx:
        return Precision(BFLOAT16, "the CPUs here have AMX, which multiplies bfloat16")
    return Precision("float32", "the CPUs here have no AMX, without which bfloat16 may be slower")


def _against(node: Node, spec: Spec) -> str | None:
    """Why the run is to train in float32 whatever the CPUs; None where nothing is against bfloat16."""
    gpus = spec.resources.gpus_per_trial
    if node.has_gpu if gpus == AUTO else gpus:
        return "trials take a GPU, and bfloat16 was measured on CPUs alone"
    if backbone_names(spec) != (NO_BACKBONE,):
        return "what is trained on a backbone is no faster in bfloat16"
    for model in models(spec):
        if model not in OWN_MODELS:
            return f"nobody has measured {model} in bfloat16, nor how exact it is then"
        if OWN_MODELS[model].bfloat16 < _FASTER:
            return f"{model} is hardly faster in bfloat16, or slower"
    return None


def settle(spec: Spec, here: Precision, begun: str | None) -> tuple[Spec, Precision | None]:
    """The spec with a precision in place of `auto`, and what that became; None where the spec names one itself.

    here: what it is in a run that begins here. begun: with which the run began, and which it keeps; None: it begins.
    """
    if spec.train.precision != AUTO:
        return spec, None
    if begun is not None and begun != here.value:
        why = f"so this run began, and so it stays; a new one would take {here.value} here: {here.why}"
        here = Precision(begun, why)
    return _in(here.value, spec), here


def as_asked(spec: Spec, found: Precision | None) -> Spec:
    """The spec as a person wrote it: what `auto` became is in what trials share. found: as `settle` gives it."""
    return _in(AUTO, spec) if found else spec


def _in(precision: str, spec: Spec) -> Spec:
    return spec.model_copy(update={"train": spec.train.model_copy(update={"precision": precision})})


def hint(node: Node, spec: Spec, todo: Sequence[Trial], counts: Counts) -> str | None:
    """How to train faster in bfloat16, in a line; None where that is not known to help.

    spec: of a run that begins now. todo: its trials.
    """
    if spec.train.precision != "float32" or "precision" in spec.axes or _against(node, spec):
        return None
    epochs: dict[tuple[Any, ...], int] = defaultdict(int)  # by the values that their time depends on
    for trial in todo:
        epochs[tuple((name, trial.values[name]) for name in EPOCH_DEPENDS_ON if name in trial.values)] += trial.epochs
    if any(is_streamed(resolve(spec, dict(values)).data, counts.images) for values in epochs):
        return None  # what takes the time there may be the store, or decoding
    if precision_on(node, spec).value != BFLOAT16:
        asks = node.has_bfloat16 and node.gain is None
        return "python -m orchestrator.calibrate measures whether mixed_bfloat16 is faster here" if asks else None
    if node.gain is None:
        return (
            "the CPUs here have AMX, with which mixed_bfloat16 is faster (python -m orchestrator.calibrate measures "
            "it): --set train.precision=auto"
        )
    as_it_is_s, then_s = (
        sum(epoch_s(resolve(each, dict(values)), counts, node.pace) * many for values, many in epochs.items())
        for each in (spec, _in(BFLOAT16, spec))
    )
    if as_it_is_s < _FASTER * then_s:
        return None
    return f"mixed_bfloat16 trains {as_it_is_s / then_s:.1f} times as fast here (measured): --set train.precision=auto"
