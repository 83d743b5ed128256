"""Pictures: images in memory as files, so that they are read as all others are."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.data.image_files import as_png
from orchestrator.errors import BadInput
from orchestrator.scratch import scratch

Pictures = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | np.ndarray


@contextlib.contextmanager
def as_files(images: Pictures) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Paths of these images, and what to call those that have no path. Raises BadInput.

    images: files and folders, or (n, height, width, 3) or (height, width, 3) uint8.
    """
    if not isinstance(images, np.ndarray):
        given = [images] if isinstance(images, str | os.PathLike) else images
        yield [os.fspath(path) for path in given], {}
        return
    pixels = images[None] if images.ndim == 3 else images
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise BadInput(
            f"images must be paths, or pixels as (n, height, width, 3) uint8, got {images.shape} {images.dtype}: "
            f"pixels from 0 to 1 are (255 * images).round().astype('uint8')"
        )
    with scratch() as folder:
        names = {str(folder / f"{i}.png"): f"image {i}" for i in range(len(pixels))}
        for path, each in zip(names, pixels, strict=True):
            with open(path, "wb") as file:
                file.write(as_png(each))
        yield list(names), names
