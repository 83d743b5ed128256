"""Exports: what other programs run says what predict says, of photographs as they come; the README's lines do too."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import boto3
import keras
import numpy as np
import pytest
import run_folders
import tensorflow as tf
from images import encoded, picture
from PIL import ExifTags, Image, ImageOps
from seaweedfs import Seaweedfs

import orchestrator
from orchestrator.data.image_files import admit
from orchestrator.data.indexing import build_index
from orchestrator.data.pipeline import SCALE, Source
from orchestrator.data.stream import Encoded, decode
from orchestrator.errors import BadInput
from orchestrator.export import Format, main
from orchestrator.runs.folder import versions
from orchestrator.runs.result import Exported
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store
from orchestrator.train import conversion
from orchestrator.train.conversion import convert, exif_orientation
from orchestrator.train.export import judged_file
from orchestrator.train.inference import classify
from orchestrator.train.model import small_cnn
from orchestrator.train.model_file import to_bytes
from orchestrator.train.zoo import se_resnet, small_convnext

README = (Path(orchestrator.__file__).parents[1] / "README.md").read_text()
SIZE = (24, 20)
NAMES = ("cat", "dog")


def photograph(number: int, orientation: int = 1, order: str = "II") -> bytes:
    """A JPEG of up to nine times the model's size, turned as EXIF says."""
    exif = Image.Exif()
    exif.endian = {"II": "<", "MM": ">"}[order]
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Camera", orientation
    pixels = picture(number, 30 + 37 * (number % 6), 40 + 31 * (number % 5))
    return encoded(pixels, "JPEG", exif=exif.tobytes(), quality=90)


def write_run(folder: Path, data: Path, model: keras.Model, threshold: float | None = None) -> Path:
    """A run folder with a winner: this model, and what it says of the validation images."""
    spec = load_spec(
        json.dumps(
            {"name": "pets", "data": {"uri": str(data), "image_size": SIZE}, "grid": {"dropout": [0]}},
        ),
        [],
    )
    index = build_index(open_store(str(data)), spec.data)
    exported = Exported(
        classes=list(index.classes),
        image_size=SIZE,
        resize="bilinear",
        scale=SCALE,
        **dict.fromkeys(("point_id", "trial_id", "weights", "index_digest"), "0"),
        values={},
        seed=0,
        epochs=1,
        epoch=1,
        metric="val_accuracy",
        metrics={"val_accuracy": 0.5},
        spec=spec.model_dump(mode="json"),
        versions=versions(),
        threshold=threshold,
    )
    run = run_folders.write_run(str(folder), {"dropout": [0.0]})
    run.store.write("models/best.keras", to_bytes(model))
    run.store.write("models/best.json", exported.model_dump_json().encode())
    rows = np.flatnonzero(index.validates())
    said = classify(str(folder), [str(data / index.paths[row]) for row in rows]).said
    source = Source(
        None, tf.constant(index.labels), spec.data, spec.augment, 0, 1, Encoded(index, open_store(str(data)))
    )
    validation = judged_file(index, source, rows, np.array([says for _, says in said]))
    run.write_model("best", to_bytes(model), validation, exported)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of many sizes, some turned; a PNG, and a TIFF, which TensorFlow does not read."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(100):
        path = folder / NAMES[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photograph(number, 1 + number // 2 % 8, "IM"[number % 2] * 2))
    for number in range(10):
        (folder / "cat" / f"{number}.png").write_bytes(encoded(picture(number, 60, 50)))
        (folder / "dog" / f"{number}.tif").write_bytes(encoded(picture(number, 60, 50), "TIFF"))
    return folder


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A winner that is sure of what it says, and says the second class from 0.37 on."""
    keras.utils.set_random_seed(1)
    model = small_cnn((*SIZE, 3), 2)
    model.layers[-1].set_weights([20 * each for each in model.layers[-1].get_weights()])
    return write_run(tmp_path_factory.mktemp("runs") / "pets", photographs, model, threshold=0.37)


@pytest.mark.parametrize("to", conversion.FORMATS)
def test_an_export_says_what_the_run_recorded(to: str, run: Path, tmp_path: Path) -> None:
    """Of every validation image, by the programs that run it; with the classes beside it."""
    done = convert(str(run), to, str(tmp_path / "export"))
    check = done.check
    assert check is not None
    assert check.images == check.compared == check.agree > 15
    assert check.largest < 1e-5
    assert check.accuracy == check.recorded_accuracy
    assert (check.converted > 0) == (to == "savedmodel")
    told = json.loads((tmp_path / "export" / "model.json").read_text())
    assert (told["classes"], told["threshold"], told["check"]["agree"]) == (list(NAMES), 0.37, check.agree)
    assert all((tmp_path / "export" / name).stat().st_size == size for name, size in done.files.items())


@pytest.mark.parametrize("to", ["tflite", "onnx"])
def test_a_model_of_three_classes_in_half_precision_computes_in_float32(to: str, tmp_path: Path) -> None:
    """With constants that are no weights, which tf2onnx would ask the user for, and gelu, which it does not know."""
    for number in range(60):
        path = tmp_path / "data" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number, 60, 50)))
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        image = keras.Input((*SIZE, 3))
        x = keras.layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.05, 0.06])(image)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 5, activation="gelu")(x))
        model = keras.Model(image, keras.layers.Dense(3, activation="softmax", dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    done = convert(str(write_run(tmp_path / "run", tmp_path / "data", model)), to, str(tmp_path / "export"))
    assert done.check is not None
    assert 0 < done.check.largest < 0.01
    assert done.check.compared == done.check.images > 5


@pytest.mark.slow
@pytest.mark.parametrize("network", [se_resnet, small_convnext])
@pytest.mark.parametrize("to", conversion.FORMATS)
def test_a_network_of_the_package_says_the_same_elsewhere(to: str, network: Any, photographs: Path, tmp_path: Path):
    """With moving averages that are not those of a start, depthwise convolutions and layer normalisation."""
    keras.utils.set_random_seed(1)
    model = network((*SIZE, 3), 2)
    for _ in range(20):
        model(np.random.default_rng(0).random((8, *SIZE, 3), np.float32) / 3, training=True)
    done = convert(str(write_run(tmp_path / "run", photographs, model)), to, str(tmp_path / "export"))
    assert done.check.images == done.check.agree > 15
    assert done.check.largest < 1e-4


@pytest.mark.parametrize("to", ["tflite", "onnx"])
def test_an_operation_that_a_format_does_not_know_is_named(to: str, photographs: Path, tmp_path: Path) -> None:
    """In one line, and nothing is written."""
    image = keras.Input((*SIZE, 3))
    x = keras.ops.erfinv(keras.layers.GlobalAveragePooling2D()(image) / 2)
    model = keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(x))
    winner = write_run(tmp_path / "run", photographs, model)
    with pytest.raises(BadInput, match=f"must have layers that {to} knows: .*Erfinv"):
        convert(str(winner), to, str(tmp_path / "export"))
    assert not (tmp_path / "export").exists()


def test_a_savedmodel_takes_files_and_images_of_any_size(run: Path, photographs: Path, tmp_path: Path) -> None:
    """Its class is the one that predict says."""
    convert(str(run), "savedmodel", str(tmp_path), check=False)
    model = tf.saved_model.load(tmp_path)
    paths = [str(photographs / name) for name in ("cat/10.jpg", "dog/11.jpg", "dog/27.jpg", "cat/3.png")]
    blobs = [Path(path).read_bytes() for path in paths]
    says = model.signatures["serving_default"](images=tf.constant(blobs))
    expected = predicted(run, paths)
    for probabilities, row in zip(says["probabilities"].numpy(), expected, strict=True):
        assert probabilities.tolist() == pytest.approx(list(row["probabilities"].values()), abs=1e-5)
    assert [name.decode() for name in says["class"].numpy()] == [row["class"] for row in expected]
    alone = model.signatures["pixels"](pixels=tf.io.decode_image(blobs[-1], channels=3)[None])["probabilities"]
    assert alone.numpy()[0] == pytest.approx(says["probabilities"].numpy()[-1], abs=1e-6)


def test_pillow_prepares_an_image_as_the_export_says(run: Path, photographs: Path, tmp_path: Path) -> None:
    """To one level of 255, whatever the size of the photograph: the line beside the model, as it stands there."""
    convert(str(run), "tflite", str(tmp_path), check=False)
    line = json.loads((tmp_path / "model.json").read_text())["inputs"][0]["prepare"][-1]
    for number in range(0, 60, 16):  # those that are not turned
        for path in (photographs / "cat" / f"{number}.jpg", photographs / "dog" / f"{number + 1}.jpg"):
            names = {"path": path, "Image": Image, "ImageOps": ImageOps, "np": np}
            exec(line.removeprefix("with Pillow: "), names)
            ours = decode(*admit(path.read_bytes(), "apply")[:2], SIZE, "bilinear").numpy()
            assert np.abs(names["pixels"].astype(int) - ours).max() <= 1


def predicted(run: Path, paths: list[str]) -> list[dict]:
    """What predict prints as JSON."""
    from orchestrator.display.predictions import as_rows

    done = classify(str(run), paths)
    return as_rows(done.said, done.facts)


@pytest.mark.parametrize("order", ["II", "MM"])
def test_photographs_are_turned_in_the_graph_too(order: str) -> None:
    """As the package reads them; whatever else the bytes are, as they are."""
    read = tf.function(exif_orientation, input_signature=[tf.TensorSpec((), tf.string)])
    for orientation in range(1, 9):
        blob = photograph(7, orientation, order)
        assert int(read(blob)) == admit(blob, "apply")[1] == orientation
        for end in range(0, 120, 7):
            assert int(read(blob[:end])) in (1, orientation)
    assert int(read(photograph(7, 9, order))) == 1
    random = np.random.default_rng(0)
    for size in (0, 1, 30, 3000):
        assert int(read(random.bytes(size))) == 1
        assert 1 <= int(read(photograph(3, 6, order)[:30] + random.bytes(size))) <= 8


def test_int8_takes_pixels_as_they_are_and_tells_its_loss(run: Path, tmp_path: Path) -> None:
    """A byte for each weight; 8 bits in, and a line that says what they cost."""
    weights = keras.saving.load_model(run / "models" / "best.keras", compile=False).count_params()
    done = orchestrator.open_run(run).best.export("tflite", str(tmp_path / "int8"), int8=True)
    assert done.files["model.tflite"] < 1.3 * weights  # bytes
    taken = tf.lite.Interpreter(str(tmp_path / "int8" / "model.tflite")).get_input_details()[0]
    assert (taken["dtype"], taken["quantization"]) == (np.uint8, (1.0, 0))
    assert done.check is not None
    assert done.check.agree > 0.8 * done.check.compared
    assert re.search(r"^accuracy on them 0\.\d{4}, recorded 0\.\d{4}: (nothing lost|\d+\.\d points)", done.lines[2])


def test_the_command_prints_what_the_comparison_came_to(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Into a folder with the name of the run, and nothing else is said."""
    monkeypatch.chdir(tmp_path)
    main(str(run), Format.tflite)
    printed = capfd.readouterr()
    files, same, accuracy = printed.out.splitlines()
    assert re.fullmatch(r"\./pets-tflite: 0\.\d\d MB; model\.json says how to use it", files)
    assert re.fullmatch(r"on \d+ validation images: the same class as recorded for all, .* by at most \d.*e-0\d", same)
    assert accuracy.endswith("nothing lost")
    assert printed.err == ""


def test_another_model_is_not_taken_for_the_run_s(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What differs from what is recorded, by more than rounding, is exit status 1."""
    other = shutil.copytree(run, tmp_path / "other")
    (other / "models" / "best.keras").write_bytes(to_bytes(small_cnn((*SIZE, 3), 2)))
    with pytest.raises(SystemExit) as ended:
        main(str(other), Format.tflite, str(tmp_path / "export"))
    assert ended.value.code == 1
    assert "have the images changed since?" in capfd.readouterr().err


def test_runs_and_exports_may_be_in_buckets(
    run: Path, seaweedfs: Seaweedfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files there as in a folder."""
    for name, value in seaweedfs.env().items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="exports")
    bucket = open_store("s3://exports/pets")
    for name in ("best.keras", "best.json", "best-validation.parquet"):
        bucket.write(f"models/{name}", (run / "models" / name).read_bytes())
    done = convert("s3://exports/pets", "onnx", "s3://exports/onnx")
    assert done.check is not None
    assert done.check.agree == done.check.images
    assert {o.key: o.size for o in open_store("s3://exports/onnx").list()} == done.files


def test_what_cannot_be_exported_is_one_line(
    run: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No winner, no images, no predictions, no library, layers that the format does not know."""
    own = shutil.copytree(run, tmp_path / "own")
    facts = (own / "models" / "best.json").read_text()
    (own / "models" / "best.json").write_text(facts.replace(str(photographs), "./gone"))
    with pytest.raises(SystemExit) as ended:
        main(str(own), Format.tflite)
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert re.fullmatch(r"error: the images of the run must be at \./gone .*--data.*--no-check\n", said)
    assert convert(str(own), "tflite", str(tmp_path / "a"), data=str(photographs)).check
    assert convert(str(own), "tflite", str(tmp_path / "b"), check=False).lines[1:] == ["not compared with anything"]
    (own / "models" / "best-validation.parquet").unlink()
    with pytest.raises(BadInput, match=r"must hold best-validation\.parquet to compare with"):
        convert(str(own), "tflite", data=str(photographs))
    (own / "models" / "best.keras").unlink()
    with pytest.raises(
        BadInput, match=r"must hold models/best\.keras and models/best\.json, and has no models/best\.keras"
    ):
        convert(str(own), "tflite")
    with pytest.raises(BadInput, match="int8 must go with tflite, got onnx"):
        convert(str(run), "onnx", int8=True)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(
        BadInput, match=r"onnx takes tf2onnx, which is not installed: pip install 'batch-orchestrator\[export\]'"
    ):
        convert(str(run), "onnx")


def test_the_lines_of_the_readme_say_what_predict_says(
    run: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the package and without it, of a photograph much larger than the model's images."""
    (tmp_path / "runs").mkdir()
    os.symlink(run, tmp_path / "runs" / "pets")
    (tmp_path / "new").mkdir()
    Image.open(photographs / "dog" / "47.jpg").save(tmp_path / "photo.jpg", quality=90)
    shutil.copy(photographs / "dog" / "47.jpg", tmp_path / "new")
    shutil.copy(photographs / "cat" / "3.png", tmp_path / "new")
    expected = predicted(run, [str(tmp_path / "photo.jpg"), str(tmp_path / "new")])
    second = {Path(row["path"]).name: row["probabilities"]["dog"] for row in expected}
    model = keras.saving.load_model(run / "models" / "best.keras", compile=False)
    naive = keras.utils.img_to_array(keras.utils.load_img(tmp_path / "photo.jpg", target_size=SIZE)) / 255
    assert abs(model(naive[None]).numpy().item() - second["photo.jpg"]) > 0.01
    convert(str(run), "savedmodel", str(tmp_path / "pets-savedmodel"), check=False)
    section = README[README.index("### In a program of your own") :]
    blocks = re.findall(r"```python\n(.*?)```", section[: section.index("\n## ")], re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    told = (("3.png", "47.jpg"), ("photo.jpg",), ("photo.jpg",))
    for block, names in zip(blocks, told, strict=True):
        exec(block, {})
        said = [float(number) for number in re.findall(r"\d\.\d{4,}(?:e-\d+)?", capsys.readouterr().out)]
        for name in names:
            assert min(abs(number - second[name]) for number in said) < 1e-6, block
