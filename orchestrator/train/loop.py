"""Loop: training and validation inside TensorFlow, many steps at a time.

Python takes part once per stretch, which is about a second long, not once per step.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf

from orchestrator.data.pipeline import FeatureSource, Source
from orchestrator.plans.trials import Trial
from orchestrator.spec.sections import Train
from orchestrator.train.feeds import VALIDATION_BATCH, PipedFeed, PipedValidation, ResidentFeed, ResidentValidation
from orchestrator.train.schedules import with_rates
from orchestrator.train.steps import Sums, no_sums, training_step

_STRETCH_S = 1.0


class Validated(NamedTuple):
    """Sums over the validation images; and outputs, (images, model outputs) float32: what the model says of each."""

    sums: Sums
    outputs: np.ndarray


@dataclass(frozen=True)
class TrialImages:
    """What a trial trains on.

    Attributes:
        source: The images.
        resident: What is picked from the memory of the device that trains: the images on a GPU, where they fit, or the
            features of a backbone; None: tf.data brings the images, batch by batch.
        rows, validation_rows: (n,) int64, positions in the source.
    """

    source: Source
    resident: Source | FeatureSource | None
    rows: np.ndarray
    validation_rows: np.ndarray

    @property
    def features(self) -> FeatureSource | None:
        """The features, where it trains on these."""
        return self.resident if isinstance(self.resident, FeatureSource) else None


class Loop:
    """Trains and validates one model, for one trial after the other.

    Attributes:
        steps: Steps of a whole epoch. The last one takes what images remain.
        sums: Variable, (4,) float64: Sums over the steps taken of the epoch at work. A checkpoint must hold it.
        rates: Variable, (steps,) float32: the learning rates of the epoch at work, which whoever trains must set; None
            where the rate is constant.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        images: TrialImages,
        train: Train,
        weights: np.ndarray | None = None,
    ) -> None:
        """optimizer: built for the model. weights: as training_step takes."""
        batch_size = train.batch_size
        self._images, self._batch_size = images, batch_size
        self.steps = math.ceil(len(images.rows) / batch_size)
        self.sums = tf.Variable(no_sums())
        self.rates = None if train.schedule == "constant" else tf.Variable(tf.zeros(self.steps))
        step = training_step(model, optimizer, self.sums, weights, train.label_smoothing)
        if self.rates is not None:
            step = with_rates(step, optimizer, self.rates, self.sums, batch_size)
        self._feed: ResidentFeed | PipedFeed
        if images.resident:
            self._feed = ResidentFeed(images.resident, images.rows, batch_size, step)
        else:
            self._feed = PipedFeed(images.source, images.rows, batch_size, step)
        self._position: int | None = None  # where the feed stands, in steps over all epochs
        self._stretch, self._validation_stretch = _Stretch(), _Stretch()
        self._validation: ResidentValidation | PipedValidation
        if images.features:
            self._validation = ResidentValidation(images.features, images.validation_rows, model)
        else:
            self._validation = PipedValidation(images.source, images.validation_rows, model)

    def begin(self, images: TrialImages, trial: Trial) -> None:
        """Train and validate for this trial from now on. images: the same; the trial may have another seed."""
        self._epochs = trial.milestones[-1]
        self._in_all = trial.refit.steps if trial.refit else None
        self._position = None
        source, judged = cast(Any, images.resident or images.source), cast(Any, images.features or images.source)
        self._feed.begin(source)
        self._validation.begin(judged)
        self.sums.assign(no_sums())

    def steps_of(self, epoch: int) -> int:
        """Steps of the epoch after so many: all, or in a refit what is left of its steps; then none."""
        return self.steps if self._in_all is None else max(0, min(self.steps, self._in_all - epoch * self.steps))

    def train(self, epoch: int, step: int, most: int | None = None) -> tuple[int, float]:
        """Take a stretch of steps within one epoch.

        epoch: how many are over. step: how many steps of the next one are taken, below `steps_of`. most: steps to take.
        Returns how many more it took, and the seconds that they lasted.
        """
        position = epoch * self.steps + step
        if position != self._position:  # the first time, maybe after a checkpoint
            self._feed.open(position, self._epochs)
        full_steps, rest = divmod(len(self._images.rows), self._batch_size)
        size, ahead = (self._batch_size, full_steps - step) if step < full_steps else (rest, 1)
        ahead = min(ahead, self.steps_of(epoch) - step)
        with self._stretch.of(ahead if most is None else min(ahead, most)) as count:
            self._feed.take(position, count, size)
        self._position = position + count
        return count, self._stretch.took_s

    def close(self) -> None:
        """Let go of what is read ahead; training may go on all the same."""
        self._position = None
        self._feed.close()
        self._validation.close()

    def take_sums(self) -> Sums:
        """The sums over the epoch that was just trained; they start again at zero."""
        sums = Sums(*self.sums.numpy().tolist())
        self.sums.assign(no_sums())
        return sums

    def validate(self, stopped: Callable[[], bool] = lambda: False) -> Validated | None:
        """Let the model judge every validation image.

        stopped: asked after each stretch but the last; where it says so, None is returned.
        """
        batches = math.ceil(len(self._images.validation_rows) / VALIDATION_BATCH)
        sums, outputs, done = no_sums(), [], 0
        self._validation.open()
        while True:
            with self._validation_stretch.of(batches - done) as count:
                sums, output = self._validation.take(done, count, sums)
            outputs.append(output.numpy())
            done += count
            if done == batches:
                return Validated(Sums(*sums.numpy().tolist()), np.concatenate(outputs))
            if stopped():
                return None


class _Stretch:
    """How many steps to take at once inside TensorFlow: as many as last about a second."""

    def __init__(self) -> None:
        self._steps, self.took_s = 1, 0.0

    @contextlib.contextmanager
    def of(self, ahead: int) -> Iterator[int]:
        """Take as many steps as it gives, at most `ahead`; afterwards `took_s` says how long they lasted."""
        count = min(self._steps, ahead)
        began = time.perf_counter()
        yield count
        self.took_s = time.perf_counter() - began
        if self.took_s > 2 * _STRETCH_S:
            self._steps = max(1, self._steps // 2)
        elif count == self._steps and self.took_s < _STRETCH_S / 2:
            self._steps *= 2
