"""predict: the exported model says of an image what it said in training; bad images are named; custom layers load."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from images import fill, picture
from PIL import ExifTags, Image
from test_trial import new_worker

import orchestrator
from orchestrator.board.estimates import wilson
from orchestrator.display.predictions import Format, as_rows, predictions_tree, print_predictions
from orchestrator.errors import BadInput
from orchestrator.runs.result import Exported, Threshold
from orchestrator.store import open_store
from orchestrator.train.inference import find_labelled, find_pictures, read_model

SAMPLE = Path(orchestrator.__file__).parent / "data" / "sample" / "shirts" / "train.parquet"


def predict(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m orchestrator.predict` as a user starts it."""
    command = [sys.executable, "-m", "orchestrator.predict", *args]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def pictures(shirts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that validated in the run, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    wanted = set(pq.read_table(shirts / "models" / "best-validation.parquet")["path"].to_pylist())
    rows = (row["image"] for row in pq.read_table(SAMPLE).to_pylist())
    fill(open_store(str(folder)), {image["path"]: image["bytes"] for image in rows if image["path"] in wanted})
    return folder


def test_the_exported_model_says_what_it_said_in_training(shirts: Path, pictures: Path) -> None:
    """For every validation image the recorded probabilities, and so the accuracy on the board."""
    done = predict(str(shirts), str(pictures), "--json", "--labelled", cwd=shirts)
    assert done.returncode == 0, done.stderr
    says = {row["path"].removeprefix(f"{pictures}/"): row for row in json.loads(done.stdout)["images"]}
    recorded = pq.read_table(shirts / "models" / "best-validation.parquet").to_pylist()
    assert set(says) == {row["path"] for row in recorded}
    for row in recorded:
        found = says[row["path"]]
        assert (found["class"], found["label"]) == (row["predicted"], row["label"])
        assert list(found["probabilities"].values()) == pytest.approx(row["probabilities"], abs=1e-6)
        assert found["probability"] == max(found["probabilities"].values())
    right = np.mean([row["label"] == row["predicted"] for row in recorded])
    low, high = wilson(right * len(recorded), len(recorded))
    figures = json.loads(done.stdout)["labelled"]["figures"]["accuracy"]
    assert [figures[name] for name in ("value", "low", "high")] == pytest.approx([right, low, high])
    board = pq.read_table(shirts / "leaderboard.parquet").slice(0, 1).to_pylist()[0]
    facts = json.loads((shirts / "models" / "best.json").read_text())
    assert right == pytest.approx(board["val_accuracy"])
    assert facts["point_id"] == board["point_id"]
    assert facts["metrics"]["val_loss"] == board["val_loss"]
    assert list(says[recorded[0]["path"]]["probabilities"]) == facts["classes"] == ["shirt", "t-shirt"]


def test_the_worst_classified_images_can_be_looked_at(shirts: Path) -> None:
    """The 24 with the least probability of their own class have a thumbnail at the trained size, the others none."""
    rows = pq.read_table(shirts / "models" / "best-validation.parquet").to_pylist()
    rows.sort(key=lambda row: row["probabilities"][["shirt", "t-shirt"].index(row["label"])])
    assert [row["thumbnail"] is not None for row in rows] == [True] * 24 + [False] * (len(rows) - 24)
    assert Image.open(io.BytesIO(rows[0]["thumbnail"])).size == (28, 28)


def test_unreadable_images_are_named_and_the_others_printed(shirts: Path, pictures: Path, tmp_path: Path) -> None:
    """Files, folders and what is missing or broken; exit status 1. The model travels as two files."""
    for name in ("best.keras", "best.json"):
        shutil.copy(shirts / "models" / name, tmp_path)
    for path in ("deep/er/a.png", "deep/b.PNG", "c"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(pictures.rglob("*.png")), tmp_path / path)
    (tmp_path / "deep" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    (tmp_path / "deep" / "empty.gif").touch()
    (tmp_path / "deep" / "notes.txt").write_text("no image, and not asked for by name")
    (tmp_path / "none").mkdir()
    done = predict("best.keras", "deep", "c", "none", "lost.png", "best.json", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["path"] for row in rows] == ["deep/b.PNG", "deep/er/a.png", "c"]
    assert len({(row["class"], row["probability"]) for row in rows}) == 1
    note, *errors = done.stderr.splitlines()
    assert note == "deep: 1 file left out, not an image by name: notes.txt"
    lines = dict(line.removeprefix("error: ").split(": ", 1) for line in errors)
    assert set(lines) == {"deep/broken.jpg", "deep/empty.gif", "none", "lost.png", "best.json"}
    assert lines["lost.png"] == "there is no such file or folder"
    assert lines["none"].startswith("holds no image (.jpg, ")
    assert lines["best.json"].startswith("not a JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF, HEIC or PPM image: it begins ")


def test_the_threshold_of_the_model_decides_and_is_told(shirts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In JSON beside each image; below a table, and beside CSV, where it is not one half; older models have none."""
    facts = Exported.model_validate_json((shirts / "models" / "best.json").read_text())
    why = Threshold(metric="val_accuracy", at_half=0.8, at_threshold=0.85, images=220)
    lower = facts.model_copy(update={"threshold": 0.37, "threshold_chosen": why})
    found = [("a.png", np.array([0.6, 0.4], np.float32)), ("b.png", np.array([0.64, 0.36], np.float32))]
    for facts_of, says, threshold in ((lower, ["t-shirt", "shirt"], 0.37), (facts, ["shirt", "shirt"], 0.5)):
        facts_of = facts_of if threshold != 0.5 else facts_of.model_copy(update={"threshold": None})
        rows = as_rows(found, facts_of)
        assert [(row["class"], row["threshold"]) for row in rows] == [(name, threshold) for name in says]
        print_predictions(found, facts_of, Format.csv)
        printed = capsys.readouterr()
        assert [row["class"] for row in csv.DictReader(io.StringIO(printed.out))] == says
        print_predictions(found, facts_of, Format.table)
        told = "t-shirt is said where its probability is above 0.37, not above 0.5: on the 220 validation images"
        for text in (printed.err, capsys.readouterr().out):
            assert (told in text) == (threshold == 0.37)


def test_odd_names_are_left_out_and_said(tmp_path: Path) -> None:
    """Those of images are failures; the rest of the folder is read, and what is not an image is counted."""
    for name in ("a.png", "b\\c.png", "d\x1b.png", "e.txt", "f.csv", "g.md", "h.json", "i\n.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub\r").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / "sub\r" / "lost.png")
    found = find_pictures([str(tmp_path)])
    assert [picture.key for picture in found.pictures] == ["a.png"]
    odd = {f"{tmp_path}/{name}" for name in ("b\\c.png", "d\x1b.png", "sub\r/")}
    assert odd == set(found.failures)
    assert found.notes == [f"{tmp_path}: 5 files left out, not an image by name: e.txt, f.csv, g.md and 2 more"]


def test_a_labelled_folder_has_the_layout_of_training_data(pictures: Path, tmp_path: Path) -> None:
    """What the model cannot know is left out, and said; where nothing else is there, it is refused."""
    shutil.copytree(pictures, tmp_path / "own")
    (tmp_path / "own" / "sock").mkdir()
    shutil.copy(next(pictures.rglob("*.png")), tmp_path / "own" / "sock" / "s.png")
    (tmp_path / "own" / "shirt" / "empty.png").touch()
    found = find_labelled([str(tmp_path / "own")], ["shirt", "t-shirt"])
    assert {(picture.key.split("/")[0], picture.label) for picture in found.pictures} == {
        ("shirt", "shirt"),
        ("t-shirt", "t-shirt"),
    }
    assert [*found.failures] == [f"{tmp_path}/own/shirt/empty.png"]
    assert found.notes == [f"{tmp_path}/own: 1 file left out, of classes that the model does not know: sock/s.png"]
    with pytest.raises(
        BadInput, match=r"must have images of the model's classes \(cat, dog\), got shirt, sock, t-shirt"
    ):
        find_labelled([str(tmp_path / "own")], ["cat", "dog"])


def test_labels_stand_beside_what_is_said(shirts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In CSV and JSON; how often it was right is on stderr then, with the metric of the run."""
    facts = Exported.model_validate_json((shirts / "models" / "best.json").read_text())
    facts = facts.model_copy(update={"metric": "val_f1", "threshold": None})
    found = [(f"{i}.png", np.array([1 - p, p], np.float32)) for i, p in enumerate([0.1, 0.9, 0.8, 0.2])]
    labels = ["shirt", "t-shirt", "t-shirt", "t-shirt"]
    print_predictions(found, facts, Format.csv, labels)
    printed = capsys.readouterr()
    for rows in (predictions_tree(found, facts, labels)["images"], [*csv.DictReader(io.StringIO(printed.out))]):
        assert [row["label"] for row in rows] == labels
    assert "on 4 labelled images: accuracy 0.7500 (95%: 0.3006 to 0.9544); f1 0.8000 (95%: " in printed.err


@pytest.mark.slow
def test_a_run_and_images_in_a_bucket(shirts: Path, pictures: Path, bucket: str, tmp_path: Path) -> None:
    """A prefix, and an object by its own name; the table has a line for each."""
    files = {path.name: path.read_bytes() for path in sorted(pictures.rglob("*.png"))[:3]}
    fill(open_store(f"{bucket}/new"), files)
    models = {f"models/{path.name}": path.read_bytes() for path in (shirts / "models").glob("best*")}
    fill(open_store(f"{bucket}/runs/shirts"), models)
    first = next(iter(files))
    done = predict(f"{bucket}/runs/shirts", f"{bucket}/new/", f"{bucket}/new/{first}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["path", "class", "probability"]
    assert [line.split()[0] for line in lines] == [f"{bucket}/new/{name}" for name in [*files, first]]
    assert lines[0].split()[1:] == lines[-1].split()[1:]


def test_where_there_is_no_model_the_line_says_what_to_do(shirts: Path, tmp_path: Path) -> None:
    """A run without models, a model without its facts, and facts that a grid did not write."""
    with pytest.raises(BadInput, match=r"has no models/best\.json: run the grid again without --export-models none"):
        read_model(str(tmp_path))
    shutil.copy(shirts / "models" / "best.keras", tmp_path)
    with pytest.raises(BadInput, match=r"must hold best\.keras and best\.json, and has no best\.json: copy both"):
        read_model(str(tmp_path / "best.keras"))
    (tmp_path / "best.json").write_text("{}")
    with pytest.raises(BadInput, match=r"best\.json must be what a grid wrote beside best\.keras"):
        read_model(str(tmp_path / "best.keras"))


def test_a_file_that_goes_while_others_are_read_is_named_alone(tmp_path: Path, pictures: Path) -> None:
    """Reading goes on behind it."""
    from orchestrator.train.inference import _Encoded

    names = sorted(pictures.rglob("*.png"))[:4]
    for i, path in enumerate(names):
        shutil.copy(path, tmp_path / f"{i}.png")
    found = find_pictures([str(tmp_path)])
    assert (found.failures, found.notes) == ({}, [])
    (tmp_path / "1.png").unlink()
    encoded = _Encoded(found.pictures)
    blobs = list(encoded.blobs(np.arange(4)))
    assert [len(blob) > 0 for blob in blobs] == [True, False, True, True]
    assert list(encoded.failures) == [1]
    assert "there is no such file" in encoded.failures[1]


def told_of(folder: str, names: list[str], exif: str | None) -> dict[int, list[float] | str]:
    """What a model says of these files that was trained with that `exif`, or before there was a choice."""
    import keras

    from orchestrator.runs.result import Exported
    from orchestrator.train.inference import predict
    from orchestrator.train.model_file import to_bytes

    image = keras.Input((24, 24, 3))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(image)))
    spec = {"model": "small_cnn", "data": {"exif": exif} if exif else {}}
    facts = Exported.model_construct(image_size=(24, 24), resize="bilinear", scale=1 / 255, values={}, spec=spec)
    found = find_pictures([f"{folder}/{name}" for name in names])
    said = predict(to_bytes(model), facts, "m.keras", found.pictures)
    return {i: what if isinstance(what, str) else what.tolist() for i, what in said.items()}


def test_images_are_prepared_as_training_prepared_them(tmp_path: Path) -> None:
    """Turned where the model's run turned them, of every format, and what cannot be read is named as in training."""
    stored, exif = Image.fromarray(picture(1, 24, 24)), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "tagged.tif", exif=exif)
    stored.save(tmp_path / "stored.png")
    stored.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "shown.gif.webp", "WEBP", lossless=True)
    (tmp_path / "page.jpg").write_text("<html>")
    names = ["tagged.tif", "stored.png", "shown.gif.webp", "page.jpg"]
    with new_worker() as pool:
        for exif_in_spec, like in (("apply", 2), ("ignore", 1), (None, 1)):
            said = pool.submit(told_of, str(tmp_path), names, exif_in_spec).result()
            assert [said[0] == said[i] for i in (1, 2)] == [like == 1, like == 2]
            assert str(said[3]).startswith("not a JPEG, PNG, ")
