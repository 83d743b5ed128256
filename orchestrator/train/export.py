"""Export: the models of a trial in the run folder, each with all that using it takes.

A model takes what it took in training: RGB pixels, resized as data.resize says and multiplied by 1/255. Beside it
lie the predictions for the validation images, as training had them at that epoch.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from orchestrator.data.index import Index
from orchestrator.data.pipeline import SCALE, Source
from orchestrator.data.stream import decode
from orchestrator.plans.rates import rate_used
from orchestrator.plans.trials import points_of
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import BEST, CANDIDATES, REFIT, KeepModels, versions
from orchestrator.runs.result import Epoch, Exported, Refitted, merit, ranked_by
from orchestrator.runs.threshold import choose_threshold
from orchestrator.spec.axes import resolve
from orchestrator.store import StoreError
from orchestrator.train.backbone import Branch, compose
from orchestrator.train.inputs import extractor_of
from orchestrator.train.model import class_probabilities, predicted_classes
from orchestrator.train.model_file import to_bytes, weights_digest
from orchestrator.train.training import Training

_THUMBNAILS = 24


class Exporter:
    """Writes the models of one trial while it trains, as the run wants them kept.

    Of `all`, each milestone's; of `best`, the one milestone's that ranks first, among those of the candidates.
    """

    def __init__(self, training: Training, context: WorkerContext, say: Callable[[str], None]) -> None:
        self._training, self._context, self._say = training, context, say
        self._prefix = "" if context.keep is KeepModels.all else CANDIDATES
        self._points = {point.epochs: point for point in points_of(training.trial, context.spec.axes)}
        self._written: set[int] = set()  # milestones whose models lie in the run folder

    def find_written(self) -> None:
        """See which models lie in the run folder already. To be called when training went on from a checkpoint."""
        if not self._training.history or self._context.keep is KeepModels.none:
            return
        for milestone in self._points:
            found = self._context.run.read_model(self._name(milestone))
            own = (self._training.trial.id, self._epoch(milestone).epoch)
            if found and (found.trial_id, found.epoch) == own:
                self._written.add(milestone)

    def _name(self, milestone: int) -> str:
        """The name of the model of a milestone in the run folder."""
        return REFIT if self._training.trial.refit else f"{self._prefix}{self._points[milestone].id}"

    @property
    def must_restart(self) -> bool:
        """Whether a model is wanted whose weights are gone, so that the trial must be trained from its start.

        Never for a candidate, which may not win: where it does, the driver has its trial trained again.
        """
        if self._context.keep is KeepModels.best and not self._context.models_only:
            return False
        return any(self._weights(milestone) is None for milestone in self._wanted())

    def export(self) -> None:
        """Write the models that are wanted at this epoch and not written yet."""
        for milestone in self._wanted():
            weights = self._weights(milestone)
            if weights is None:
                continue
            try:
                self._write(milestone, *weights)
            except (StoreError, OSError) as error:  # training goes on: the driver sees that it is missing
                self._say(f"trial {self._training.trial.id}: no model written: {error}")

    def _wanted(self) -> list[int]:
        """Milestones that have been reached, and whose models are to be written."""
        if self._context.keep is KeepModels.none or self._is_left_to_the_winner:
            return []
        training = self._training
        reached = [each for each in self._points if each <= len(training.history) or training.ended_early]
        if reached and self._context.keep is KeepModels.best:
            reached = [min(reached, key=lambda each: merit(self._history(each), *self._ranking))]
        return [each for each in reached if each not in self._written]

    @property
    def _is_left_to_the_winner(self) -> bool:
        """Whether the model is only written if the trial wins: backbone and head take longer to write than to train."""
        at_work = self._context.keep is KeepModels.best and not self._context.models_only
        return at_work and self._training.images.features is not None

    @property
    def _ranking(self) -> tuple[bool, str]:
        return self._training.restores_best, self._context.spec.metric

    def _history(self, milestone: int) -> Sequence[Epoch]:
        return self._training.history[:milestone]

    def _epoch(self, milestone: int) -> Epoch:
        return ranked_by(self._history(milestone), *self._ranking)

    def _weights(self, milestone: int) -> tuple[Sequence[np.ndarray] | None, np.ndarray | None] | None:
        """Weights and outputs of the epoch that ranks the milestone. Weights None: the model has them now.

        Outputs None: they are to be made again, from the weights. None in place of both: the weights are gone.
        """
        training, epoch = self._training, self._epoch(milestone).epoch
        if training.best and training.best.epoch == epoch:
            return training.best.weights, training.best.outputs
        if epoch == len(training.history) and training.step == 0:
            return None, training.outputs
        return None

    def _write(self, milestone: int, weights: Sequence[np.ndarray] | None, outputs: np.ndarray | None) -> None:
        training, run = self._training, self._context.run
        with training.averaged():
            with _lent(training.weights, weights):
                keras_file = to_bytes(self._whole_model())
                digest = weights_digest(training.model)
            if training.trial.refit:
                run.write_model(REFIT, keras_file, None, self._refit_facts(self._facts(milestone, digest)))
                self._written.add(milestone)
                return
            if outputs is None:
                validated = training.loop.validate()
                assert validated is not None  # nothing stops it
                outputs = validated.outputs
        index, rows, probabilities = self._context.index, training.images.validation_rows, class_probabilities(outputs)
        threshold, chosen = choose_threshold(self._context.spec.metric, index.labels[rows], probabilities)
        facts = self._facts(milestone, digest).model_copy(update={"threshold": threshold, "threshold_chosen": chosen})
        validation = judged_file(index, training.images.source, rows, probabilities)
        run.write_model(self._name(milestone), keras_file, validation, facts)
        if self._context.keep is KeepModels.best:
            for beaten in self._written:
                run.delete_models([self._name(beaten)])
            self._written.clear()
        self._written.add(milestone)

    def _refit_facts(self, facts: Exported) -> Exported:
        """Those of a refit: what the winner's validation images chose stays chosen."""
        training, best = self._training, self._context.run.read_model(BEST)
        assert training.trial.refit is not None
        refit = Refitted(images=len(training.images.rows), steps=training.trial.refit.steps)
        chosen = {} if best is None else {name: getattr(best, name) for name in ("threshold", "threshold_chosen")}
        return facts.model_copy(update={"refit": refit, **chosen})

    def _whole_model(self) -> keras.Model:
        """The model from pixels on, even where it is trained on features."""
        model, settings = self._training.model, self._training.settings
        if settings.backbone is None:
            return model
        extractor = model.extractor if isinstance(model, Branch) else extractor_of(self._context, settings)[0]
        return compose(extractor, self._training.head)

    def _facts(self, milestone: int, digest: str) -> Exported:
        point, epoch, spec = self._points[milestone], self._epoch(milestone), self._context.spec
        data = self._training.settings.data
        return Exported(
            classes=list(self._context.index.classes),
            image_size=data.image_size,
            resize=data.resize,
            scale=SCALE,
            point_id=point.id,
            trial_id=point.trial_id,
            values=dict(point.values),
            seed=point.seed,
            fold=point.fold,
            epochs=point.epochs,
            epoch=epoch.epoch,
            metric=spec.metric,
            rate_used=rate_used(resolve(spec, self._training.trial.values), self._training.settings),
            metrics=epoch.metrics,
            weights=digest,
            index_digest=self._context.index.digest,
            spec=spec.model_dump(mode="json"),
            versions=versions(),
        )


def judged_file(
    index: Index,
    source: Source,
    rows: np.ndarray,
    probabilities: np.ndarray,
    metadata: Mapping[bytes, str] | None = None,
) -> bytes:
    """A Parquet file: path, label, predicted, probabilities, and a thumbnail of the worst classified.

    predicted: as training counts it; of two classes, the second above one half, whatever Exported.threshold is.

    rows: (n,) the judged images' rows of the index. probabilities: (n, classes).
    """
    labels = index.labels[rows]
    of_truth = probabilities[np.arange(len(rows)), labels]
    worst = np.argsort(of_truth, kind="stable")[:_THUMBNAILS]
    thumbnails: list[bytes | None] = [None] * len(rows)
    for i, image in zip(worst, _pictures(source, rows[worst]), strict=True):
        thumbnails[i] = tf.io.encode_png(image).numpy()
    table = pa.table(
        {
            "path": index.table["path"].take(pa.array(rows)),
            "label": [index.classes[label] for label in labels],
            "predicted": [index.classes[label] for label in predicted_classes(probabilities)],
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
            "thumbnail": pa.array(thumbnails, pa.binary()),
        }
    )
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), out, write_page_checksum=True)
    return out.getvalue()


def _pictures(source: Source, rows: np.ndarray) -> Iterator[tf.Tensor]:
    """Each image of these rows, (height, width, 3) uint8, in their order."""
    if source.images is not None:
        yield from (source.images[row] for row in rows.tolist())
    elif source.encoded is not None:
        size, resize = source.data.image_size, source.data.resize
        for _, blobs, turns in source.encoded.chunks(rows):
            yield from (decode(blob, turn, size, resize) for blob, turn in zip(blobs, turns, strict=True))


@contextlib.contextmanager
def _lent(variables: Sequence[keras.Variable], values: Sequence[np.ndarray] | None) -> Iterator[None]:
    """The variables with other values for a while; None: with their own."""
    if values is None:
        yield
        return
    own = [np.array(variable) for variable in variables]
    _assign(variables, values)
    try:
        yield
    finally:
        _assign(variables, own)


def _assign(variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
