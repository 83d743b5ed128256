"""augment: what its presets and fields mean for ids, and the picture that shows it before anything is trained."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from test_plan import ids, planned

from orchestrator.display.sheet import Row, as_webp, comment_of
from orchestrator.driver.lay_out import Options
from orchestrator.driver.line import orchestrate
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import differences, samples
from orchestrator.spec.axes import canonical, resolve
from orchestrator.spec.backbones import Pretrained, views
from orchestrator.spec.presets import PRESETS
from orchestrator.spec.reading import load_spec, to_yaml

GRID = "{name: a, data: {uri: 'sample://shirts'}, grid: {batch_size: [5]}}"
SHOWN = """
name: a
data: {uri: "sample://shirts", image_size: [28, 28]}
grid: {preset: [none, strong], mixup: [0.0, 0.4]}
"""


def test_presets_are_what_they_were() -> None:
    """Results name them: a better one gets another name."""
    digest = hashlib.sha256(canonical(PRESETS).encode()).hexdigest()[:12]
    assert digest == "bae6b09db287"


def test_a_preset_is_the_fields_that_it_stands_for() -> None:
    """The same trial as with its values written out, and as a value of an axis; what the spec names stays."""
    written = {**PRESETS["medium"], "horizontal_flip": False}
    named = ids(planned(augment={"preset": "medium", "horizontal_flip": False}))
    assert named == ids(planned(augment=written))
    axis = planned(augment={"horizontal_flip": False}, grid={"preset": ["none", "medium"], "batch_size": [5, 10]})
    assert ids(axis)[2:] == named
    assert ids(axis)[:2] == ids(planned())
    zoomed = planned(grid={"preset": ["medium"], "zoom": [0.0], "batch_size": [5, 10]}).points[0]
    assert zoomed.id == ids(planned(augment={**PRESETS["medium"], "zoom": 0.0}))[0]


def test_a_run_with_a_preset_can_compare_it_with_others() -> None:
    """Nothing that its trials share differs, so that what is trained is kept."""
    before = planned(augment={"preset": "light"})
    after = planned(grid={"preset": ["light", "strong"], "batch_size": [5, 10]})
    assert differences(before.shared, after.shared) == []
    assert ids(after)[:2] == ids(before)


@pytest.mark.parametrize("overrides", [["augment={preset: strong, shear: 0}"], ["grid={preset: [none, strong]}"]])
def test_a_spec_with_a_preset_reads_back_as_itself(overrides: list[str]) -> None:
    """As it stands in the run folder."""
    spec = load_spec(GRID, overrides)
    again = load_spec(to_yaml(spec))
    for values in ({}, {"preset": "light"}):
        assert resolve(again, values) == resolve(spec, values)


def test_what_is_not_asked_for_is_in_no_id() -> None:
    """Each new field at the value that changes nothing; and any other value makes other trials."""
    plain = ids(planned())
    for name, value in {"zoom": 0.1, "vertical_flip": True, "mixup": 0.2, "cutout": 0.1}.items():
        assert ids(planned(augment={name: type(value)(0)})) == plain
        assert not {*ids(planned(augment={name: value}))} & {*plain}


def test_mixing_needs_images_that_can_be_read_at_random() -> None:
    """Streamed shards are read in windows; decoded ones on a node's disk, and single files, can be mixed."""
    many = {"data": {"uri": "images", "image_size": 2048, "cache_limit_gb": 0.1}, "grid": {"cutmix": [0.0, 1.0]}}
    with pytest.raises(
        BadInput, match=r"^cutmix must be 0 where shards are streamed, .* got 1: raise data.cache_limit_gb"
    ):
        planned(counts=Counts(90, 10, packed=True), **many)
    planned(counts=Counts(90, 10, packed=False), **many)
    planned(counts=Counts(90, 10, packed=True), grid={"cutmix": [0.0, 1.0]})


def test_mixing_changes_no_features() -> None:
    """It is the head's own; what changes an image alone makes a view of its own."""
    spec = load_spec(GRID, ["backbone={name: MobileNet, views: 2}", "augment={zoom: 0.1}"])
    network = Pretrained("abc", "0..1", "", None, 1.0)
    plain, mixed, painted = (
        views(resolve(spec, values), network, "digest") for values in ({}, {"mixup": 0.4}, {"cutout": 0.2})
    )
    assert plain == mixed
    assert plain[1] != painted[1]


def test_samples_are_one_point_for_each_way_to_change_images() -> None:
    """Whatever else differs; those whose images stay as they are, are left out."""
    spec = load_spec(SHOWN, ["grid.batch_size=[5, 10]"])
    found = samples(planned(**yaml.safe_load(to_yaml(spec))), spec)
    assert [(each["preset"], each["mixup"]) for each in found] == [("none", 0.4), ("strong", 0.0), ("strong", 0.4)]


def test_the_picture_on_the_page_is_small() -> None:
    """However little there is to press together; and it says of which samples it is."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 7, 64, 64, 3), np.uint8)
    webp = as_webp(["epoch"] * 7, [Row("a", images, [""] * 7) for images in noise], 44_000, "abc")
    assert len(webp) <= 44_000
    assert Image.open(io.BytesIO(webp)).width > 200
    assert (comment_of(webp), comment_of(b"")) == ("abc", "")


def test_show_needs_something_to_show(tmp_path: Path) -> None:
    """In one line, before anything is drawn."""
    spec = load_spec(GRID, [f"output={tmp_path}"])
    with pytest.raises(BadInput, match="no point changes its training images: set augment"):
        orchestrate(spec, Options(plan_only=True, show=str(tmp_path / "a.png")))


@pytest.mark.slow
def test_a_plan_draws_what_would_be_trained_on(tmp_path: Path) -> None:
    """Three configurations, four images each, as they are and in six epochs: of these the very pixels."""
    (tmp_path / "a.yaml").write_text(SHOWN)
    command = [sys.executable, "-m", "orchestrator.grid", "a.yaml", "--plan", "--show", "a.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.png" in done.stdout.splitlines()[-1]
    sheet = np.array(Image.open(tmp_path / "a.png"))
    drawn: Any = subprocess.run(
        [sys.executable, "-c", FIRST_EPOCH], capture_output=True, timeout=900, check=True
    ).stdout
    image = np.frombuffer(drawn, np.uint8).reshape(28, 28, 3).repeat(3, 0).repeat(3, 1)
    places = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], image.shape[:2])
    assert (places == image[..., 0]).all((2, 3)).sum() == 1
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "a.yaml"]


FIRST_EPOCH = """
import sys
import numpy as np
import tensorflow as tf
from orchestrator.data.indexing import build_index
from orchestrator.data.pipeline import Source, training_batches
from orchestrator.data.stream import Encoded
from orchestrator.spec.axes import resolve
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store
spec = load_spec("{name: a, data: {uri: 'sample://shirts', image_size: 28}, grid: {preset: [strong]}}")
settings, images = resolve(spec, {"preset": "strong"}), open_store(spec.data.uri)
index = build_index(images, spec.data)
source = Source(None, tf.constant(index.labels), spec.data, settings.augment, 0, 1, Encoded(index, images))
rows = index.training_rows(index.readable({}))
first = rows[index.labels[rows] == 0][0]
(batch,) = (each for each in training_batches(source, np.array([first]), 1, 0, 1))
sys.stdout.buffer.write(tf.cast(tf.round(batch[0][0] * 255), tf.uint8).numpy().tobytes())
"""
