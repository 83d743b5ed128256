"""Sections: the fields of a spec, with their ranges and defaults. Pure."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SkipValidation,
    field_serializer,
)
from pydantic_core import PydanticCustomError

from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.ranges import Range

Scalar = bool | int | float | str
AUTO = "auto"  # a value that is found, not given


class Section(BaseModel):
    """A part of the spec: immutable, strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _pair(value: Any) -> Any:
    """64 means [64, 64]; lists become tuples, so that sizes can be compared and hashed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value


Side = Annotated[int, Field(ge=8, le=2048)]
ImageSize = Annotated[tuple[Side, Side], BeforeValidator(_pair)]


class Data(Section):
    """Which images, and how they are split. image_size is (height, width) in pixels.

    layout: how classes and splits are laid out: folders of classes, folders of splits with those of classes in them, a
    table that names each image's label, or Parquet shards; auto: whichever it looks like.
    labels: the table, as a path below uri or an address of its own; null: labels.csv and the like, where there is one.
    group_by: images of one group never train and validate: a column of the table, `folder`, or a regular expression
    with one group, which is searched for in each path; null: the column `group` where there is one, else none.
    validation_split, test_split: of each class, the share that validates and that only the winner is tested on. Not
    drawn where the data come with such images.
    folds: instead of one validation set so many, so that every image validates once; null: one.
    split_by: hash: drawn by a hash of each path; order: the first by name validate, as with Keras.
    training_images: train on so many of the training images, of each class its share; null: on all of them.
    exif: turn photographs as their EXIF tag says, or leave them as they were stored.
    on_duplicate: the same picture in two parts of a split: say so, drop it from the one that is tested or validated
    later, or fail.
    cache_limit_gb: GB (10^9 bytes) that decoded images may take on a node's disk; a larger data set is streamed anew in
    every epoch.
    rule: version of the rules by which images become classes and splits; runs that 0.1.0 began keep to 1.
    """

    uri: str = Field(min_length=1)
    layout: Literal["auto", "classes", "splits", "table", "shards"] = "auto"
    labels: str | None = Field(None, min_length=1)
    group_by: str | None = Field(None, min_length=1)
    image_size: ImageSize = (64, 64)
    resize: Literal["nearest", "bilinear", "area"] = "bilinear"
    exif: Literal["apply", "ignore"] = "apply"
    validation_split: float = Field(0.2, gt=0, lt=1)
    test_split: float = Field(0.0, ge=0, lt=1)
    folds: int | None = Field(None, ge=2, le=100)
    split_by: Literal["hash", "order"] = "hash"
    training_images: int | None = Field(None, ge=2)
    on_bad_image: Literal["fail", "skip"] = "fail"
    on_duplicate: Literal["say", "drop", "fail"] = "say"
    cache_limit_gb: float = Field(20.0, ge=0)
    rule: Literal[1, 2] = 2


class Augment(Section):
    """Random changes to training images. Shifts are fractions of the side; rotation is drawn from +-rotation_deg.

    preset: values for the fields that are not named; see spec.presets.
    zoom: factors of height and width, each drawn from 1 +- zoom; below 1 enlarges. shear: drawn from +-shear degrees.
    crop: a window anywhere in the image, enlarged to the whole; its share of each side is drawn from [1 - crop, 1].
    brightness, contrast: a factor of the pixels, and of their distance from the mean of their channel, drawn from 1 +-
    that much; pixels stay in [0, 255].
    cutout: a black hole with this share of height and width, its middle anywhere in the image.
    mixup: each image is mixed with another one, pixels and labels, by a share from Beta(mixup, mixup); 0: none.
    cutmix: a box of another image instead, and the labels by its area; the share that stays is from Beta(cutmix,
    cutmix). With both, each image takes one of them.
    validation: change validation images too, but mix none.
    """

    rotation_deg: float = Field(0.0, ge=0, le=180)
    width_shift: float = Field(0.0, ge=0, lt=1)
    height_shift: float = Field(0.0, ge=0, lt=1)
    horizontal_flip: bool = False
    vertical_flip: bool = False
    zoom: float = Field(0.0, ge=0, lt=1)
    shear: float = Field(0.0, ge=0, lt=90)
    crop: float = Field(0.0, ge=0, lt=1)
    fill: Literal["nearest", "reflect", "wrap", "constant"] = "nearest"
    brightness: float = Field(0.0, ge=0, le=1)
    contrast: float = Field(0.0, ge=0, le=1)
    cutout: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0, le=100)
    cutmix: float = Field(0.0, ge=0, le=100)
    preset: Literal["none", "light", "medium", "strong"] = "none"
    validation: bool = False


class Backbone(Section):
    """A pretrained network whose features a head is trained on.

    name: a model of keras.applications, or a .keras file in a folder or a bucket. weights: imagenet, or a file with
    weights for a model of keras.applications.
    layer: take this layer's output as features; null: the last one before the classifier.
    preprocessing: what pixels the network takes; auto: what is known of the named model, or what the file says.
    views: versions of each training image whose features are kept: the image itself, and augmented ones. Epoch e trains
    on view e mod views.
    unfreeze: how many of its last layers with weights are trained too, from the trained head on; 0: none.
    """

    name: str = Field(min_length=1)
    weights: str = Field("imagenet", min_length=1)
    layer: str | None = Field(None, min_length=1)
    pooling: Literal["avg", "max", "flatten"] = "avg"
    preprocessing: Literal["auto", "0..1", "-1..1", "0..255", "caffe", "torch"] = "auto"
    views: int = Field(1, ge=1, le=1000)
    unfreeze: int = Field(0, ge=0, lt=2**31)


NO_BACKBONE = "none"


def _named(value: Any) -> Any:
    """A name alone is a backbone with every other field at its default; `none` is no backbone."""
    if value == NO_BACKBONE:
        return None
    return {"name": value} if isinstance(value, str) else value


class EarlyStopping(Section):
    """Stop after `patience` epochs without a lower val_loss.

    restore_best: a point's figures are those of the epoch with the lowest val_loss, not of the last one.
    """

    patience: int = Field(5, ge=1)
    restore_best: bool = True


class Train(Section):
    """How one trial trains.

    learning_rate: auto: a range test finds one; see plans/rates.py.
    lr_scale: multiply learning_rate, and fine_tune_learning_rate, by the batch size over lr_base_batch (linear), or by
    its root (sqrt).
    fine_tune_learning_rate: with backbone.unfreeze; null: a tenth of learning_rate.
    schedule: how the rate changes: constant: not; warmup: it rises; step: it falls from time to time; cosine: it rises
    and falls to 0; plateau: it falls where val_loss does not; wsd: it rises, stays, and falls to 0 (warm-up, stable,
    decay).
    warmup_epochs: of warmup, cosine and wsd: for so many epochs it rises from 0, with every step.
    step_epochs: of step: it falls each time after so many epochs.
    plateau_patience: of plateau: it falls after so many epochs without a val_loss that is lower by 0.0001.
    decay_factor: of step and plateau: what the rate is multiplied by where it falls.
    decay_share: of wsd: the share of the epochs, whole ones, in which it falls; spec/schedules.py has how many.
    weight_decay: null: what Keras' optimizer does by default, 0.004 for adamw, and nothing for others.
    momentum: of sgd and rmsprop; 0: none. clip_norm: the most that the norm of all gradients may be; 0: any.
    label_smoothing: in what is trained for alone; losses and val_loss stay those of the labels.
    ema: decay, at each step, of the moving average of the weights with which the trial is validated, ranked and
    exported; 0: none.
    precision: auto: float32 or mixed_bfloat16, whichever is faster where the run begins; see plans/precision.py.
    class_weight: what an image of a class counts for in training: none: 1; balanced: so that all classes count alike;
    or a number for each class, 1 for those that are not named.
    """

    batch_size: int = Field(32, ge=1, lt=2**31)
    epochs: int = Field(10, ge=1, lt=2**31)
    optimizer: Literal["adam", "adamw", "nadam", "rmsprop", "sgd", "adagrad"] = "adam"
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = 0.001
    lr_scale: Literal["none", "sqrt", "linear"] = "none"
    lr_base_batch: int = Field(32, ge=1, lt=2**31)
    fine_tune_learning_rate: float | None = Field(None, gt=0)
    schedule: Literal["constant", "warmup", "step", "cosine", "plateau", "wsd"] = "constant"
    warmup_epochs: int = Field(1, ge=0, lt=2**31)
    step_epochs: int = Field(5, ge=1, lt=2**31)
    plateau_patience: int = Field(3, ge=1, lt=2**31)
    decay_factor: float = Field(0.1, gt=0, lt=1)
    decay_share: float = Field(0.2, gt=0, le=1)
    weight_decay: float | None = Field(None, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    clip_norm: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float = Field(0.0, ge=0, lt=1)
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    class_weight: Literal["none", "balanced"] | dict[str, Annotated[float, Field(ge=0)]] = "none"
    early_stopping: EarlyStopping | None = None
    checkpoint_every_s: float = Field(60.0, gt=0)


class OwnModel(Section):
    """Arguments of the package's models, where they are axes. hidden: units of a layer before the classes; 0: none."""

    dropout: float = Field(0.0, ge=0, le=1)
    l2: float = Field(0.0, ge=0)
    hidden: int = Field(0, ge=0, lt=2**31)


def _every(value: Any) -> Any:
    """A single price applies to every node."""
    return {"*": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Resources(Section):
    """What one trial gets. gpus_per_trial `auto`: a share of a GPU where the cluster has any, else none.

    node_type: what the nodes are, such as g4dn.xlarge, where they do not say so themselves.
    usd_per_hour: node type -> USD an hour, in place of its list price; one number, or `*`, for every other type.
    """

    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    max_concurrent: int | None = Field(None, ge=1)
    node_type: str | None = Field(None, min_length=1)
    usd_per_hour: Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(_every)] = {}


class Budget(Section):
    """What one command may use. A trial that would not finish within it is not started; null: no limit.

    max_usd: cost of the nodes while trials run on them. max_hours: from the command's start.
    """

    max_usd: float | None = Field(None, gt=0)
    max_hours: float | None = Field(None, gt=0)


def _web_address(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.fullmatch(r"https?://[^/\s]+\S*", value.get_secret_value()):
        raise PydanticCustomError("web_address", "")
    return value


class Notify(Section):
    """Whom to tell that a run is over.

    url: an address that takes a POST; who knows it may write there, so it goes into no file and no message, and to no
    worker. null: that of ORCHESTRATOR_NOTIFY_URL, where that is set.
    on: which ends are told: done; failed: some points are; budget: it is used up.
    """

    url: Annotated[SecretStr | None, AfterValidator(_web_address)] = Field(None, exclude=True)
    on: list[Literal["done", "failed", "budget"]] = ["done", "failed", "budget"]


MOST_GUARDED = 8  # values of an axis that a race guards


def _listed(value: Any) -> Any:
    """A name alone is a list of one."""
    return [value] if isinstance(value, str) else value


class Race(Section):
    """Stop trials that can hardly win, and give more seeds to those that may.

    first, factor: trials are compared after `first` epochs, and after each time `factor` as many; all but a share of
    1/factor is stopped.
    guard: axes (of at most 8 values) of which the best point of every value goes on: none, all, or a list of names.
    share: stopped points that may still win are trained on while the first seed takes no more than this share of the
    epochs of all its trials.
    contenders: how many configurations, at most, may get the seeds after the first, in blocks up to 3, 5, 10, and all.
    enough: no more seeds once choosing the leader can cost no more than this, in units of the metric.
    keep: like exclude: points that are never stopped. rule: version of these rules.
    """

    first: int = Field(4, ge=1)
    factor: float = Field(2.0, gt=1)
    guard: Literal["all", "none"] | Annotated[list[str], BeforeValidator(_listed)] = "none"
    share: float = Field(0.5, gt=0, le=1)
    contenders: int = Field(8, ge=2)
    enough: float = Field(0.005, ge=0)
    keep: list[dict[str, Any]] = []
    rule: Literal[1] = 1


class Sample(Section):
    """Draw points from the grid instead of training all of its product.

    points: how many combinations, for each seed and fold; a list of epochs is not drawn from, as epochs are shared.
    method: sobol spreads them evenly; random draws each number alone.
    seed: another one draws others.
    """

    points: int = Field(ge=1, lt=2**31)
    method: Literal["sobol", "random"] = "sobol"
    seed: int = Field(0, ge=0, lt=2**31)


def _told(value: Any) -> Any:
    """An address alone is all that most runs have to say."""
    return {"url": value} if isinstance(value, str) else value


def _raced(value: Any) -> Any:
    """`true` is a race with every field at its default, `false` is none."""
    return {} if value is True else None if value is False else value


_MODEL = rf"^(auto|head|{'|'.join(OWN_MODELS)}|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)$"


class Spec(Section):
    """A whole run. `grid` is a product of axes, `points` adds single combinations to it, `exclude` removes some.

    grid: of each axis a list of values, or the range from which a sample draws.
    order: longest: trials that take longest start first, so that all end early; balanced: every value of every axis is
    trained early, so that the board says something of each while most is still to be trained.
    model: a network for images, head, or a function of the user's; auto is the head where there is a backbone, and
    small_cnn where there is none.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    data: Data
    augment: Augment = Augment()
    backbone: Annotated[Backbone | None, BeforeValidator(_named)] = None
    model: str = Field("auto", pattern=_MODEL)
    train: Train = Train()
    grid: dict[str, SkipValidation[list[Any] | Range]] = {}
    sample: Sample | None = None
    points: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field([0], min_length=1)
    race: Annotated[Race | None, BeforeValidator(_raced)] = None
    order: Literal["longest", "balanced"] = "longest"
    metric: str = "val_accuracy"
    resources: Resources = Resources()
    budget: Budget = Budget()
    notify: Annotated[Notify, BeforeValidator(_told)] = Notify()
    output: str = Field("./runs", min_length=1)

    @field_serializer("grid")
    def _grid_as_written(self, grid: dict[str, list[Any] | Range]) -> dict[str, Any]:
        return {name: values.tree() if isinstance(values, Range) else values for name, values in grid.items()}

    def without_secrets(self) -> "Spec":
        """What may go to workers and into files."""
        return self.model_copy(update={"notify": Notify(on=self.notify.on)})

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis, in the order of the spec: first those of the grid, then those that only single points name."""
        return tuple(dict.fromkeys([*self.grid, *(name for point in self.points for name in point)]))

    @property
    def ranges(self) -> dict[str, Range]:
        """The axes of which points are drawn from a range."""
        return {name: values for name, values in self.grid.items() if isinstance(values, Range)}

    @property
    def draws(self) -> list[tuple[int, int]]:
        """(seed, fold) of every trial of a configuration, in their order; without folds, each seed's is 0."""
        return [(seed, fold) for seed in self.seeds for fold in range(self.data.folds or 1)]


def is_streamed(data: Data, images: int) -> bool:
    """Whether so many decoded images are more than the node cache may hold."""
    return images * 3 * math.prod(data.image_size) > data.cache_limit_gb * 1e9
