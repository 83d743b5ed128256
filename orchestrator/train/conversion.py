"""Conversion: the winner's model in a form that other programs run, checked on the images that validated it.

An export is a folder: the model, and model.json, which says how an image is prepared and what comes out. What the graph
can do is in it: all of them scale, and give probabilities in the order of the classes; a SavedModel decodes and resizes
too, as training did.
"""

import importlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf
from pydantic import ValidationError

from orchestrator import machine
from orchestrator.data.image_files import Unreadable, admit
from orchestrator.data.indexing import build_index
from orchestrator.data.listing import below
from orchestrator.data.stream import Encoded, decode, decoded, fit
from orchestrator.errors import BadInput
from orchestrator.runs.folder import read_parquet, versions
from orchestrator.runs.result import Exported
from orchestrator.runs.threshold import HALF
from orchestrator.scratch import scratch
from orchestrator.spec.sections import Data
from orchestrator.store import Missing, open_store
from orchestrator.terminal import without_stderr
from orchestrator.train.inference import read_model
from orchestrator.train.model_file import first_line, load
from orchestrator.words import plural

FORMATS = ("savedmodel", "tflite", "onnx")
CLOSE = 0.05  # a probability that differs by more is another model's, or another image's; half precision stays below
_NEEDED = {"onnx": ("onnx", "tf2onnx", "onnxruntime")}
_OPSET = 18
_REPRESENTATIVE = 200  # training images that show int8 which values to expect
_BATCH = 32
_TOLD = "model.json"
_ELSEWHERE = "say where they are with --data, or export without comparing with --no-check"
_PIXELS, _IMAGES, _SAYS = "pixels", "images", "probabilities"
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_BYTES = 2**16 + 64  # of a JPEG, in which its EXIF begins
_ORIENTATION = 0x0112

_HOW = {
    "bilinear": "bilinear and antialiased, as tf.image.resize(..., antialias=True) does",
    "area": "by area, as tf.image.resize(..., 'area') does",
    "nearest": "to the nearest pixel, as tf.image.resize(..., 'nearest') does",
}
_SMALLER = "let the decoder scale a JPEG down to 1/8, 1/4 or 1/2, as far as it stays as large as needed, as in training"

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Check:
    """What an export says of the validation images, beside what is recorded of them.

    Attributes:
        images: How many there are. compared: how many of them could be read.
        agree: For how many both say the same class, by the threshold of the model. largest: the largest difference of
            a probability.
        accuracy, recorded_accuracy: How often the export and the recorded predictions are right.
        converted: How many were made BMPs first, as TensorFlow does not read their kind.
    """

    images: int
    compared: int
    agree: int
    largest: float
    accuracy: float
    recorded_accuracy: float
    converted: int = 0


@dataclass(frozen=True)
class Converted:
    """An export.

    Attributes:
        uri: The folder it was written to. files: name -> bytes.
        check: None where nothing was compared.
    """

    uri: str
    format: str
    files: dict[str, int]
    check: Check | None

    @property
    def lines(self) -> list[str]:
        """What a person should know of it."""
        whole = f"{self.uri}: {sum(self.files.values()) / 1e6:,.2f} MB; {_TOLD} says how to use it"
        return [whole, *(_say(self.check) if self.check else ["not compared with anything"])]

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def convert(
    model: str, to: str, output: str | None = None, int8: bool = False, data: str | None = None, check: bool = True
) -> Converted:
    """Write the model to the folder `output` in another format, and compare what it says there with what it said.

    model: a run folder, or a .keras file beside its .json and its -validation.parquet. to: one of FORMATS.
    output: a folder or bucket; None: a folder with the name of the run and the format, in the current one.
    int8: whole numbers instead of floats, only for tflite. data: where the images lie, if not where they were.
    check: False: compare nothing, and read no images, but for int8. A refitted model is never compared, as no image
    validated it. Raises BadInput.
    """
    if to not in FORMATS:
        raise BadInput(f"the format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {to}")
    if int8 and to != "tflite":
        raise BadInput(f"int8 must go with tflite, got {to}: leave it out, or export to tflite")
    _require(to)
    keras_file, facts, name = read_model(model)
    check = check and facts.refit is None
    images = _Images.of(facts, name, data) if check or int8 else None
    network = _Network(load(keras_file, name, facts.model), facts)
    if to != "savedmodel":
        _in_float32(network.model)
    uri = output or f"./{facts.spec.get('name') or 'model'}-{to}{'-int8' * int8}"
    target = open_store(uri, create=True)
    target.check_writable()
    with scratch() as folder:
        made = folder / "made"
        made.mkdir()
        with without_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the converters and interpreters say is of no use to a person
            learnt_from = images.representative() if images and int8 else None
            try:
                run = _WRITERS[to](network, made, learnt_from)
                if to != "savedmodel":
                    run(np.zeros((1, *facts.image_size, 3), np.uint8))
            except Exception as error:  # no list of what converters raise for what they do not know is complete
                raise BadInput(f"{name} must have layers that {to} knows: {_why(error, folder)}") from error
            checked = images.compare(run, encoded=to == "savedmodel") if images and check else None
        (made / _TOLD).write_text(json.dumps(_describe(network, to, int8, checked), indent=1))
        files = {
            path.relative_to(made).as_posix(): path.read_bytes() for path in sorted(made.rglob("*")) if path.is_file()
        }
        for key, blob in files.items():
            target.write(key, blob)
    return Converted(uri, to, {key: len(blob) for key, blob in files.items()}, checked)


def _require(to: str) -> None:
    """Raise BadInput where a library is missing that writes or runs this format."""
    for module in _NEEDED.get(to, ()):
        try:
            with without_stderr():
                importlib.import_module(module)
        except ImportError:
            raise BadInput(
                f"{to} takes {module}, which is not installed: pip install 'batch-orchestrator[export]'"
            ) from None


def _why(error: Exception, folder: Path) -> str:
    """The operation that a converter names, or the first line of what it says, without names of temporary files."""
    if named := re.search(r'fused\["(\w+):"', str(error)):
        return f"{named[1]} is none of its operations"
    return re.sub(rf"\S*{re.escape(folder.parent.name)}\S*", "it", first_line(error))[:300]


def _in_float32(model: keras.Model) -> None:
    """Let a model that was trained in half precision compute in float32: its weights are, and phones know no other."""
    for layer in model._flatten_layers():
        layer.dtype_policy = "float32"


def _say(check: Check) -> list[str]:
    """What a comparison came to, in lines."""
    of = plural(check.compared, "validation image")
    gone = f"; {check.images - check.compared:,} more are not there" if check.compared < check.images else ""
    same = "all" if check.agree == check.compared else f"{check.agree:,}"
    loss = round((check.recorded_accuracy - check.accuracy) * check.compared)
    points = f"{100 * abs(loss) / check.compared:.1f} points {'lost' if loss > 0 else 'gained'}"
    lost = f"{points}, {plural(abs(loss), 'image')}" if loss else "nothing lost"
    lines = [
        f"on {of}: the same class as recorded for {same}, probabilities differ by at most {check.largest:.2g}{gone}",
        f"accuracy on them {check.accuracy:.4f}, recorded {check.recorded_accuracy:.4f}: {lost}",
    ]
    if check.converted:
        lines.append(f"{plural(check.converted, 'image')} had to be converted first: neither JPEG, PNG nor opaque WebP")
    return lines


class _Network:
    """A model with all that stands before and after it: from pixels, or encoded images, to probabilities of classes."""

    def __init__(self, model: keras.Model, facts: Exported) -> None:
        self.model, self.facts = model, facts
        self.exif = str(facts.spec.get("data", {}).get("exif", "ignore"))  # as predict has it

    @property
    def threshold(self) -> float:
        return HALF if self.facts.threshold is None else self.facts.threshold

    def says(self, pixels: tf.Tensor) -> tf.Tensor:
        """(batch, height, width, 3) from 0 to 255 -> (batch, classes) float32."""
        out = tf.cast(self.model(tf.cast(pixels, tf.float32) * self.facts.scale, training=False), tf.float32)
        return tf.concat([1 - out, out], 1) if len(self.facts.classes) == 2 else out

    def answer(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Probabilities, and the class that predict says."""
        says = self.says(pixels)
        two = len(self.facts.classes) == 2
        which = tf.cast(says[:, 1] > self.threshold, tf.int32) if two else tf.argmax(says, 1, tf.int32)
        return {_SAYS: says, "class": tf.gather(tf.constant(self.facts.classes), which)}

    def of_encoded(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """(batch,) string: encoded images."""
        size, resize = self.facts.image_size, self.facts.resize

        def one(blob: tf.Tensor) -> tf.Tensor:
            return decode(blob, exif_orientation(blob) if self.exif == "apply" else 1, size, resize)

        return self.answer(tf.map_fn(one, images, fn_output_signature=tf.TensorSpec((*size, 3), tf.uint8)))

    def of_pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """(batch, any height, any width, 3) uint8."""
        return self.answer(fit(pixels, self.facts.image_size, self.facts.resize))


def exif_orientation(blob: tf.Tensor) -> tf.Tensor:
    """How a JPEG is turned, as its EXIF says: scalar string -> scalar int64, 1 to 8. 1 where nothing says it."""
    data = tf.io.decode_raw(tf.strings.substr(blob, 0, _EXIF_BYTES), tf.uint8)
    last = tf.size(data)
    data = tf.concat([tf.cast(data, tf.int32), tf.zeros(32, tf.int32)], 0)

    def big(at: tf.Tensor) -> tf.Tensor:
        return 256 * data[at] + data[at + 1]

    def is_exif(at: tf.Tensor) -> tf.Tensor:
        return (big(at) == 0xFFE1) & tf.reduce_all(data[at + 4 : at + 10] == [*b"Exif", 0, 0])

    def goes_on(at: tf.Tensor) -> tf.Tensor:
        return (at < last) & (data[at] == 0xFF) & (data[at + 1] != 0xDA) & ~is_exif(at)  # 0xDA: the pixels begin

    at = tf.while_loop(goes_on, lambda at: [tf.minimum(at + 2 + tf.maximum(big(at + 2), 2), last)], [tf.constant(2)])[0]
    start = at + 10
    little = data[tf.minimum(start, last)] == ord("I")

    def number(at: tf.Tensor, size: int) -> tf.Tensor:
        bytes_ = tf.gather(data, tf.clip_by_value(at, 0, last)[..., None] + tf.range(size))
        return tf.reduce_sum(tf.where(little, bytes_, bytes_[..., ::-1]) * 256 ** tf.range(size), -1)

    directory = start + number(start + 4, 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2))
    found = tf.reduce_max(tf.where(number(entries, 2) == _ORIENTATION, number(entries + 8, 2), 0))
    is_told = (tf.strings.substr(blob, 0, 3) == b"\xff\xd8\xff") & is_exif(tf.minimum(at, last))
    return tf.cast(tf.where(is_told & (found >= 1) & (found <= 8), found, 1), tf.int64)


@dataclass(frozen=True)
class _Images:
    """The images of a run that its winner was validated on, and some that it was trained on.

    Attributes:
        recorded: A row for each that is there still: its label and probabilities. total: how many there were.
        rows: (n,) which images of the index these are. training_rows: the others.
    """

    facts: Exported
    encoded: Encoded
    exif: str
    recorded: pa.Table
    total: int
    rows: np.ndarray
    training_rows: np.ndarray

    @classmethod
    def of(cls, facts: Exported, name: str, uri: str | None) -> "_Images":
        """Raises BadInput where the predictions or the images are gone."""
        recorded = _recorded(name)
        data = _data_of(facts, uri)
        try:
            store = open_store(data.uri)
            folder, models = os.path.split(os.path.dirname(name))
            runs = (
                below(os.path.dirname(folder), store.uri) if models == "models" else None
            )  # they may lie among images
            index = build_index(store, data, runs or "")
        except BadInput as error:
            raise BadInput(
                f"the images of the run must be at {data.uri} to compare with what it said of them: {error}; "
                f"{_ELSEWHERE}"
            ) from error
        place = {path: row for row, path in enumerate(index.paths)}
        there = [i for i, path in enumerate(recorded["path"].to_pylist()) if path in place]
        if not there:
            raise BadInput(
                f"{data.uri} must hold the images that validated, such as {recorded['path'][0].as_py()}, and has none "
                f"of them: {_ELSEWHERE}"
            )
        rows = np.array([place[path] for path in recorded["path"].take(there).to_pylist()], np.int64)
        trains = index.trains(facts.fold) if facts.fold < index.folds else ~index.tests
        trains[rows] = False
        return cls(
            facts,
            Encoded(index, store, data.exif),
            data.exif,
            recorded.take(there),
            len(recorded),
            rows,
            np.flatnonzero(trains),
        )

    def representative(self) -> np.ndarray:
        """(n, height, width, 3) uint8: training images, spread over all of them and so over the classes."""
        chosen = np.linspace(0, len(self.training_rows) - 1, min(_REPRESENTATIVE, len(self.training_rows)))
        pixels = [what for _, what in self._pixels(self.training_rows[chosen.round().astype(int)])]
        if not pixels:
            raise BadInput(f"int8 must have training images to measure, got none that can be read: {_ELSEWHERE}")
        return np.concatenate(pixels)

    def compare(self, run: Run, encoded: bool) -> Check:
        """Run the export on the validation images. encoded: give it files, and not pixels. Raises BadInput."""
        recorded = np.array(self.recorded["probabilities"].to_pylist(), np.float32)
        labels = np.array([self.facts.classes.index(label) for label in self.recorded["label"].to_pylist()])
        says, converted = np.full_like(recorded, np.nan), 0
        if encoded:
            for start in range(0, len(self.rows), _BATCH):
                positions = np.arange(start, min(start + _BATCH, len(self.rows)))
                files = [*map(self._as_served, self.encoded.blobs(self.rows[positions]))]
                readable = [i for i, (blob, _) in enumerate(files) if blob]
                if readable:
                    says[positions[readable]] = run(np.array([files[i][0] for i in readable], object))
                converted += sum(made for _, made in files)
        else:
            for positions, pixels in self._pixels(self.rows):
                says[positions] = run(pixels)
        read = ~np.isnan(says).any(1)
        if not read.any():
            raise BadInput(f"none of the {len(self.rows):,} validation images can be read: {_ELSEWHERE}")
        says, recorded, labels = says[read], recorded[read], labels[read]
        ours, theirs = self._classes(says), self._classes(recorded)
        return Check(
            images=self.total,
            compared=len(says),
            agree=int((ours == theirs).sum()),
            largest=float(np.abs(says - recorded).max()),
            accuracy=float((ours == labels).mean()),
            recorded_accuracy=float((theirs == labels).mean()),
            converted=converted,
        )

    def _pixels(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions in `rows`, and the pixels of these, as the model takes them."""
        facts = self.facts
        chosen = _Chosen(self.encoded, rows)
        for positions, what in decoded(chosen, len(rows), facts.image_size, facts.resize, machine.cpus(), self.exif):
            if isinstance(positions, np.ndarray) and isinstance(what, np.ndarray):
                yield positions, what

    def _as_served(self, blob: bytes) -> tuple[bytes, bool]:
        """What a SavedModel is given of an image, nothing where it cannot be read; whether that was converted."""
        try:
            admitted = admit(blob, self.exif).blob
        except Unreadable:
            return b"", False
        taken = blob.startswith(_PNG) or admitted is blob
        return (blob, False) if taken else (admitted, True)

    def _classes(self, probabilities: np.ndarray) -> np.ndarray:
        """(n,) position of the class that predict says."""
        threshold = HALF if self.facts.threshold is None else self.facts.threshold
        return probabilities[:, 1] > threshold if probabilities.shape[1] == 2 else probabilities.argmax(1)


@dataclass(frozen=True)
class _Chosen:
    """Some images of an index, as data.stream reads them."""

    encoded: Encoded
    rows: np.ndarray

    def blobs(self, positions: np.ndarray) -> Iterator[bytes]:
        return self.encoded.blobs(self.rows[positions])


def _recorded(name: str) -> pa.Table:
    """What the run recorded of its validation images. Raises BadInput."""
    folder, file = os.path.split(name)
    key = f"{file.removesuffix('.keras')}-validation.parquet"
    try:
        return read_parquet(open_store(folder).read(key)).select(["path", "label", "probabilities"])
    except Missing:
        raise BadInput(f"{folder} must hold {key} to compare with: copy it too, or say --no-check") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BadInput(f"{folder}/{key} must be what a grid wrote: {first_line(error)}; or say --no-check") from None


def _data_of(facts: Exported, uri: str | None) -> Data:
    """The data of the spec, as the run read them. uri: where they lie now."""
    data = dict(facts.spec.get("data", {}))
    older = {} if "rule" in data else {"rule": 1, "exif": "ignore"}  # as version 0.1.0 wrote it
    try:
        return Data.model_validate({**data, **older, **({"uri": uri} if uri else {}), "on_bad_image": "skip"})
    except ValidationError as error:
        raise BadInput(f"the spec beside the model must have valid data: {error.errors()[0]['msg']}") from None


def _describe(network: _Network, to: str, int8: bool, check: Check | None) -> dict[str, Any]:
    """What stands beside the model."""
    facts, two = network.facts, len(network.facts.classes) == 2
    height, width = facts.image_size
    pixels = {"name": _PIXELS, "dtype": "uint8", "shape": [None, height, width, 3]}
    turn = ["turn it as its EXIF orientation says"] if network.exif == "apply" else []
    smaller = [] if facts.resize == "nearest" else [_SMALLER]
    prepare = [
        *smaller,
        "decode it to RGB of 8 bits",
        *turn,
        f"resize it to height {height} and width {width}, whatever its proportions, {_HOW[facts.resize]}",
        "round to whole numbers from 0 to 255; the model scales them itself",
    ]
    if facts.resize == "bilinear":
        upright = "ImageOps.exif_transpose(image)" if turn else "image"
        prepare.append(
            f"with Pillow: image = Image.open(path); image.draft('RGB', ({width}, {height})); pixels = np.asarray("
            f"{upright}.convert('RGB').resize(({width}, {height}), Image.Resampling.BILINEAR))"
        )
    files = {"name": _IMAGES, "dtype": "string", "shape": [None], "signature": "serving_default"}
    any_size = {**pixels, "shape": [None, None, None, 3], "signature": _PIXELS}
    inputs: list[dict[str, Any]] = [
        {**files, "prepare": ["give the bytes of JPEG, PNG or opaque WebP files as they are"]},
        {**any_size, "prepare": [*turn, "decode it to RGB of 8 bits", "any size, one size in a batch"]},
    ]
    return {
        "format": to,
        "int8": int8,
        "classes": facts.classes,
        "threshold": network.threshold if two else None,
        "class": "the second where its probability is above the threshold, else the first"
        if two
        else "the most probable",
        "inputs": inputs if to == "savedmodel" else [{**pixels, "prepare": prepare}],
        "output": {"name": _SAYS, "dtype": "float32", "shape": [None, len(facts.classes)], "order": "as classes"},
        "check": asdict(check) if check else None,
        "model": facts.model_dump(
            mode="json", include={"point_id", "trial_id", "values", "seed", "epoch", "weights", "metric", "metrics"}
        ),
        "versions": versions(),
    }


def _write_savedmodel(network: _Network, folder: Path, learnt_from: np.ndarray | None) -> Run:
    archive = keras.export.ExportArchive()
    archive.track(network.model)
    archive.add_endpoint("serve", network.of_encoded, [tf.TensorSpec((None,), tf.string, name=_IMAGES)])
    pixels = tf.TensorSpec((None, None, None, 3), tf.uint8, name=_PIXELS)
    archive.add_endpoint(_PIXELS, network.of_pixels, [pixels])
    archive.write_out(folder, verbose=False)
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    return lambda blobs: serve(**{_IMAGES: tf.constant(blobs)})[_SAYS].numpy()


def _write_tflite(network: _Network, folder: Path, learnt_from: np.ndarray | None) -> Run:
    size = (None, *network.facts.image_size, 3)

    def says(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        if learnt_from is not None:  # so that its whole numbers are the pixels' own
            pixels = tf.quantization.fake_quant_with_min_max_args(pixels, 0, 255)
        return {_SAYS: network.says(pixels)}

    archive = keras.export.ExportArchive()
    archive.track(network.model)
    dtype = tf.uint8 if learnt_from is None else tf.float32
    archive.add_endpoint("serve", says, [tf.TensorSpec(size, dtype, name=_PIXELS)])
    with scratch() as between:
        archive.write_out(between / "saved", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(between / "saved"), signature_keys=["serving_default"])
        if learnt_from is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: (
                {_PIXELS: each[None]} for each in learnt_from.astype(np.float32)
            )
            converter.inference_input_type = tf.uint8
        (folder / "model.tflite").write_bytes(converter.convert())
    runner = tf.lite.Interpreter(str(folder / "model.tflite"), num_threads=machine.cpus()).get_signature_runner()
    return lambda pixels: runner(**{_PIXELS: pixels})[_SAYS]


def _erfc(graph: Any, node: Any, name: str, args: Any) -> None:
    """1 - Erf: tf2onnx knows no Erfc, of which Keras' gelu is made."""
    erf = graph.make_node("Erf", node.input, shapes=node.output_shapes, dtypes=node.output_dtypes)
    one = graph.make_const(f"{name}_one", np.float32(1))
    node.type, node.domain = "Sub", ""
    graph.replace_inputs(node, [one.output[0], erf.output[0]])


def _write_onnx(network: _Network, folder: Path, learnt_from: np.ndarray | None) -> Run:
    import onnx
    import onnxruntime
    import tf2onnx

    pixels = tf.TensorSpec((None, *network.facts.image_size, 3), tf.uint8, name=_PIXELS)
    says = tf.function(lambda pixels: {_SAYS: network.says(pixels)}, input_signature=[pixels])
    made, _ = tf2onnx.convert.from_function(says, [pixels], opset=_OPSET, custom_op_handlers={"Erfc": (_erfc, [])})
    constants = {inner.name: outer for outer, inner in says.get_concrete_function().graph.captures}
    for taken in [each for each in made.graph.input if each.name in constants]:  # tf2onnx takes them for inputs
        made.graph.input.remove(taken)
        made.graph.initializer.append(onnx.numpy_helper.from_array(constants[taken.name].numpy(), taken.name))
    path = folder / "model.onnx"
    onnx.save(made, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([_SAYS], {_PIXELS: pixels})[0]


_WRITERS: dict[str, Callable[[_Network, Path, np.ndarray | None], Run]] = {
    "savedmodel": _write_savedmodel,
    "tflite": _write_tflite,
    "onnx": _write_onnx,
}
