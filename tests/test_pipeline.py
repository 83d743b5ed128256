"""pipeline: each batch follows from (seed, epoch, example) alone, and augments as Keras' ImageDataGenerator does."""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from images import as_shards, class_folder, fill, picture
from keras.src.legacy.preprocessing.image import ImageDataGenerator

from orchestrator.data import pipeline, stream
from orchestrator.data.augmentation import changed, draw_mixes, draw_numbers, to_numbers
from orchestrator.data.indexing import build_index
from orchestrator.data.pipeline import Source, shared_tensor, training_batches, validation_batches
from orchestrator.data.stream import Encoded, decoded
from orchestrator.spec.sections import Augment, Data
from orchestrator.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore:Please import `affine_transform`")  # Keras' own affair

ALL = Augment(rotation_deg=20, width_shift=0.2, height_shift=0.3, horizontal_flip=True)
EACH = {"vertical_flip": True, "zoom": 0.3, "shear": 20, "crop": 0.4, "brightness": 0.3, "contrast": 0.4, "cutout": 0.4}
ALONE = ALL.model_copy(update=EACH)  # everything but what takes a second image
MIXED = ALONE.model_copy(update={"mixup": 0.4, "cutmix": 1.0})
COUNT, HEIGHT, WIDTH = 47, 12, 16
ROWS = np.array([row for row in range(COUNT) if row % 5])  # 37 of them train
IMAGES = tf.constant(np.stack([picture(row, HEIGHT, WIDTH) for row in range(COUNT)]))
LABELS = tf.range(COUNT)  # an image's label is its row: a batch tells which images it holds


def source_of(images: tf.Tensor, labels: tf.Tensor, augment: Augment, seed: int = 0, threads: int = 1) -> Source:
    data = Data.model_construct(uri="", image_size=tuple(images.shape[1:3]), resize="bilinear")
    return Source(images, labels, data, augment, seed, threads)


Found = list[tuple[np.ndarray, ...]]  # batches: images and labels; where they are mixed, others' labels and shares


def batches(
    augment: Augment = ALL, batch_size: int = 5, seed: int = 0, start_step: int = 0, epochs: int = 2, threads: int = 1
) -> Found:
    source = source_of(IMAGES, LABELS, augment, seed, threads)
    return list(training_batches(source, ROWS, batch_size, start_step, epochs).as_numpy_iterator())


def by_row(found: Found) -> dict[int, np.ndarray]:
    return {row: image for images, rows, *_ in found for row, image in zip(rows.tolist(), images, strict=True)}


def order(found: Found) -> list[int]:
    return [row for _, rows, *_ in found for row in rows.tolist()]


def same(a: Found, b: Found) -> bool:
    return len(a) == len(b) and all(
        len(x) == len(y) and all(np.array_equal(one, two) for one, two in zip(x, y, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def transform(batch: tf.Tensor, draws: tf.Tensor, augment: Augment) -> tf.Tensor:
    return changed(batch, to_numbers(draws, batch.shape[1:3], augment), augment)


class TestTransform:
    """One resampling, the same as Keras'."""

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 33)])
    @pytest.mark.parametrize(
        "draws",
        [
            (0.5, 0.5, 0.5, 0.9),  # nothing at all
            (0.5, 0.5, 0.5, 0.1),  # a flip alone
            (0.83, 0.5, 0.5, 0.9),
            (0.1, 0.5, 0.5, 0.1),
            (0.5, 0.95, 0.5, 0.9),
            (0.5, 0.5, 0.05, 0.1),
            (0.9, 0.1, 0.8, 0.1),
            (0.02, 0.97, 0.33, 0.9),
        ],
    )
    def test_gives_the_pixels_of_keras(self, height: int, width: int, draws: tuple[float, ...]) -> None:
        """theta, tx, ty and flip_horizontal of apply_transform, filled by the nearest: within a thousandth.

        Keras swaps the axes of its matrix: so its theta turns the other way than its formula says, its tx, although
        drawn from height_shift_range, moves an image sideways, and one that is not square turns about a point off its
        middle. Ours do as they are named.
        """
        image = np.random.default_rng(0).random((height, width, 3), np.float32)
        rotation, down, across, flip = draws
        expected = ImageDataGenerator(fill_mode="nearest").apply_transform(
            image.copy(),
            {
                "theta": (1 - 2 * rotation) * 20,
                "tx": (2 * across - 1) * 0.2 * width,
                "ty": (2 * down - 1) * 0.3 * height,
                "flip_horizontal": flip < 0.5,
            },
        )
        found = transform(tf.constant(image[None]), tf.constant([draws]), ALL)[0].numpy()
        assert np.abs(found - expected).max() < 1e-3

    @pytest.mark.parametrize("fill", ["nearest", "reflect", "constant", "wrap"])
    def test_fills_as_keras_does(self, fill: str) -> None:
        """What lies outside is filled in the same ways (but "wrap", where SciPy drops a pixel at each seam)."""
        image = np.random.default_rng(0).random((24, 24, 3), np.float32)
        expected = ImageDataGenerator(fill_mode=fill).apply_transform(image.copy(), {"tx": -7, "ty": 5})
        augment = Augment(height_shift=5 / 24, width_shift=7 / 24, fill=fill)
        if fill == "wrap":
            expected = np.roll(image, (-5, 7), (0, 1))
        found = transform(tf.constant(image[None]), tf.constant([[0.5, 1, 0, 0.9]]), augment)[0].numpy()
        assert np.abs(found - expected).max() < 1e-3

    def test_turns_about_the_middle(self) -> None:
        """Of an image that is not square too: by half a turn it stands on its head."""
        image = tf.cast(IMAGES[:1], tf.float32)
        found = transform(image, tf.constant([[1, 0.5, 0.5, 0.9]]), Augment(rotation_deg=180))
        assert np.abs(found - image[:, ::-1, ::-1]).max() < 0.01

    @pytest.mark.parametrize("flips", [(0.1, 0.1), (0.1, 0.9), (0.9, 0.1), (0.9, 0.9)])
    def test_zooms_shears_flips_and_brightens_as_keras_does(self, flips: tuple[float, float]) -> None:
        """zx, zy, shear, flip_vertical and brightness of apply_transform, after what the test above turns and shifts.

        Keras rounds to whole pixels when it brightens. A flipped image is sheared the other way.
        """
        image = np.random.default_rng(0).random((33, 33, 3), np.float32) * 255
        draws = np.random.default_rng(1).random(15, np.float32)
        rotation, down, across, _, zoom_down, zoom_across, shear, *_, brightness, _, _, _ = draws.tolist()
        draws[[3, 7]] = flips
        expected = ImageDataGenerator(fill_mode="nearest").apply_transform(
            image.copy(),
            {
                "theta": (1 - 2 * rotation) * 20,
                "tx": (2 * across - 1) * 0.2 * 33,
                "ty": (2 * down - 1) * 0.3 * 33,
                "shear": (2 * shear - 1) * 20 * (-1 if flips[0] < 0.5 else 1),
                "zx": 1 + (2 * zoom_across - 1) * 0.3,
                "zy": 1 + (2 * zoom_down - 1) * 0.3,
                "flip_horizontal": flips[0] < 0.5,
                "flip_vertical": flips[1] < 0.5,
                "brightness": 1 + (2 * brightness - 1) * 0.3,
            },
        )
        augment = ALONE.model_copy(update={"crop": 0.0, "contrast": 0.0, "cutout": 0.0})
        assert np.abs(transform(tf.constant(image[None]), tf.constant([draws]), augment)[0] - expected).max() <= 2

    @pytest.mark.parametrize("draw", [0.0, 0.3, 0.9])
    def test_contrast_is_that_of_keras(self, draw: float) -> None:
        """The pixels of keras.layers.RandomContrast with the same factor."""
        image = np.random.default_rng(0).random((1, 33, 20, 3), np.float32) * 255
        factor = 1 + (2 * draw - 1) * 0.8
        expected = keras.layers.RandomContrast(0.8).transform_images(image, {"contrast_factor": factor})
        draws = [0.5] * 12 + [draw, 0.5, 0.5]
        found = transform(tf.constant(image), tf.constant([draws]), Augment(contrast=0.8))
        assert np.abs(found - expected).max() < 0.02  # ours is the mean of whole numbers

    def test_a_crop_is_a_window_of_the_image(self) -> None:
        """In its upper left corner, and in the lower right one: half of either side, as large as the whole."""
        image = np.mgrid[:32, :32].transpose(1, 2, 0)[..., [0, 1, 0]].astype(np.uint8)
        draws = [[0.5] * 8 + [1 - 2**-24, place, place] + [0.5] * 4 for place in (0.0, 1 - 2**-24)]
        found = transform(tf.constant(np.stack([image] * 2)), tf.constant(draws), Augment(crop=0.5)).numpy()
        expected = np.arange(32) / 2 - 0.25
        assert np.abs(found[0, :, 0, 0] - expected.clip(0)).max() < 1e-3
        assert np.abs(found[1, 0, :, 1] - (expected + 16).clip(0, 31)).max() < 1e-3

    def test_inside_a_graph(self) -> None:
        """Eagerly and inside Dataset.map the pixels are the same."""
        image, draws = tf.cast(IMAGES[:3], tf.float32), tf.random.stateless_uniform([3, 4], [0, 1])
        mapped = next(iter(tf.data.Dataset.from_tensors(image).map(lambda x: transform(x, draws, ALL))))
        assert np.array_equal(mapped, transform(image, draws, ALL))

    def test_no_augmentation_is_no_change(self) -> None:
        """Then the pixels come back as they are."""
        assert np.array_equal(transform(IMAGES[:3], tf.zeros([3, 4]), Augment()), IMAGES[:3])


class TestDraws:
    """How far images are turned, shifted and flipped, read off the pixels of 4000 of them."""

    COUNT = 4000

    def augmented(self, image: np.ndarray, augment: Augment) -> np.ndarray:
        images = tf.constant(np.repeat(image[None], self.COUNT, 0))
        rows = np.arange(self.COUNT)
        source = source_of(images, tf.constant(rows), augment, 3)
        return next(iter(training_batches(source, rows, self.COUNT, 0, 1)))[0].numpy()

    @staticmethod
    def assert_uniform(values: np.ndarray, limit: float) -> None:
        """Within +-limit, and each tenth of the range about equally often."""
        assert np.abs(values).max() <= limit * 1.02
        assert np.abs(values).max() > limit * 0.97
        counts, _ = np.histogram(values, 10, (-limit, limit))
        assert counts.min() > 0.75 * counts.mean()
        assert counts.max() < 1.25 * counts.mean()

    def test_shifts(self) -> None:
        """Up to the fraction of the side, either way; the height's apart from the width's."""
        down, across = np.mgrid[:32, :40]
        ramp = np.stack([down, across, down], -1).astype(np.uint8)
        middle = self.augmented(ramp, Augment(height_shift=0.25, width_shift=0.1))[:, 16, 20] * 255
        self.assert_uniform(middle[:, 0] - 16, 8)
        self.assert_uniform(middle[:, 1] - 20, 4)
        assert abs(np.corrcoef(middle[:, 0], middle[:, 1])[0, 1]) < 0.06

    def test_rotation(self) -> None:
        """Up to the angle, either way."""
        across = np.repeat(np.arange(41, dtype=np.uint8)[None], 41, 0)
        turned = self.augmented(np.stack([across] * 3, -1), Augment(rotation_deg=30)) * 255
        slope = (turned[:, 30, 20, 0] - turned[:, 10, 20, 0]) / 20
        self.assert_uniform(np.degrees(np.arcsin(slope)), 30)

    def test_are_those_of_keras(self) -> None:
        """Zoom, shear and brightness have the mean and deviation of ImageDataGenerator's, and no part in each other."""
        generator = ImageDataGenerator(zoom_range=0.3, shear_range=20, brightness_range=(0.7, 1.3))
        np.random.seed(0)
        drawn = [generator.get_random_transform((32, 32, 3)) for _ in range(self.COUNT)]
        expected = np.array([[each[name] for name in ("zx", "zy", "shear", "brightness")] for each in drawn])
        zoomed = draw_numbers(Augment(zoom=0.3, brightness=0.3), (32, 32), self.COUNT, (3, 0)).numpy()
        sheared = draw_numbers(Augment(shear=20), (32, 32), self.COUNT, (3, 0)).numpy()
        found = np.stack([zoomed[:, 0], zoomed[:, 4], -np.degrees(np.arcsin(sheared[:, 1])), zoomed[:, 6]], 1)
        assert np.abs(found.mean(0) - expected.mean(0)).max() < 0.06 * expected.std(0)[2]
        assert np.abs(found.std(0) / expected.std(0) - 1).max() < 0.04
        assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.06

    def test_of_one_field_stay_when_another_is_asked_for(self) -> None:
        """So an axis of one field compares images that differ in nothing else."""
        plain = draw_numbers(ALL, (32, 32), 50, (3, 0))
        assert np.array_equal(
            plain, draw_numbers(ALL.model_copy(update={"brightness": 0.3}), (32, 32), 50, (3, 0))[:, :6]
        )
        both = draw_numbers(Augment(zoom=0.3, brightness=0.3), (32, 32), 50, (3, 0))
        assert np.array_equal(both[:, :6], draw_numbers(Augment(zoom=0.3), (32, 32), 50, (3, 0)))

    def test_holes(self) -> None:
        """A third of the side wide, and less at the borders; as often in one place as in another."""
        hidden = self.augmented(np.full((30, 30, 3), 255, np.uint8), Augment(cutout=1 / 3))[..., 0] == 0
        sizes = hidden.any(2).sum(1)
        assert sizes.max() == 10
        assert sizes.min() >= 5
        often = hidden.mean(0)
        assert 0.08 < often[5:25, 5:25].min() < often.max() < 0.14
        assert often.min() > 0.02

    def test_flips(self) -> None:
        """Every second image, more or less."""
        across = np.repeat(np.arange(16, dtype=np.uint8)[None], 8, 0)
        left = self.augmented(np.stack([across] * 3, -1), Augment(horizontal_flip=True))[:, 4, 0, 0] * 255
        assert set(np.round(left, 3)) == {0, 15}
        assert 0.46 < (left > 7).mean() < 0.54


class TestTrainingBatches:
    """What one trial reads."""

    def test_every_image_once_per_epoch(self) -> None:
        """Each epoch is a permutation of the training images, and its last batch holds what remains."""
        found = batches(epochs=3)
        assert [len(rows) for _, rows in found] == ([5] * 7 + [2]) * 3
        epochs = [order(found[i : i + 8]) for i in (0, 8, 16)]
        assert all(sorted(epoch) == ROWS.tolist() for epoch in epochs)
        assert len({tuple(epoch) for epoch in [*epochs, ROWS.tolist()]}) == 4
        assert found[0][0].shape == (5, HEIGHT, WIDTH, 3)
        assert found[0][0].dtype == np.float32

    @pytest.mark.parametrize("augment", [ALL, MIXED])
    def test_the_same_again(self, augment: Augment) -> None:
        """The same seed gives the same batches, on any number of threads; another seed gives others."""
        found = batches(augment)
        assert same(found, batches(augment))
        assert same(found, batches(augment, threads=3))
        other = batches(augment, seed=1)
        assert order(found) != order(other)
        assert not np.array_equal(by_row(found)[1], by_row(other)[1])
        assert not np.array_equal(by_row(found[:8])[1], by_row(found[8:])[1]), "nor are two epochs alike"

    @pytest.mark.parametrize("augment", [ALL, MIXED])
    def test_batch_size_changes_no_pixel(self, augment: Augment) -> None:
        """An example looks the same in an epoch, and comes at the same place, whatever the batch size."""
        expected = batches(augment, batch_size=1, epochs=1)
        for size in (2, 5, 37, 100):
            found = batches(augment, batch_size=size, epochs=1)
            for one, two in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
                assert np.array_equal(np.concatenate(one), np.concatenate(two))

    @pytest.mark.parametrize(
        ("start", "augment"), [*((start, ALL) for start in (1, 7, 8, 9, 15, 16, 23, 24)), (15, MIXED)]
    )
    def test_goes_on_where_it_stopped(self, start: int, augment: Augment) -> None:
        """A stream from step k on equals the rest of the full one, at the border of an epoch too."""
        assert same(batches(augment, epochs=3, start_step=start), batches(augment, epochs=3)[start:])

    def test_fewer_epochs_are_the_first_of_more(self) -> None:
        """The total changes nothing before it."""
        assert same(batches(epochs=3)[:8], batches(epochs=1))

    def test_no_augmentation(self) -> None:
        """Then an image is its pixels, from 0 to 1."""
        for row, image in by_row(batches(Augment(), epochs=1)).items():
            assert np.abs(image - IMAGES[row].numpy() / np.float32(255)).max() < 1e-7
            assert image.max() <= 1

    def test_order_and_draws_do_not_share_their_bits(self) -> None:
        """Whether an image is flipped says nothing of where it comes."""
        count = 4000
        images = tf.constant(np.tile(np.array([0, 255], np.uint8)[None, None, :, None], (count, 1, 1, 3)))
        source = source_of(images, tf.range(count), Augment(horizontal_flip=True))
        stream = training_batches(source, np.arange(count), count, 0, 1)
        pixels, rows = next(iter(stream))
        flipped = pixels[:, 0, 0, 0].numpy() > 0.5
        assert abs(np.corrcoef(flipped, np.arange(count))[0, 1]) < 0.06
        assert abs(np.corrcoef(flipped, rows)[0, 1]) < 0.06


def validating(rows: list[int], augment: Augment, seed: int = 0, batch_size: int = 64) -> np.ndarray:
    chain = validation_batches(source_of(IMAGES, LABELS, augment, seed), np.array(rows), batch_size)
    found = list(chain.as_numpy_iterator())
    assert order(found) == rows
    return np.concatenate([images for images, _ in found])


class TestValidationBatches:
    """What validates: every image once, in the order given."""

    def test_is_not_augmented(self) -> None:
        """Unless asked: plain pixels from 0 to 1."""
        found = validating([3, 1], ALL)
        assert np.abs(found - IMAGES.numpy()[[3, 1]] / np.float32(255)).max() < 1e-7

    def test_is_augmented_alike_in_every_epoch(self) -> None:
        """An image looks the same whenever and beside whichever it is asked for, as the seed says."""
        augment = MIXED.model_copy(update={"validation": True})
        one, two = validating([3, 1], augment), validating([7, 3, 8], augment, batch_size=2)
        assert np.abs(one[0] - two[1]).max() < 1e-6
        assert np.abs(one - IMAGES.numpy()[[3, 1]] / 255).max() > 0.1
        assert np.abs(one - validating([3, 1], augment, seed=1)).max() > 0.1


class TestMixing:
    """Two images in one, both as they are alone in that epoch."""

    ALONE: ClassVar = by_row(batches(ALONE, epochs=1))

    def mixed(self, **fields: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
        """Of each image: what it became, it and the other one alone, and what its label counts for."""
        for batch in batches(ALONE.model_copy(update=fields), epochs=1):
            for image, row, other, share in zip(*batch, strict=True):
                yield image, self.ALONE[int(row)], self.ALONE[int(other)], float(share)

    def test_mixup_blends(self) -> None:
        """Pixels as labels, with any training image."""
        for image, own, other, share in self.mixed(mixup=0.4):
            assert np.abs(image - (share * own + (1 - share) * other)).max() < 1e-6

    def test_cutmix_puts_a_box_of_the_other_in(self) -> None:
        """Every pixel is one of the two, and labels count by their number."""
        for image, own, other, share in self.mixed(cutmix=1.0):
            is_own, is_other = ((np.abs(image - each) < 1e-6).all(-1) for each in (own, other))
            assert (is_own | is_other).all()
            assert is_other.mean() >= 1 - share - 1e-6
            assert is_own.mean() >= share - 1e-6

    def test_with_both_each_image_takes_one(self) -> None:
        """Half of them a box, whatever its place, and half the whole image."""
        mixes = draw_mixes(MIXED, (HEIGHT, WIDTH), tf.constant(ROWS), 4000, (0, 0))
        blended = mixes.level.numpy() < 1
        assert 0.46 < blended.mean() < 0.54
        first_row, end_row, _, _ = mixes.box.numpy()[blended].T
        assert np.array_equal(first_row, end_row)
        assert set(mixes.partners.numpy()) == set(ROWS)
        counts = np.bincount(mixes.partners)[ROWS]
        assert 0.7 * 4000 / len(ROWS) < counts.min() < counts.max() < 1.3 * 4000 / len(ROWS)

    @pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
    def test_shares_are_beta_distributed(self, alpha: float) -> None:
        """Mean and variance of Beta(alpha, alpha), for one so small too that its draws are 0 and 1."""
        mixes = draw_mixes(Augment(mixup=alpha), (8, 8), tf.range(9, dtype=tf.int64), 8000, (0, 0))
        assert mixes.share.numpy().mean() == pytest.approx(0.5, abs=0.03)
        assert mixes.share.numpy().var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.06)


def own_mb() -> float:
    """Memory that is this process' alone: anonymous pages, among them those that a write has copied from a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


class TestSharedTensor:
    """One copy for all trials of a node."""

    def test_is_the_array(self, tmp_path: Path) -> None:
        """The tensor lies on the array's own memory."""
        images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(2, 8, 8, 3))
        tensor = shared_tensor(images)
        images[1, 2, 3, 0] = 77
        assert tensor[1, 2, 3, 0].numpy() == 77
        assert tensor.dtype == tf.uint8

    def test_outlives_the_array(self, tmp_path: Path) -> None:
        """The tensor keeps the memory alive by itself."""
        np.full((8, 8, 8, 3), 5, np.uint8).tofile(tmp_path / "images")
        tensor = shared_tensor(np.memmap(tmp_path / "images", np.uint8, "c", shape=(8, 8, 8, 3)))
        assert int(tf.reduce_sum(tf.cast(tensor, tf.int32))) == 8 * 8 * 8 * 3 * 5

    def test_refuses_an_array_that_tensorflow_cannot_share(self) -> None:
        """An array off the 64-byte grid would abort the process at its first use."""
        with pytest.raises(ValueError, match="multiple of 64 bytes"):
            shared_tensor(np.zeros(1000, np.uint8)[1:])

    @pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
    def test_takes_no_memory_of_its_own(self, tmp_path: Path) -> None:
        """After a whole pass the process holds no copy of the images: they stay in the page cache."""
        size_mb, count = 150, 150 * 2**20 // (64 * 64 * 3)
        np.zeros((count, 64, 64, 3), np.uint8).tofile(tmp_path / "images")
        tensor = shared_tensor(np.memmap(tmp_path / "images", np.uint8, "c", shape=(count, 64, 64, 3)))
        stream = training_batches(source_of(tensor, tf.zeros([count]), Augment()), np.arange(count), 64, 0, 2)
        steps = iter(stream)
        next(steps)
        before = own_mb()
        for _ in range(math.ceil(count / 64)):
            next(steps)
        assert own_mb() - before < size_mb / 3


class TestStreamed:
    """What is too large to cache: read from the store again in every epoch."""

    COUNTS: ClassVar = {"a": 70, "b": 77}

    def sources(self, folder: Path, files: dict[str, bytes]) -> tuple[Source, Source, np.ndarray]:
        """The same images cached and streamed, and the rows that train."""
        store = fill(open_store(str(folder), create=True), files)
        index = build_index(store, Data(uri="x"))
        data = Data(uri="x", image_size=(24, 32))
        images = np.zeros((len(index), 24, 32, 3), np.uint8)
        for rows, found in decoded(Encoded(index, store), len(index), data.image_size, data.resize, 1):
            images[rows] = found
        labels = tf.range(len(index))
        cached = Source(tf.constant(images), labels, data, ALL, 3, 1)
        return cached, replace(cached, images=None, encoded=Encoded(index, store)), np.flatnonzero(~index.validates())

    def read(self, source: Source, rows: np.ndarray, start_step: int = 0) -> Found:
        chain = training_batches(source, rows, 5, start_step, 2)
        return list(chain.as_numpy_iterator())

    @pytest.mark.parametrize("augment", [ALL, MIXED])
    def test_single_objects_come_as_from_the_cache(self, augment: Augment, tmp_path: Path) -> None:
        """The same images in the same order, so a trial is the same wherever its images lie."""
        cached, streamed, rows = self.sources(tmp_path, class_folder(self.COUNTS))
        cached, streamed = replace(cached, augment=augment), replace(streamed, augment=augment)
        expected = self.read(cached, rows)
        assert same(self.read(streamed, rows), expected)
        assert same(self.read(streamed, rows, 17), expected[17:])
        assert same(self.read(replace(streamed, threads=2), rows), expected)

    def test_shards_are_shuffled_in_windows_of_row_groups(self, tmp_path: Path, monkeypatch) -> None:
        """Each image once an epoch, in windows of row groups whose order is the epoch's own; exact from any step."""
        monkeypatch.setattr(pipeline, "WINDOW_BYTES", 80_000)  # each shard holds 5 groups of 16 rows, about 20 kB
        monkeypatch.setattr(stream, "WINDOW_BYTES", 80_000)
        cached, streamed, rows = self.sources(tmp_path, as_shards(class_folder(self.COUNTS), 2))
        found = self.read(streamed, rows)
        steps = math.ceil(len(rows) / 5)
        first, second = order(found[:steps]), order(found[steps:])
        assert sorted(first) == sorted(second) == rows.tolist()
        assert first != second
        assert first != rows.tolist()
        plain = by_row(self.read(cached, rows)[:steps])
        assert all(np.abs(image - plain[row]).max() < 1e-6 for row, image in by_row(found[:steps]).items())
        group = streamed.encoded.group_of_row
        early = {int(group[row]) for row in first[: len(first) // 4]}
        assert len(early) < len(set(group.tolist()))
        for start_step in (7, steps, steps + 3):
            assert same(self.read(streamed, rows, start_step), found[start_step:])

    def test_what_validates_comes_in_order(self, tmp_path: Path) -> None:
        """Streamed or cached, the same images."""
        cached, streamed, rows = self.sources(tmp_path, as_shards(class_folder(self.COUNTS), 2))
        for (one, _), (two, _) in zip(
            validation_batches(cached, rows, 16), validation_batches(streamed, rows, 16), strict=True
        ):
            assert np.array_equal(one, two)

    def test_an_object_that_changed_ends_the_epoch_by_name(self, tmp_path: Path) -> None:
        """Never a silently shorter epoch; the reason is kept where the trial looks for it."""
        _, streamed, rows = self.sources(tmp_path, class_folder(self.COUNTS))
        (tmp_path / "a" / "0050.png").write_bytes(b"other")
        with pytest.raises(tf.errors.OpError):
            self.read(streamed, rows)
        assert "a/0050.png: must be as listed" in str(streamed.encoded.failures[0])
