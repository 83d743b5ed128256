"""Forecast: how long trials take, on how many nodes, and what that costs. Pure."""

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.spec.axes import Settings
from orchestrator.spec.backbones import Pretrained
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.sections import Data, Resources


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images there are: of folds, in the one with the fewest to train on.

    Attributes:
        packed: They are rows of Parquet shards.
        test: Only the winner sees them.
        split: SHA-256 over what each image is for; None for runs that version 0.1.0 began.
    """

    training: int
    validation: int
    packed: bool = False
    test: int = 0
    split: str | None = None

    @property
    def images(self) -> int:
        """All of them."""
        return self.training + self.validation + self.test

    def training_of(self, data: Data) -> int:
        """How many images a trial with these settings trains on."""
        return self.training if data.training_images is None else data.training_images


# AWS's list prices in USD an hour, on demand, Linux, us-east-1, as public price tables quoted them up to June 2026 (not
# read from AWS itself). Spot and other regions differ, and prices change: `resources.usd_per_hour` overrides them.
LIST_PRICES = {
    "m5.large": 0.096,
    "m5.xlarge": 0.192,
    "m5.2xlarge": 0.384,
    "c5.xlarge": 0.17,
    "c5.2xlarge": 0.34,
    "c5.4xlarge": 0.68,
    "g4dn.xlarge": 0.526,
    "g4dn.2xlarge": 0.752,
    "g4dn.4xlarge": 1.204,
    "g4dn.12xlarge": 3.912,
    "g5.xlarge": 1.006,
    "g5.2xlarge": 1.212,
    "g5.4xlarge": 1.624,
    "g5.12xlarge": 5.672,
    "g6.xlarge": 0.8048,
    "p3.2xlarge": 3.06,
}

BFLOAT16 = "mixed_bfloat16"
_SIDE = 64  # a Pace is measured on images of 64 x 64; what depends on pixels is scaled from there

MOST_PER_GPU = 8
_GPU_CONTEXT_MB = 1500  # what CUDA, cuDNN and TensorFlow hold for one process: assumed, not measured
_BACKBONE_BATCH = 32  # images at a time of which features are made
# Of small_cnn on 64 x 64, at most 1016 MB were measured in all, at batch sizes 32 and 128, and 917 MB private at 128. A
# third more is given to what grows with the batch; models of others may take more.
WORKER_MB, _WORKER_BYTES_PER_PIXEL = 900, 1400
_STEP_BYTES_PER_PIXEL = 2000  # activations, gradients and workspace of small_cnn, for an image: assumed, not measured


def gpu_memory_mb(settings: Settings, counts: Counts) -> float:
    """GPU memory that a trial is expected to take, in MB, including the decoded images of its data set."""
    images = counts.images * 3 * math.prod(settings.data.image_size)
    step = _batch_pixels(settings) * _STEP_BYTES_PER_PIXEL * max(1.0, _work(settings, "activations"))
    return _GPU_CONTEXT_MB + (images + step) / 1e6


def worker_memory_mb(settings: Settings) -> float:
    """Memory that a worker may take to train this trial on CPUs, in MB."""
    per_pixel = _WORKER_BYTES_PER_PIXEL * max(1.0, _work(settings, "activations"))
    return WORKER_MB + _batch_pixels(settings) * per_pixel / 1e6


def _work(settings: Settings, what: Literal["gmacs", "activations"]) -> float:
    """How many times as much as small_cnn a network of this package needs; 1 for any other."""
    own = OWN_MODELS.get(settings.model)
    return getattr(own, what) / getattr(OWN_MODELS["small_cnn"], what) if own else 1.0


def _batch_pixels(settings: Settings) -> int:
    batch_size = max(settings.train.batch_size, _BACKBONE_BATCH) if settings.backbone else settings.train.batch_size
    return batch_size * math.prod(settings.data.image_size)


def trials_per_gpu(gpu_mb: float, trial_mb: float) -> int:
    """How many trials share a GPU of `gpu_mb`: at least 1, at most MOST_PER_GPU. A tenth of its memory stays free."""
    return max(1, min(MOST_PER_GPU, int(0.9 * gpu_mb // trial_mb)))


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one worker is, which trains one trial on one core or GPU, and how fast its node is.

    Attributes:
        source: Where the figures come from, for a person to read.
        step_s: Precision -> batch size -> seconds of a training step on images of 64 x 64.
        validation_image_s: Precision -> seconds to validate one image of 64 x 64.
        worker_start_s: Until a worker can train (start of the command, Ray, process, TensorFlow), plus Ray's shutdown.
        trial_start_s: What a trial takes in addition to its epochs: building the model, the first step.
        fill_image_s: Seconds per image to fetch and decode it into a node's cache, all cores at work.
    """

    source: str
    step_s: Mapping[str, Mapping[int, float]]
    validation_image_s: Mapping[str, float]
    worker_start_s: float
    trial_start_s: float
    fill_image_s: float

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Pace":
        """Read what `dataclasses.asdict` and JSON made of a Pace.

        Raises ValueError, TypeError, KeyError or AttributeError if it is not one.
        """
        step_s = {p: {int(b): float(s) for b, s in sizes.items()} for p, sizes in tree["step_s"].items()}
        validation = {p: float(s) for p, s in tree["validation_image_s"].items()}
        rest = (float(tree[name]) for name in ("worker_start_s", "trial_start_s", "fill_image_s"))
        pace = cls(str(tree["source"]), step_s, validation, *rest)
        figures = [s for sizes in step_s.values() for s in sizes.values()]
        figures += [*validation.values(), pace.worker_start_s, pace.trial_start_s, pace.fill_image_s]
        if "float32" not in step_s or set(step_s) != set(validation) or not all(sizes for sizes in step_s.values()):
            raise ValueError("figures for float32 are missing")
        if not all(math.isfinite(s) and s >= 0 for s in figures):
            raise ValueError("every figure must be a finite number of seconds")
        return pace


# Measured on one core of a 2023 server: a step of small_cnn takes about 0.5 ms, plus 1.4 ms per image of 64 x 64.
# Validation takes a third of that. bfloat16 takes 0.7 of the time on CPUs that have it. 8005 JPEGs took two cores 5 s.
FIRST_GUESS = Pace(
    source="a first guess, for small_cnn on one CPU core: python -m orchestrator.calibrate measures this machine",
    step_s={p: {b: 0.0005 + b * 0.0014 * f for b in (1, 1000)} for p, f in (("float32", 1.0), ("mixed_bfloat16", 0.7))},
    validation_image_s={"float32": 0.0014 / 3, "mixed_bfloat16": 0.0014 / 3 * 0.7},
    worker_start_s=10.0,
    trial_start_s=1.0,
    fill_image_s=0.0006,
)


# What an epoch's forecast depends on, of the axes
EPOCH_DEPENDS_ON = ("model", "batch_size", "image_size", "training_images", "precision", "backbone", "unfreeze")

_SLOWER = 1.6  # a pretrained network than small_cnn, for as many GMACs: measured for MobileNet on two cores
_HEAD_STEP_S, _HEAD_IMAGE_S = 0.0004, 0.000004  # of a step, and of an image in it: measured for 1024 features


def backbone_image_s(backbone: Pretrained, image_size: tuple[int, int], pace: Pace = FIRST_GUESS) -> float:
    """Seconds for one core or GPU to make the features of one image."""
    gmacs = backbone.gmacs * math.prod(image_size) / 224**2
    return gmacs / OWN_MODELS["small_cnn"].gmacs * pace.validation_image_s["float32"] * _SLOWER


def epoch_s(settings: Settings, counts: Counts, pace: Pace = FIRST_GUESS, backbone: Pretrained | None = None) -> float:
    """Seconds of one epoch with its validation, on one worker, once features are there.

    The pace is that of small_cnn, from which other networks of this package are told by their multiply-adds, or of a
    head on 1024 features; a user's model is taken for one of these.
    """
    images = counts.training_of(settings.data)
    full, rest = divmod(images, settings.train.batch_size)
    steps = full + rest / settings.train.batch_size
    if settings.backbone and backbone and not settings.backbone.unfreeze:
        return math.ceil(steps) * _HEAD_STEP_S + (images + counts.validation) * _HEAD_IMAGE_S
    if backbone:  # backwards through a few layers only, forwards through all
        return (1.5 * images + counts.validation) * backbone_image_s(backbone, settings.data.image_size, pace)
    precision = settings.train.precision if settings.train.precision in pace.step_s else "float32"
    scale = math.prod(settings.data.image_size) / _SIDE**2 * _work(settings, "gmacs")
    fixed_s, step_s = _step_s(pace.step_s[precision], settings.train.batch_size)
    if precision == BFLOAT16 and step_s and (own := OWN_MODELS.get(settings.model)):
        gain = _step_s(pace.step_s["float32"], settings.train.batch_size)[1] / step_s  # of small_cnn, here
        scale *= gain / own.bfloat16 ** (math.log(gain) / math.log(OWN_MODELS["small_cnn"].bfloat16)) if gain else 1
    train_s = math.ceil(steps) * fixed_s + steps * (step_s - fixed_s) * scale
    return train_s + counts.validation * pace.validation_image_s[precision] * scale


def _step_s(measured: Mapping[int, float], batch_size: int) -> tuple[float, float]:
    """(seconds of any step, whatever its images, seconds of this step), on a line through two measured batch sizes."""
    sizes = sorted(measured)
    if len(sizes) == 1:
        return 0.0, measured[sizes[0]] * batch_size / sizes[0]
    slope = (measured[sizes[1]] - measured[sizes[0]]) / (sizes[1] - sizes[0])
    fixed_s = max(0.0, measured[sizes[0]] - slope * sizes[0])
    below = max((size for size in sizes[:-1] if size <= batch_size), default=sizes[0])
    above = sizes[sizes.index(below) + 1]
    slope = max(0.0, (measured[above] - measured[below]) / (above - below))
    return fixed_s, max(fixed_s, measured[below] + slope * (batch_size - below))


def schedule(trials_s: Sequence[float], nodes: int, slots: int, start_s: float) -> list[float]:
    """For each node, seconds until its last trial ends; 0 for a node that gets none.

    trials_s: worker time of each trial, in the order in which they start; each goes to the worker that is free first.
    slots: trials at once on a node. start_s: seconds until a node's workers can train.
    """
    ends = [0.0] * nodes
    free = [(start_s, node) for _ in range(slots) for node in range(nodes)]
    heapq.heapify(free)
    for trial_s in trials_s:
        at_s, node = heapq.heappop(free)
        ends[node] = max(ends[node], at_s + trial_s)
        heapq.heappush(free, (at_s + trial_s, node))
    return ends


def outlook(
    trials_s: Sequence[float], slots: int, pace: Pace, prepare_s: tuple[float, float], usd_per_hour: float | None
) -> Iterator[tuple[int, float, float | None]]:
    """(nodes, hours until all is trained, dollars for these nodes) for 1, 2, 4, … nodes, until more would not help.

    trials_s: worker time of the trials still to train, longest first. prepare_s: seconds of a node before it trains,
    for what each node does (decoded images), and for what all share (features).
    """
    whole_s = [pace.trial_start_s + trial_s for trial_s in trials_s]
    for nodes in itertools.accumulate(itertools.repeat(2), int.__mul__, initial=1):
        start_s = pace.worker_start_s + prepare_s[0] + prepare_s[1] / nodes
        ends = schedule(whole_s, nodes, slots, start_s)
        yield nodes, max(ends) / 3600, None if usd_per_hour is None else sum(ends) / 3600 * usd_per_hour
        if nodes * slots >= len(trials_s):
            break


def price(resources: Resources, node_type: str | None) -> float | None:
    """USD an hour of a node: the spec's price for its type, or for every type, or the list price; None if unknown."""
    own, name = resources.usd_per_hour, node_type or resources.node_type or "*"
    return own.get(name, own.get("*", LIST_PRICES.get(name)))
