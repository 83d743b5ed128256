"""Trial: one training run on one worker -> Result. Knows Keras, knows nothing of Ray.

A trial is a function of (settings, seed, data): to the bit on a CPU with one thread count, wherever it stopped and went
on, whoever trained in this process before.
"""

import contextlib
import gc
import io
import math
import os
import platform
import resource
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.data.cache import Cache, open_cache
from orchestrator.data.pipeline import (
    Source,
    batch_at,
    lay_out_epoch,
    shared_tensor,
    training_batches,
    validation_batches,
)
from orchestrator.data.stream import Encoded
from orchestrator.errors import BadInput
from orchestrator.plan.points import Trial, points_of
from orchestrator.run.context import WorkerContext
from orchestrator.run.folder import KeepModels
from orchestrator.run.result import Epoch, Result, ranked_by
from orchestrator.spec.axes import Settings, resolve
from orchestrator.spec.sections import Data, EarlyStopping
from orchestrator.store import StoreError
from orchestrator.tracking.tensorboard import write_events
from orchestrator.train.export import Exporter, check_savable, weights_digest
from orchestrator.train.model import build
from orchestrator.words import now

_VALIDATION_BATCH = 64  # larger ones were no faster on a CPU, and hold more memory
_STRETCH_S = 1.0  # how long training stays inside TensorFlow before it looks at the clock
_RESIDENT_BYTES = 2 * 10**9  # decoded images up to this size are kept on a GPU, if there is one
_GROWN_MB = 2000.0
_held_mb: list[float] = []  # at the start of each trial in this process
_UNSAVED = 3  # checkpoints in a row that could not be written: to train on would be for nothing


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


def use_device(threads: int, gpu_limit_mb: float | None = None) -> None:
    """Say what this process may take; a worker does it before TensorFlow's first operation, and again to no effect.

    threads: inside an operation. gpu_limit_mb: of its GPU; None: as much as there is, taken when it is needed.
    """
    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        if gpu_limit_mb is None:
            tf.config.experimental.set_memory_growth(gpu, True)
        else:  # grows up to the limit: fanout has set TF_FORCE_GPU_ALLOW_GROWTH
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=int(gpu_limit_mb))
            tf.config.set_logical_device_configuration(gpu, [limit])
    gc.freeze()  # what was imported stays: each trial's clean-up need not look through it


def outgrown() -> bool:
    """Whether this process has come to hold _GROWN_MB more than after its first trial: a fresh one should take over.

    To be asked at the start of each trial. Never so where the system does not tell.
    """
    _held_mb.append(_status_mb("RssAnon") or 0.0)
    return len(_held_mb) > 2 and _held_mb[-1] > _held_mb[1] + _GROWN_MB


def check_gpu() -> None:
    """Raises BadInput where Ray gives this process a GPU and TensorFlow sees none."""
    if not tf.config.list_physical_devices("GPU"):
        raise BadInput(
            f"the GPU that Ray counts on {platform.node()} must be an NVIDIA one that TensorFlow can use, and it sees "
            f"none: install the package as .[gpu] and a current NVIDIA driver there, or train on the CPUs with "
            f"--set resources.gpus_per_trial=0"
        )


def run_trial(
    trial: Trial,
    work: WorkerContext,
    ready: Callable[[dict[int, str], float], None],
    report: Callable[[Epoch], None],
    stopping: Callable[[], bool] = lambda: False,
    node: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Result | None:
    """Train one trial, from its checkpoint if it has one; write its result into the run folder and give it back.

    ready: called before the first step with what this node cannot read, row of the index -> reason, and with how many
    epochs the checkpoint has behind it, begun ones in part.
    report: called after each epoch. node: fields of the result that say where it was trained.
    stopping: asked about once a second; when it says so, the state is written to the checkpoint and None given back.
    say: called with a line that a person should read, from any thread.
    A failure becomes a Result with status "failed", which is not written: the next run tries it again. But BadInput
    before `ready` is raised: the data, the model's output or the node's disk will do for no trial.
    """
    started_at = now()
    _reset_peak_memory()
    facts: dict[str, Any] = {
        "trial_id": trial.id,
        "epochs": trial.milestones[-1],
        "started_at": started_at,
        "node": platform.node(),
        "device": _device(),
        **(node or {}),
    }
    training, begun = None, False
    try:
        settings = resolve(work.spec, trial.values)
        cache = _cache(work, settings.data, say)
        training = Training(settings, trial, work, cache)
        saver, exporter = _Saver(training, say), Exporter(training, work, say)
        saver.restore(exporter.look)
        begun = True
        ready(cache.bad, len(training.history) + training.step / training.steps)
        if not training.train(saver, exporter, report, stopping):
            return None
        result = Result(
            status="ok",
            history=training.history,
            digests=training.digests,
            steps_per_epoch=training.steps,
            peak_memory_mb=_peak_memory_mb(),
            finished_at=now(),
            **facts,
        )
        if not work.again:
            work.run.write_result(result)
            _write_events(trial, work, result)
    except Exception as error:  # the one boundary: whatever a trial dies of becomes a row
        if isinstance(error, BadInput) and not begun:
            raise
        if training and training.source.encoded and training.source.encoded.failures:
            error = training.source.encoded.failures.pop()  # tf.data reports it as one of its own
        return Result(
            status="failed",
            error=_last_line(error),
            finished_at=now(),
            peak_memory_mb=_peak_memory_mb(),
            **facts,
        )
    finally:
        keras.backend.clear_session()
    return result


def _write_events(trial: Trial, work: WorkerContext, result: Result) -> None:
    """What TensorBoard shows of the trial's points. What does not get through, the driver writes when the run ends."""
    with contextlib.suppress(StoreError, OSError):  # the trial itself is safe
        write_events(work.run, points_of(trial, work.spec.axes), {trial.id: result}, {})


@dataclass(frozen=True, slots=True)
class Kept:
    """The best epoch so far, where it is that epoch's weights that count: `weights` as in model.variables."""

    epoch: int
    weights: list[np.ndarray]
    probabilities: np.ndarray


class Far(BaseModel):
    """How far a trial is, as its checkpoint says.

    Attributes:
        step: Of the epoch after the history.
        spent_s: What these steps took.
        kept: The epoch of Training.kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    history: list[Epoch]
    digests: dict[int, str]
    step: int = Field(ge=0)
    spent_s: float = Field(ge=0)
    kept: int | None = None


class Training:
    """One model in training: what it is made of, how far it is, and how to put both into a checkpoint."""

    def __init__(self, settings: Settings, trial: Trial, work: WorkerContext, cache: Cache) -> None:
        self.settings, self.trial, self.work, self.run = settings, trial, work, work.run
        self.history: list[Epoch] = []
        self.digests: dict[int, str] = {}
        self.step = 0  # within the epoch that comes after the history
        self.spent_s = 0.0  # training time of that epoch
        self.probabilities: np.ndarray | None = None  # the output for the validation images after the last epoch
        self.kept: Kept | None = None
        classes = len(work.index.classes)
        good = np.ones(len(work.index), bool)
        good[list(cache.bad)] = False
        self.rows = np.flatnonzero(~work.index.validation & good)
        self.validation_rows = np.flatnonzero(work.index.validation & good)
        self.steps = math.ceil(len(self.rows) / settings.train.batch_size)
        labels = work.index.labels
        self.source = Source(
            None if cache.images is None else shared_tensor(cache.images),
            tf.constant(labels[:, None], tf.float32) if classes == 2 else tf.constant(labels, tf.int32),
            settings.data,
            settings.augment,
            trial.seed,
            work.spec.resources.cpus_per_trial,
            _encoded(work) if cache.images is None else None,
        )
        self.resident = None  # the same with all images on the GPU, where they fit
        if cache.images is not None and (device := _roomy_device(cache.images)):
            with tf.device(device):
                self.resident = replace(self.source, images=tf.identity(self.source.images))
        self._per_image = _binary if classes == 2 else _categorical

        keras.utils.set_random_seed(trial.seed)
        keras.config.set_dtype_policy(settings.train.precision)
        try:
            self.model = build(settings.model, (*settings.data.image_size, 3), classes, settings.model_args)
        finally:
            keras.config.set_dtype_policy("float32")
        if work.keep is not KeepModels.none:
            check_savable(self.model, settings.model)
        self.optimizer = _optimizer(settings)
        self.optimizer.build(self.model.trainable_variables)
        self.totals = tf.Variable(tf.zeros(3, tf.float64))  # sum of losses, correct, images: of the epoch so far
        self._train_piped, self._train_resident, self.evaluate = self._functions()

    def train(
        self, saver: "_Saver", exporter: Exporter, report: Callable[[Epoch], None], stopping: Callable[[], bool]
    ) -> bool:
        """Train to the last milestone, or to where early stopping ends it; False where `stopping` said so before.

        Raises Diverged, and StoreError where no checkpoint could be written for too long.
        """
        exporter.export()
        batch_size = self.settings.train.batch_size
        full_steps, rest = divmod(len(self.rows), batch_size)
        take = self._resident_feed() if self.resident else self._piped_feed()
        stretch = _Stretch()

        def stopped() -> bool:
            if stopping():
                saver.save()
                saver.close()
                return True
            saver.save_if_due()
            return False

        while not self.over:
            while self.step < self.steps:
                size, ahead = (batch_size, full_steps - self.step) if self.step < full_steps else (rest, 1)
                with stretch.of(ahead) as count:
                    take(count, size)
                self.step += count
                self.spent_s += stretch.took_s
                if stopped():
                    return False
            if not self._finish_epoch(stopped):
                return False
            report(self.history[-1])
            if len(self.history) in self.trial.milestones or self.over:
                exporter.export()  # before the checkpoint: what that says is past lies in the run folder
                saver.save()
        saver.close()
        return True

    def _piped_feed(self) -> Callable[[int, int], None]:
        """Trains on `count` batches of `size` from tf.data, which makes the next ones ready meanwhile."""
        start_step = len(self.history) * self.steps + self.step
        batches = iter(
            training_batches(
                self.source, self.rows, self.settings.train.batch_size, start_step, self.trial.milestones[-1]
            )
        )
        return lambda count, size: self._train_piped(batches, tf.constant(count), size)

    def _resident_feed(self) -> Callable[[int, int], None]:
        """The same from images on the GPU, picked and augmented there."""
        rows, laid_out = tf.constant(self.rows, tf.int64), {}

        def take(count: int, size: int) -> None:
            epoch = len(self.history)
            if epoch not in laid_out:
                laid_out.clear()
                laid_out[epoch] = lay_out_epoch(self.resident, rows, epoch)
            first = tf.constant(self.step * self.settings.train.batch_size, tf.int64)
            self._train_resident(*laid_out[epoch], first, tf.constant(count, tf.int64), size)

        return take

    @property
    def restores_best(self) -> bool:
        stopping = self.settings.train.early_stopping
        return bool(stopping and stopping.restore_best)

    @property
    def over(self) -> bool:
        """Trained to the last milestone, or ended by early stopping."""
        return len(self.history) >= self.trial.milestones[-1] or _stopped(
            self.history, self.settings.train.early_stopping
        )

    def _finish_epoch(self, stopped: Callable[[], bool]) -> bool:
        """Validate, and add the epoch to the history; False where it was stopped before."""
        loss, correct, seen = self.totals.numpy()
        began = time.perf_counter()
        if (found := self.evaluate(stopped)) is None:
            return False
        (val_loss, val_correct, val_seen), probabilities = found
        validate_s = time.perf_counter() - began
        epoch = len(self.history) + 1
        if not math.isfinite(loss) or not math.isfinite(val_loss):
            raise Diverged(
                f"the loss became {loss if not math.isfinite(loss) else val_loss} in epoch {epoch}: "
                f"try a smaller learning_rate"
            )
        self.history.append(
            Epoch(
                epoch=epoch,
                loss=loss / seen,
                accuracy=correct / seen,
                val_loss=val_loss / val_seen,
                val_accuracy=val_correct / val_seen,
                train_s=self.spent_s,
                images_per_s=len(self.rows) / max(self.spent_s, 1e-9),
                validate_s=validate_s,
            )
        )
        self.totals.assign(tf.zeros(3, tf.float64))
        self.step, self.spent_s = 0, 0.0
        self.probabilities = probabilities
        metric = self.work.spec.metric
        best = ranked_by(self.history, self.restores_best, metric).epoch
        if best == epoch and (self.restores_best or metric == "best_val_accuracy"):
            self.kept = Kept(epoch, [np.array(v) for v in self.model.variables], self.probabilities)
        if epoch in self.trial.milestones:
            self.digests[epoch] = weights_digest(self.model)
        return True

    def _functions(self) -> tuple[Callable, Callable, Callable]:
        model, optimizer, totals, per_image = self.model, self.optimizer, self.totals, self._per_image
        resident, pick = self.resident, tf.autograph.experimental.do_not_convert(batch_at)
        variables = model.trainable_variables

        def regularisation() -> tf.Tensor:
            parts = [tf.cast(part, tf.float32) for part in model.losses]  # those of activations may be half as wide
            return tf.add_n(parts) if parts else tf.constant(0.0)

        def one_step(images: tf.Tensor, labels: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                losses, correct = per_image(labels, tf.cast(model(images, training=True), tf.float32))
                loss = tf.reduce_mean(losses) + regularisation()
                scaled = optimizer.scale_loss(loss)
            optimizer.apply(tape.gradient(scaled, variables), variables)
            count = tf.cast(tf.shape(images)[0], tf.float64)
            totals.assign_add(
                tf.stack([tf.cast(loss, tf.float64) * count, tf.cast(tf.reduce_sum(correct), tf.float64), count])
            )

        # only the loops below need autograph: turning over all that they call took 0.4 s of a worker's first trial
        @tf.autograph.experimental.do_not_convert
        def one_batch(batch: tuple[tf.Tensor, tf.Tensor], size: int) -> None:
            one_step(*(tf.ensure_shape(part, (size, *part.shape[1:])) for part in batch))

        @tf.function(jit_compile=False)
        def train_piped(batches: tf.data.Iterator, count: tf.Tensor, size: int) -> None:
            for _ in tf.range(count):
                one_batch(next(batches), size)

        @tf.function(jit_compile=False)
        def train_resident(
            order: tf.Tensor, matrices: tf.Tensor, first: tf.Tensor, count: tf.Tensor, size: int
        ) -> None:
            for i in tf.range(count):
                one_batch(pick(resident, order, matrices, first + i * size, size), size)

        @tf.autograph.experimental.do_not_convert
        def judge(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            output = tf.cast(model(images, training=False), tf.float32)
            losses, correct = per_image(labels, output)
            found = tf.stack([tf.reduce_sum(losses), tf.reduce_sum(correct), tf.cast(tf.size(correct), tf.float32)])
            found = tf.cast(found, tf.float64)
            return output, found + tf.stack([tf.cast(regularisation(), tf.float64) * found[2], 0.0, 0.0])

        @tf.function(jit_compile=False)
        def add_up(batches: tf.data.Iterator, count: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            outputs = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, model.output_shape[1]))
            for i in tf.range(count):
                output, found = judge(*next(batches))
                outputs = outputs.write(i, output)
                sums += found  # in the same order, wherever the stretches end
            return sums, outputs.concat()

        validation = validation_batches(self.source, self.validation_rows, _VALIDATION_BATCH)
        stretch = _Stretch()

        def evaluate(stopped: Callable[[], bool] = lambda: False) -> tuple[np.ndarray, np.ndarray] | None:
            """Sums of losses, correct and images, and the output for all validation images; None where `stopped`."""
            batches, left = iter(validation), math.ceil(len(self.validation_rows) / _VALIDATION_BATCH)
            sums, outputs = tf.zeros(3, tf.float64), []
            while True:
                with stretch.of(left) as count:
                    sums, output = add_up(batches, tf.constant(count), sums)
                outputs.append(output.numpy())
                left -= count
                if not left:
                    return sums.numpy(), np.concatenate(outputs)
                if stopped():
                    return None

        return train_piped, train_resident, evaluate

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything that decides what comes next, copied: safe to write while training goes on."""
        kept = self.kept.epoch if self.kept else None
        far = Far(history=self.history, digests=self.digests, step=self.step, spent_s=self.spent_s, kept=kept)
        arrays = {f"v{i:04d}": np.array(v) for i, v in enumerate(self._variables())}
        if self.kept:
            arrays |= {f"k{i:04d}": array for i, array in enumerate(self.kept.weights)}
            arrays["probabilities"] = self.kept.probabilities
        return {"far": np.frombuffer(far.model_dump_json().encode(), np.uint8), **arrays}

    def resume(self, saved: dict[str, np.ndarray]) -> None:
        """Take a snapshot's place. Raises ValueError where it is not one of this model."""
        variables = self._variables()
        far = Far.model_validate_json(saved["far"].tobytes())
        arrays = [saved[f"v{i:04d}"] for i in range(len(variables))]
        if sum(name[0] == "v" for name in saved) != len(variables) or any(
            a.shape != tuple(v.shape) for a, v in zip(arrays, variables, strict=True)
        ):
            raise ValueError("it holds another model")
        if len(far.history) > self.trial.milestones[-1]:
            raise ValueError("it is of a longer trial")
        if far.step > self.steps:
            raise ValueError("it is of longer epochs")
        self.kept = None
        if far.kept is not None:
            weights = [saved[f"k{i:04d}"] for i in range(len(self.model.variables))]
            self.kept = Kept(far.kept, weights, saved["probabilities"])
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        self.history, self.step, self.spent_s = list(far.history), far.step, far.spent_s
        self.digests = dict(far.digests)

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables, self.totals]


class _Stretch:
    """How many steps are taken at once inside TensorFlow: as many as take about _STRETCH_S."""

    def __init__(self) -> None:
        self._steps, self.took_s = 1, 0.0

    @contextlib.contextmanager
    def of(self, ahead: int) -> Iterator[int]:
        """Take as many as it gives, `ahead` at most; afterwards `took_s` says how long that was."""
        count = min(self._steps, ahead)
        began = time.perf_counter()
        yield count
        self.took_s = time.perf_counter() - began
        if self.took_s > 2 * _STRETCH_S:
            self._steps = max(1, self._steps // 2)
        elif count == self._steps and self.took_s < _STRETCH_S / 2:
            self._steps *= 2


class _Saver:
    """Writes checkpoints off the training thread, one at a time, each replacing the last one whole."""

    def __init__(self, training: Training, say: Callable[[str], None]) -> None:
        self._training, self._say, self._thread = training, say, None
        self._every_s = training.settings.train.checkpoint_every_s
        self._last = time.monotonic()
        self._failed: list[Exception] = []  # why the last ones could not be written; none since one could

    def restore(self, usable: Callable[[], bool]) -> None:
        """Go on from the run folder's checkpoint, if there is a whole one, and training that took it is `usable`.

        One that will not do is put aside.
        """
        training = self._training
        data = training.run.read_checkpoint(training.trial.id)
        if data is None:
            return
        fresh = training.snapshot()
        try:
            training.resume(_arrays(data))
            if not usable():
                training.resume(fresh)
        except (ValueError, KeyError) as error:
            if training.work.again:  # it is of a longer trial, which is done
                return
            aside = training.run.put_aside_checkpoint(training.trial.id)
            self._say(f"trial {training.trial.id} starts anew; its checkpoint is in {aside}: {error}")

    def save_if_due(self) -> None:
        if time.monotonic() - self._last >= self._every_s and not (self._thread and self._thread.is_alive()):
            self.save()

    def save(self) -> None:
        """Write the state as it is now. Raises what went wrong where no checkpoint could be written _UNSAVED times."""
        if self._training.work.again:  # what lies there is further on
            return
        self.close()
        if len(self._failed) >= _UNSAVED:
            raise self._failed[-1]
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(self._training.snapshot(),))
        self._thread.start()

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        try:
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            self._training.run.write_checkpoint(self._training.trial.id, buffer.getvalue())
            self._failed.clear()
        except (StoreError, OSError, MemoryError) as error:  # training goes on: the next one may do
            self._failed.append(error)
            self._say(f"trial {self._training.trial.id}: no checkpoint written: {_last_line(error)}")

    def close(self) -> None:
        """Wait until the last state is written: a grid that grows in epochs goes on from there."""
        if self._thread:
            self._thread.join()


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """What a checkpoint holds. Raises ValueError where it is damaged."""
    file = io.BytesIO(data)
    try:
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type or part.file_size > len(data) for part in parts.infolist()):
                raise ValueError("it is compressed, which ours are not")
        with np.load(file, allow_pickle=False) as saved:
            return dict(saved)
    except Exception as error:  # zipfile and NumPy have a dozen kinds, down to Python's tokenizer's
        raise ValueError(f"it is damaged: {_last_line(error)}") from None


class OneDevice:
    """Mixed into Keras' optimizers: updates without tf.distribute, which keeps every graph that it is traced in."""

    _backend_update_step = BaseOptimizer._backend_update_step
    _apply_weight_decay = BaseOptimizer._apply_weight_decay


class FusedAdam(OneDevice, keras.optimizers.Adam):
    """Keras' Adam, a variable's update in one kernel instead of a dozen; same slots, same result to rounding."""

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        i = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, variable.dtype)
        beta_1, beta_2 = (tf.cast(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=self._momentums[i].value.handle,
            v=self._velocities[i].value.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )


def _optimizer(settings: Settings) -> keras.optimizers.Optimizer:
    name, rate = settings.train.optimizer, settings.train.learning_rate
    if name == "adam":
        optimizer = FusedAdam(rate)
    else:
        base = type(keras.optimizers.get(name))
        optimizer = type(base.__name__, (OneDevice, base), {})(rate)
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.train.precision == "mixed_float16" else optimizer


def _binary(labels: tf.Tensor, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Loss and correctness per image. labels, p: (batch, 1) float32."""
    return keras.losses.binary_crossentropy(labels, p), tf.cast((p > 0.5) == (labels > 0.5), tf.float32)


def _categorical(labels: tf.Tensor, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Loss and correctness per image. labels: (batch,) int32. p: (batch, classes) float32."""
    correct = tf.argmax(p, axis=1, output_type=tf.int32) == labels
    return keras.losses.sparse_categorical_crossentropy(labels, p), tf.cast(correct, tf.float32)


def _stopped(history: list[Epoch], stopping: EarlyStopping | None) -> bool:
    if stopping is None or not history:
        return False
    best = min(history, key=lambda epoch: epoch.val_loss)
    return history[-1].epoch - best.epoch >= stopping.patience


_sources: dict[tuple[str, str], Encoded] = {}
_caches: dict[tuple[str, str, tuple[int, int], str, float], Cache] = {}


def _cache(work: WorkerContext, data: Data, say: Callable[[str], None]) -> Cache:
    """This node's cache, opened and verified once per worker."""
    key = (work.images.uri, work.index.digest, data.image_size, data.resize, data.cache_limit_gb)
    if key not in _caches:
        _caches[key] = open_cache(work.index, work.images, data, say)
    return _caches[key]


def _encoded(work: WorkerContext) -> Encoded:
    """The images as they lie in the store; a worker reads the shards' footers once."""
    key = (work.images.uri, work.index.digest)
    if key not in _sources:
        _sources[key] = Encoded(work.index, work.images)
    _sources[key].failures.clear()  # what an earlier trial met
    return _sources[key]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:500]


def _roomy_device(images: np.ndarray) -> str | None:
    """The GPU, if there is one and the images fit on it."""
    return "GPU:0" if tf.config.list_logical_devices("GPU") and images.nbytes <= _RESIDENT_BYTES else None


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "cpu"


def _reset_peak_memory() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak is then that of the process


def _peak_memory_mb() -> float:
    if (peak_mb := _status_mb("VmHWM")) is not None:
        return peak_mb
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if os.uname().sysname == "Darwin" else 2**10)


def _status_mb(field: str) -> float | None:
    """What the kernel says of this process; None where it is not Linux."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        return None
