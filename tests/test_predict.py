"""predict: the exported model says of an image what it said in training; bad images are named; custom layers load."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from images import fill
from PIL import Image
from test_trial import new_worker

import orchestrator
from orchestrator.errors import BadInput
from orchestrator.store import open_store
from orchestrator.train.inference import find_pictures, read_model

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
    done = predict(str(shirts), str(pictures), "--format", "json", cwd=shirts)
    assert (done.returncode, done.stderr) == (0, "")
    says = {row["path"].removeprefix(f"{pictures}/"): row for row in json.loads(done.stdout)}
    recorded = pq.read_table(shirts / "models" / "best-validation.parquet").to_pylist()
    assert set(says) == {row["path"] for row in recorded}
    for row in recorded:
        found = says[row["path"]]
        assert found["class"] == row["predicted"]
        assert list(found["probabilities"].values()) == pytest.approx(row["probabilities"], abs=1e-6)
        assert found["probability"] == max(found["probabilities"].values())
    right = np.mean([row["label"] == row["predicted"] for row in recorded])
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
    lines = dict(line.removeprefix("error: ").split(": ", 1) for line in done.stderr.splitlines())
    assert set(lines) == {"deep/broken.jpg", "deep/empty.gif", "none", "lost.png", "best.json"}
    assert lines["lost.png"] == "there is no such file or folder"
    assert lines["none"].startswith("holds no image (.jpg, ")
    assert lines["best.json"] == "not a JPEG, PNG, BMP, GIF or WebP image"


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
    found, failures = find_pictures([str(tmp_path)])
    assert failures == {}
    (tmp_path / "1.png").unlink()
    encoded = _Encoded(found)
    blobs = list(encoded.blobs(np.arange(4)))
    assert [len(blob) > 0 for blob in blobs] == [True, False, True, True]
    assert list(encoded.failures) == [1]
    assert "there is no such file" in encoded.failures[1]


MODULE = """
import keras


class Times(keras.layers.Layer):
    def __init__(self, factor=2.0, **rest):
        super().__init__(**rest)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Closed(keras.layers.Layer):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def call(self, x):
        return x


def build(layer):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(layer(image))
    return keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(x))
"""


def saved_and_loaded(folder: str) -> list[str]:
    """What becomes of models with a layer of their own, a Lambda, and one that cannot be saved; one line each."""
    sys.path.insert(0, folder)
    os.chdir(folder)
    import keras
    import nets

    from orchestrator.train.model_file import check_savable, load, to_bytes

    lines = []
    for layer in (nets.Times(), keras.layers.Lambda(lambda x: x * 2), nets.Closed(object())):
        try:
            check_savable(nets.build(layer), type(layer).__name__)
            model = load(to_bytes(nets.build(layer)), "m.keras", "nets:build")
            lines.append(f"loaded {type(model.layers[1]).__name__}")
        except BadInput as error:
            lines.append(str(error))
    data = to_bytes(nets.build(nets.Times()))
    sys.modules.pop("nets")
    Path("nets.py").unlink()
    try:
        load(data, "m.keras", "nets:build")
    except BadInput as error:
        lines.append(str(error))
    return lines


def test_models_with_layers_of_their_own(tmp_path: Path) -> None:
    """They load where their module is; what cannot be saved is refused before training, code in a file is never run."""
    (tmp_path / "nets.py").write_text(MODULE)
    with new_worker() as pool:
        own, code, closed, moved = pool.submit(saved_and_loaded, str(tmp_path)).result()
    assert own == "loaded Times"
    assert code.startswith("m.keras holds a Lambda layer, that is code, and no code is run from a file")
    assert closed.startswith("model Closed must be one that Keras can save: ")
    assert closed.endswith("or keep no models: --export-models none")
    assert moved.startswith("m.keras must be a model that Keras can load: ")
    assert moved.endswith("must be found in the module nets, in the current folder as in training")
    assert not any("\n" in line for line in (code, closed, moved))
