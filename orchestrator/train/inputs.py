"""Inputs: what a trial trains on: the images of this node's cache or of the store, or the features of a backbone."""

import platform
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from orchestrator import machine
from orchestrator.data.cache import Cache, open_cache
from orchestrator.data.features import Maker, is_made, open_features, read_width
from orchestrator.data.index import check_split, describe_bad
from orchestrator.data.pipeline import FeatureSource, Source, shared_tensor, view_batches
from orchestrator.data.stream import Encoded
from orchestrator.errors import BadInput
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.spec.axes import Settings
from orchestrator.spec.backbones import View, views
from orchestrator.spec.sections import Data
from orchestrator.train.backbone import BATCH, Extract, compile_extractor, load_extractor, make_features
from orchestrator.train.device import gpu_with_room
from orchestrator.train.loop import TrialImages

_caches: dict[tuple[object, ...], Cache] = {}
_sources: dict[tuple[str, str, str], Encoded] = {}
_Copies = tuple[tf.Tensor, ...]
_copies: list[tuple[tuple[np.ndarray, ...], _Copies]] = []  # images or features, and their copies on the GPU
_features: dict[tuple[str, str], np.ndarray] = {}
_extractors: dict[tuple[object, ...], tuple[keras.Model, Extract]] = {}
_FEATURES_GB = 20.0  # what features may take on a node, at least


def open_inputs(
    context: WorkerContext, settings: Settings, trial: Trial, reporter: Reporter
) -> tuple[TrialImages, Cache]:
    """What a trial trains on with these settings, and the cache of its images.

    Features that nobody has made yet are made. Raises BadInput, StoreError, and Stopped where the reporter says so.
    """
    index = context.index
    source, cache = open_source(context, settings, trial.seed, reporter)
    readable = index.readable(cache.bad)
    rows = index.training_rows(readable, settings.data.training_images, trial.fold)
    resident: Source | FeatureSource | None = None
    if settings.backbone and not settings.backbone.unfreeze:
        resident = _feature_source(context, settings, source, cache.bad, reporter)
    elif cache.images is not None and (gpu := gpu_with_room(cache.images.nbytes)):
        resident = replace(source, images=_on_device(gpu, (cache.images,))[0])
    validation = np.flatnonzero(index.validates(trial.fold) & readable)
    if trial.refit:
        rows, validation = np.union1d(rows, validation), validation[:0]
    return TrialImages(source, resident, rows, validation), cache


def open_source(context: WorkerContext, settings: Settings, seed: int, reporter: Reporter) -> tuple[Source, Cache]:
    """Every image, as a trial with these settings takes it, and the node's cache of them."""
    cache = _cache(context, settings.data, reporter)
    index, classes = context.index, len(context.index.classes)
    source = Source(
        images=None if cache.images is None else shared_tensor(cache.images),
        labels=tf.constant(index.labels[:, None], tf.float32) if classes == 2 else tf.constant(index.labels, tf.int32),
        data=settings.data,
        augment=settings.augment,
        seed=seed,
        threads=context.spec.resources.cpus_per_trial,
        encoded=_encoded(context, settings.data.exif) if cache.images is None else None,
    )
    return source, cache


def _on_device(gpu: str, arrays: tuple[np.ndarray, ...]) -> _Copies:
    """Copies of these on the GPU: the last ones are kept, and all trials and models of this process share them."""
    if not _copies or [id(array) for array in _copies[-1][0]] != [id(array) for array in arrays]:
        _copies.clear()
        with tf.device(gpu):
            _copies.append((arrays, tuple(tf.identity(shared_tensor(array)) for array in arrays)))
    return _copies[-1][1]


def copies_on_gpu() -> object:
    """What this process holds on the GPU for all its trials: the same object as long as it is the same."""
    return _copies[-1] if _copies else None


def new_extractor(context: WorkerContext, settings: Settings) -> keras.Model:
    """The network that makes features of images, to be changed at will. Raises BadInput."""
    backbone = settings.backbone
    assert backbone is not None
    pretrained, file = context.networks.backbones[backbone.name], context.weights.get(backbone.name)
    return load_extractor(backbone, pretrained, file, settings.data.image_size)


def extractor_of(context: WorkerContext, settings: Settings) -> tuple[keras.Model, Extract]:
    """The same, loaded and compiled once per worker: not to be changed."""
    backbone = settings.backbone
    assert backbone is not None
    identity = context.networks.backbones[backbone.name].identity
    key = (identity, backbone.layer, backbone.pooling, settings.data.image_size)
    if key not in _extractors:
        _extractors.clear()  # one is enough, and some are large
        extractor = new_extractor(context, settings)
        _extractors[key] = extractor, compile_extractor(extractor)
    return _extractors[key]


def feature_width(context: WorkerContext, settings: Settings) -> int:
    """How many features an image has. Loads the network only if no node has made features of it yet."""
    plain = _views(context, settings)[0]
    if (width := read_width(context.run.store, plain.id)) is None:
        width = int(extractor_of(context, settings)[0].output_shape[1])
    return width


def _views(context: WorkerContext, settings: Settings) -> tuple[View, ...]:
    assert settings.backbone is not None
    return views(settings, context.networks.backbones[settings.backbone.name], context.index.digest)


def _feature_source(
    context: WorkerContext, settings: Settings, source: Source, bad: dict[int, str], reporter: Reporter
) -> FeatureSource:
    wanted, index = _views(context, settings), context.index
    readable = index.readable(bad)
    if not all(is_made(context.run.store, view.id) for view in wanted):
        # before the work is done: what would be refused after it
        if bad and settings.data.on_bad_image == "fail":
            raise BadInput(describe_bad([(index.paths[row], reason) for row, reason in sorted(bad.items())]))
        check_split(index, readable, settings.data.uri)
    arrays = {view.id: _features_of(view, context, settings, source, readable, reporter) for view in wanted}
    if gpu := gpu_with_room(sum(array.nbytes for array in arrays.values())):
        copies = _on_device(gpu, tuple(arrays.values()))
    else:
        copies = tuple(map(shared_tensor, arrays.values()))
    tensors = dict(zip(arrays, copies, strict=True))
    *training, validation = (tensors[view.id] for view in wanted)
    where = gpu or "CPU:0"
    return FeatureSource(tuple(training), validation, source.labels, source.seed, where, settings.augment)


def _features_of(
    view: View, context: WorkerContext, settings: Settings, source: Source, readable: np.ndarray, reporter: Reporter
) -> np.ndarray:
    """All features of a view, opened and verified once per worker."""
    key = (context.run.store.uri, view.id)
    if key in _features:
        return _features[key]
    backbone, threads = settings.backbone, machine.cpus()
    assert backbone is not None
    all_cores = replace(source, threads=threads, seed=0)  # its changes are the same for every trial
    made = 0

    def make(first: int, end: int) -> np.ndarray:
        nonlocal made
        extractor, extract = extractor_of(context, settings)
        rows = first + np.flatnonzero(readable[first:end])
        features = np.zeros((end - first, extractor.output_shape[1]), np.float32)
        batches = view_batches(all_cores, rows, BATCH, view.draw)
        try:
            features[rows - first] = make_features(extract, batches, threads) if len(rows) else 0
        except tf.errors.OpError:
            if source.encoded and source.encoded.failures:  # what tf.data hides
                raise source.encoded.failures.pop() from None
            raise
        made += end - first
        return features

    def tell(done: int) -> None:
        if made:
            reporter.preparing(backbone.name, done, len(context.index), made)

    maker = Maker(make, feature_width(context, settings), len(context.index), tell, platform.node())
    limit_gb = max(_FEATURES_GB, settings.data.cache_limit_gb)
    _features[key] = open_features(context.run.store, view.id, maker, limit_gb, reporter.say, reporter.stopping)
    return _features[key]


def _cache(context: WorkerContext, data: Data, reporter: Reporter) -> Cache:
    """This node's cache, opened and verified once per worker."""
    key = (context.images.uri, context.index.digest, data.image_size, data.resize, data.exif, data.cache_limit_gb)
    if key not in _caches:
        _caches[key] = open_cache(context.index, context.images, data, reporter.say, reporter.stopping)
    return _caches[key]


def _encoded(context: WorkerContext, exif: str) -> Encoded:
    """The images as they lie in the store; a worker reads the shards' footers once."""
    key = (context.images.uri, context.index.digest, exif)
    if key not in _sources:
        _sources[key] = Encoded(context.index, context.images, exif)
    _sources[key].failures.clear()  # those of earlier trials
    return _sources[key]
