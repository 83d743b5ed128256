"""Training: one model in training, step by step and epoch by epoch, and its state as a checkpoint."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.metrics import METRICS, Predictions, measure
from orchestrator.plans.rates import start_rate
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.result import Epoch, lacks, monitored, ranked_by, restores_best
from orchestrator.spec.axes import Settings
from orchestrator.spec.sections import EarlyStopping
from orchestrator.train.checkpoint import BestWeights, Checkpoint, CheckpointState
from orchestrator.train.graphs import take_graphs
from orchestrator.train.loop import TrialImages
from orchestrator.train.model import class_probabilities, predicted_classes
from orchestrator.train.model_file import weights_digest
from orchestrator.train.optimizers import averages
from orchestrator.train.schedules import again_from, rates
from orchestrator.train.steps import Sums
from orchestrator.train.tally import Tally


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


class Training:
    """One model in training: what it is made of, how far it is, and how both become a checkpoint.

    Attributes:
        history: The epochs that are over.
        digests: Epoch -> SHA-256 of the weights after it, for each milestone so far.
        step: Steps taken of the epoch after the history; all of them while it is validated, if anything validates it.
        spent_s: Seconds that these steps took.
        outputs: (validation images, model outputs) float32, what the model said of the validation images after the
            last epoch; None where a checkpoint was taken since, which does not hold it.
        best: The best epoch's weights, where these and not the last epoch's are the trial's.
        tally: Which validation images the model had right.
        graphs: What it is trained with; model, head, optimizer and loop are theirs, and weights their variables.
    """

    def __init__(self, settings: Settings, trial: Trial, context: WorkerContext, images: TrialImages) -> None:
        """Build the model from the trial's seed. Raises BadInput where that is not possible."""
        self.settings, self.trial, self.images = settings, trial, images
        self._metric = context.spec.metric
        self._labels = context.index.labels[images.validation_rows]
        self.history: list[Epoch] = []
        self.digests: dict[int, str] = {}
        self.step, self.spent_s = 0, 0.0
        self.outputs: np.ndarray | None = None
        self.best: BestWeights | None = None
        self.tally = Tally(len(self._labels), self._metric)
        train = settings.train.model_copy(update={"learning_rate": start_rate(settings)})
        self._train = train
        self.graphs = graphs = take_graphs(replace(settings, train=train), trial, context, images)
        self.model, self.head, self.optimizer, self.loop = graphs.model, graphs.head, graphs.optimizer, graphs.loop
        self.weights = graphs.variables
        self._variables = [*self.weights, *self.optimizer.variables, self.loop.sums]  # in a checkpoint's order
        self._averages = averages(self.optimizer)
        self._aside: dict[int, np.ndarray] = {}  # id of a variable -> its own value, while it has its average

    @property
    def epochs_done(self) -> float:
        """Epochs that are over, and how much of the next one."""
        return len(self.history) + self.step / self.loop.steps

    @property
    def parameters(self) -> int:
        """Numbers that the model holds; of a head, without those of its backbone."""
        return sum(math.prod(v.shape) for v in self.model.weights)

    @property
    def is_over(self) -> bool:
        """Trained to its end, or ended by early stopping."""
        return len(self.history) >= self.trial.epochs or self.ended_early

    @property
    def ended_early(self) -> bool:
        """Whether early stopping ended it, or the last step of a refit."""
        is_last = self.loop.steps_of(len(self.history)) == 0
        return is_last or _ends_early(self.history, self.settings.train.early_stopping)

    @property
    def restores_best(self) -> bool:
        """Whether a point's figures are those of its lowest val_loss, not of its last epoch."""
        return restores_best(self.settings.train)

    def take_steps(self) -> None:
        """Train for about a second. Some steps of the current epoch must be left."""
        if self.loop.rates is not None:
            self.loop.rates.assign(self._rates())
        count, took_s = self.loop.train(len(self.history), self.step)
        self.step += count
        self.spent_s += took_s

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """For a while the model has the averages of its weights, where it keeps any: what it is judged by.

        Snapshots hold its own weights all the same.
        """
        variables = self.model.trainable_variables if self._averages else []
        self._aside = {id(variable): np.array(variable) for variable in variables}
        try:
            for variable, average in zip(variables, self._averages, strict=True):
                variable.assign(average)
            yield
        finally:
            for variable in variables:
                variable.assign(self._aside[id(variable)])
            self._aside = {}

    def finish_epoch(self, stopped: Callable[[], bool]) -> bool:
        """Validate, and add the epoch whose steps are all taken to the history.

        stopped: asked about once a second; where it says so, the epoch stays as it is and False is returned.
        Raises Diverged.
        """
        with self.averaged():
            return self._finish_epoch(stopped) if len(self._labels) else self._finish_unvalidated()

    def _finish_epoch(self, stopped: Callable[[], bool]) -> bool:
        began = time.perf_counter()
        if (validated := self.loop.validate(stopped)) is None:
            return False
        validate_s = time.perf_counter() - began
        probabilities = class_probabilities(validated.outputs)
        found = Predictions(self._labels, probabilities, predicted_classes(probabilities))
        training = self.loop.take_sums()
        metrics = {**_means("", training), **_means("val_", validated.sums), **measure(found)}
        self.history.append(self._epoch(training, metrics, validate_s))
        self.step, self.spent_s, self.outputs = 0, 0.0, validated.outputs
        epoch = len(self.history)
        is_best = ranked_by(self.history, self.restores_best, self._metric).epoch == epoch
        if is_best and (self.restores_best or METRICS[self._metric].best_of):
            self.best = BestWeights(epoch, [np.array(v) for v in self.weights], self.outputs)
        self.tally.add(epoch, found.predicted == self._labels, is_best)
        if epoch in self.trial.milestones:
            self.digests[epoch] = weights_digest(self.model)
        if epoch in self.trial.milestones or self.is_over:
            self.tally.keep(epoch)
        return True

    def _finish_unvalidated(self) -> bool:
        """Add the epoch of a refit to the history: its figures are those of training."""
        training = self.loop.take_sums()
        self.history.append(self._epoch(training, _means("", training), 0.0))
        self.step, self.spent_s = 0, 0.0
        if self.is_over:
            self.digests[len(self.history)] = weights_digest(self.model)
        return True

    def _epoch(self, training: Sums, metrics: dict[str, float], validate_s: float) -> Epoch:
        """Raises Diverged."""
        number = len(self.history) + 1
        for name in ("objective", "val_objective"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise Diverged(f"the loss became {metrics[name]} in epoch {number}: try a smaller learning_rate")
        return Epoch(
            epoch=number,
            metrics=metrics,
            train_s=self.spent_s,
            images_per_s=training.images / max(self.spent_s, 1e-9),
            validate_s=validate_s,
            learning_rate=None if self.loop.rates is None else float(self._rates()[-1]),
        )

    def _rates(self) -> np.ndarray:
        """Of the epoch at work."""
        if (again := self.trial.refit) is not None:
            return again_from(self._train, again, len(self.history) * self.loop.steps, self.loop.steps)
        losses = [epoch.metrics["val_loss"] for epoch in self.history]
        return rates(self._train, self.loop.steps, self.trial.milestones[-1], losses)

    def snapshot(self) -> Checkpoint:
        """Everything that decides what comes next, copied: it can be written while training goes on."""
        state = CheckpointState(
            history=list(self.history),
            digests=dict(self.digests),
            step=self.step,
            spent_s=self.spent_s,
            best_epoch=self.best.epoch if self.best else None,
            ranked=self.tally.ranked,
            right=dict(self.tally.kept),
        )
        values = [self._aside[id(v)] if id(v) in self._aside else np.array(v) for v in self._variables]
        return Checkpoint(state, values, self.best, self.tally.recent)

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a snapshot. Raises ValueError, and stays as it was, where it is not one of this trial."""
        state, best, values = saved.state, saved.best, _with_objective(saved.values)
        if _shapes(values) != _shapes(self._variables):
            raise ValueError("it holds another model")
        if best and _shapes(best.weights) != _shapes(self.weights):
            raise ValueError("its best weights are another model's")
        if state.step > self.loop.steps_of(len(state.history)):
            raise ValueError("it is of longer epochs")
        if lacks(state.history, self._metric):
            raise ValueError(f"an older version wrote it, which did not record {self._metric}")
        tally = Tally(len(self._labels), self._metric)
        if saved.right is not None:
            tally.resume(saved.right, state.ranked, state.right)
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        self.tally = tally
        self.history, self.digests = list(state.history), dict(state.digests)
        self.step, self.spent_s, self.best, self.outputs = state.step, state.spent_s, best, None


def _means(prefix: str, sums: Sums) -> dict[str, float]:
    """The metrics that are summed image by image."""
    means = {"objective": sums.objective, "loss": sums.loss, "accuracy": sums.correct}
    return {f"{prefix}{name}": total / sums.images for name, total in means.items()}


def _with_objective(values: list[np.ndarray]) -> list[np.ndarray]:
    """A checkpoint's variables; 0.1.0 summed up losses with their penalties, and no others: these stand for both."""
    *variables, sums = values
    return [*variables, np.concatenate([sums[:1], sums])] if sums.shape == (3,) else values


def _shapes(arrays: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(array.shape) for array in arrays]


def _ends_early(history: list[Epoch], early: EarlyStopping | None) -> bool:
    if early is None or not history:
        return False
    losses = monitored(history)
    return len(losses) - 1 - losses.index(min(losses)) >= early.patience
