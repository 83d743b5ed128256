"""Augmentation: the random changes that an epoch makes to images, and images with these changes.

Every draw is keyed by (seed, epoch, example): an example is changed alike in any batch, on any thread and any node.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from orchestrator.spec.sections import Augment

Key = tuple[int | tf.Variable, int | tf.Tensor]  # seed, and epoch or what stands for it
# added to seeds, which are below: other random bits for each
_MORE, _MIXED, _MIXUP, _CUTMIX = (n * 2**31 for n in (1, 2, 3, 4))
_FIRST = 4  # draws of the fields that came first; the others have bits of their own, and these keep theirs
# Columns of what is drawn for one image, each in [0, 1)
_DRAWS = (
    *("rotation", "down", "across", "flip"),
    *("zoom_down", "zoom_across", "shear", "vertical_flip", "crop", "crop_down", "crop_across"),
    *("brightness", "contrast", "hole_down", "hole_across"),
)


class Mixes(NamedTuple):
    """With what every image of the source is mixed in an epoch, a row for each.

    Attributes:
        partners: (n,) int64: the row of the other image.
        level: (n,) float32: what its own pixels count for.
        box: (n, 4) float32: first and end of the rows and of the columns that the other image fills.
        share: (n,) float32: what its own label counts for.
    """

    partners: tf.Tensor
    level: tf.Tensor
    box: tf.Tensor
    share: tf.Tensor


class Changes(NamedTuple):
    """The random changes of one epoch, a row for every image of the source.

    Attributes:
        numbers: (n, 6) float32, where each output pixel is read from: see _matrices. With `paints` (n, 12): and the
            factors of brightness and contrast; first and end of the hole's rows and columns.
        mixes: None: each stays alone.
    """

    numbers: tf.Tensor
    mixes: Mixes | None


def draw_numbers(augment: Augment, image_size: tuple[int, int], images: int, key: Key) -> tf.Tensor:
    """The numbers of Changes, for so many images."""
    draws = _uniform(images, _FIRST, key)
    if _moves_otherwise(augment) or paints(augment):
        draws = tf.concat([draws, _uniform(images, len(_DRAWS) - _FIRST, key, _MORE)], 1)
    return to_numbers(draws, image_size, augment)


def to_numbers(draws: tf.Tensor, image_size: tuple[int, int], augment: Augment) -> tf.Tensor:
    """The numbers of Changes from (n, 4 or 15) float32 in [0, 1): the first columns of _DRAWS, or all of them.

    Ranges as in Keras' ImageDataGenerator, where it has them: +-rotation_deg, +-shift of the side, a flip with
    probability one half, +-shear in degrees, factors within 1 +- zoom (below 1 enlarges) and 1 +- brightness.
    """
    numbers = _matrices(draws[:, :_FIRST], *image_size, augment)
    if _moves_otherwise(augment):
        numbers = _combined(numbers, draws, image_size, augment)
    if not paints(augment):
        return numbers
    drawn = dict(zip(_DRAWS, tf.unstack(draws, axis=1), strict=True))
    factors = [
        1 + (2 * drawn["brightness"] - 1) * augment.brightness,
        1 + (2 * drawn["contrast"] - 1) * augment.contrast,
    ]
    hole = _box(drawn["hole_down"], drawn["hole_across"], tf.fill(draws.shape[:1], augment.cutout), image_size)
    return tf.concat([numbers, tf.stack(factors, 1), hole], 1)


def draw_mixes(augment: Augment, image_size: tuple[int, int], rows: tf.Tensor, images: int, key: Key) -> Mixes | None:
    """With which of `rows` ((training images,) int64) each of so many images is mixed, and how.

    With both mixup and cutmix, each image takes one of the two, with probability one half.
    """
    if not (augment.mixup or augment.cutmix):
        return None
    partner, which, down, across = tf.unstack(_uniform(images, 4, key, _MIXED), axis=1)
    count = tf.size(rows, tf.int64)
    partners = tf.gather(rows, tf.minimum(tf.cast(partner * tf.cast(count, tf.float32), tf.int64), count - 1))
    blends = which < (0.5 if augment.mixup and augment.cutmix else 1.0 if augment.mixup else 0.0)
    level = tf.where(blends, _beta(augment.mixup, images, key, _MIXUP), 1.0)
    side = tf.where(blends, 0.0, tf.sqrt(1 - _beta(augment.cutmix, images, key, _CUTMIX)))
    box = _box(down, across, side, image_size)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (image_size[0] * image_size[1])
    return Mixes(partners, level, box, tf.where(blends, level, 1 - area))


def with_partners(rows: tf.Tensor, mixes: Mixes) -> tf.Tensor:
    """(2 n,): each of the rows ((n,) int64), and after it that of the image that it is mixed with."""
    return tf.reshape(tf.stack([rows, tf.gather(mixes.partners, rows)], 1), [-1])


def changed(batch: tf.Tensor, numbers: tf.Tensor, augment: Augment) -> tf.Tensor:
    """Images with their changes, each alone: one bilinear resampling, and then light and hole.

    batch: (batch, height, width, 3), any type, in [0, 255]. numbers: theirs. Returns float32 of the same scale.
    """
    if _moves(augment) or _moves_otherwise(augment):
        images = _bilinear(batch, numbers, augment.fill)
    else:
        images = tf.cast(batch, tf.float32)
    return _painted(images, numbers, augment.contrast > 0) if paints(augment) else images


@tf.function(jit_compile=True, autograph=False)
def mixed(pairs: tf.Tensor, level: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """(n, height, width, 3). pairs: (2 n, height, width, 3) float32, as with_partners has them. See Mixes."""
    pairs = tf.reshape(pairs, [-1, 2, *pairs.shape[1:]])
    own = tf.where(_inside_box(box, pairs.shape[2:4]), 0.0, level[:, None, None, None])
    return pairs[:, 0] * own + pairs[:, 1] * (1 - own)


def paints(augment: Augment) -> bool:
    """Whether it changes pixels where they are."""
    return bool(augment.brightness or augment.contrast or augment.cutout)


def _moves(augment: Augment) -> bool:
    return bool(augment.rotation_deg or augment.width_shift or augment.height_shift or augment.horizontal_flip)


def _moves_otherwise(augment: Augment) -> bool:
    return bool(augment.zoom or augment.shear or augment.vertical_flip or augment.crop)


def _uniform(images: int, columns: int, key: Key, other: int = 0) -> tf.Tensor:
    """(images, columns) float32 in [0, 1), the same for an example whatever its batch or the machine."""
    return tf.random.stateless_uniform([images, columns], _bits(key, other))


def _bits(key: Key, other: int) -> tf.Tensor:
    """(2,) int64: what draws are keyed by. other: what tells several draws with the same key apart."""
    seed, epoch = key
    return tf.stack([tf.convert_to_tensor(seed, tf.int64) + other, epoch])


def _beta(alpha: float, images: int, key: Key, other: int) -> tf.Tensor:
    """(images,) float32 in [0, 1] from Beta(alpha, alpha); 0 where alpha is 0."""
    if not alpha:
        return tf.zeros([images])
    with tf.device("CPU:0"):  # the same on every device
        pairs = tf.random.stateless_gamma(
            [images, 2], _bits(key, other), tf.constant(alpha, tf.float64), dtype=tf.float64
        )
        total = tf.reduce_sum(pairs, 1)
        # of a very small alpha both may be as small as TensorFlow's numbers get: 0 then
        return tf.cast(tf.where(total > 1e-300, pairs[:, 0] / total, 0), tf.float32)


def _box(down: tf.Tensor, across: tf.Tensor, side: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """(n, 4): first and end of the rows and columns of a box about any place in the image, cut off at its borders.

    down, across: (n,) in [0, 1): that place. side: (n,): the share of height and width that the box has.
    """
    ends = []
    for middle, length in zip((down, across), image_size, strict=True):
        for half in (-0.5, 0.5):
            ends.append(tf.clip_by_value(tf.round((middle + half * side) * length), 0, length))
    return tf.stack(ends, 1)


def _inside_box(box: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """(n, height, width, 1) bool."""
    row, column = (tf.range(length, dtype=tf.float32) for length in image_size)
    first_row, end_row, first_column, end_column = (box[:, i, None] for i in range(4))
    rows, columns = (row >= first_row) & (row < end_row), (column >= first_column) & (column < end_column)
    return (rows[:, :, None] & columns[:, None, :])[..., None]


@tf.function(jit_compile=True, autograph=False)
def _painted(images: tf.Tensor, numbers: tf.Tensor, with_contrast: bool) -> tf.Tensor:
    """Brightness, contrast about the mean of each channel, and a black hole."""
    brightness, contrast = (numbers[:, i, None, None, None] for i in (6, 7))
    images = tf.clip_by_value(images * brightness, 0, 255)
    if with_contrast:
        # of whole numbers, as sums of others depend on their order, which XLA chooses by the size of the batch
        total = tf.reduce_sum(tf.cast(tf.round(images), tf.int32), (1, 2), keepdims=True)
        mean = tf.cast(total, tf.float32) / (images.shape[1] * images.shape[2])
        images = tf.clip_by_value((images - mean) * contrast + mean, 0, 255)
    return tf.where(_inside_box(numbers[:, 8:], images.shape[1:3]), 0.0, images)


# ImageProjectiveTransformV3 takes four times as long: it computes each coordinate again for every channel
@tf.function(jit_compile=True, autograph=False)
def _bilinear(batch: tf.Tensor, numbers: tf.Tensor, fill: str) -> tf.Tensor:
    height, width = batch.shape[1:3]
    y, x = tf.meshgrid(tf.range(height, dtype=tf.float32), tf.range(width, dtype=tf.float32), indexing="ij")
    a, b, c, d, e, f = (numbers[:, i, None, None] for i in range(6))
    source_x, source_y = a * x + b * y + c, d * x + e * y + f
    left, top = tf.floor(source_x), tf.floor(source_y)
    across, down = (source_x - left)[..., None], (source_y - top)[..., None]
    column, row = tf.cast(left, tf.int32), tf.cast(top, tf.int32)
    pixels = tf.reshape(batch, [-1, batch.shape[3]])
    first = tf.range(tf.shape(batch)[0])[:, None, None] * (height * width)

    def at(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        row_inside, column_inside = _inside(row, height, fill), _inside(column, width, fill)
        values = tf.cast(tf.gather(pixels, first + row_inside * width + column_inside), tf.float32)
        if fill == "constant":
            values *= tf.cast((row == row_inside) & (column == column_inside), tf.float32)[..., None]
        return values

    upper = at(row, column) * (1 - across) + at(row, column + 1) * across
    lower = at(row + 1, column) * (1 - across) + at(row + 1, column + 1) * across
    return upper * (1 - down) + lower * down


def _inside(index: tf.Tensor, side: int, fill: str) -> tf.Tensor:
    if fill == "wrap":
        return index % side
    if fill == "reflect":  # d c b a | a b c d | d c b a
        index %= 2 * side
        return tf.minimum(index, 2 * side - 1 - index)
    return tf.clip_by_value(index, 0, side - 1)


def _matrices(draws: tf.Tensor, height: int, width: int, augment: Augment) -> tf.Tensor:
    """(batch, 6): where each output pixel (column, row) is read from; flip, rotation and shift combined."""
    angle, down, across, flip = tf.unstack(draws, axis=1)
    angle = (2 * angle - 1) * (augment.rotation_deg * math.pi / 180)
    down = (2 * down - 1) * (augment.height_shift * height)
    across = (2 * across - 1) * (augment.width_shift * width)
    mirror = tf.where(flip < 0.5, -1.0, 1.0) if augment.horizontal_flip else tf.ones_like(flip)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    cos, sin = tf.cos(angle), tf.sin(angle)
    # source = R (output - middle + shift) + middle, and a flip reads the output's columns from the other side
    shift_x = sin * (down - middle_y) + cos * (across - middle_x) + middle_x
    shift_y = cos * (down - middle_y) - sin * (across - middle_x) + middle_y
    zero = tf.zeros_like(angle)
    flipped_x = tf.where(mirror < 0, cos * (width - 1), zero)
    flipped_y = tf.where(mirror < 0, -sin * (width - 1), zero)
    return tf.stack([cos * mirror, sin, shift_x + flipped_x, -sin * mirror, cos, shift_y + flipped_y], axis=1)


def _combined(matrices: tf.Tensor, draws: tf.Tensor, image_size: tuple[int, int], augment: Augment) -> tf.Tensor:
    """The matrices with a window, a flip upside down, a zoom and a shear, in this order, before them."""
    drawn = dict(zip(_DRAWS, tf.unstack(draws, axis=1), strict=True))
    height, width = image_size
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    mirror = tf.where(drawn["vertical_flip"] < 0.5, -1.0, 1.0) if augment.vertical_flip else 1.0
    window = 1 - drawn["crop"] * augment.crop  # its share of each side
    zoom_x = 1 + (2 * drawn["zoom_across"] - 1) * augment.zoom
    zoom_y = (1 + (2 * drawn["zoom_down"] - 1) * augment.zoom) * mirror
    angle = (2 * drawn["shear"] - 1) * (augment.shear * math.pi / 180)
    # from the middle of the image to the output's first pixel, where the window lies
    first_x = drawn["crop_across"] * (1 - window) * width + (window - 1) / 2 - middle_x
    first_y = drawn["crop_down"] * (1 - window) * height + (window - 1) / 2 - middle_y
    slant, upright = -tf.sin(angle) * zoom_y, tf.cos(angle) * zoom_y
    by_x, to_x = zoom_x * window, zoom_x * first_x + slant * first_y + middle_x
    by_y, to_y = upright * window, upright * first_y + middle_y
    slant *= window
    a, b, c, d, e, f = tf.unstack(matrices, axis=1)
    across = [a * by_x, a * slant + b * by_y, a * to_x + b * to_y + c]
    down = [d * by_x, d * slant + e * by_y, d * to_x + e * to_y + f]
    return tf.stack([*across, *down], axis=1)
