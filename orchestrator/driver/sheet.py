"""Sheet: augmented samples of a plan as a picture. A process of its own draws it: the driver loads no TensorFlow."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from orchestrator.errors import BadInput
from orchestrator.runs.context import WorkerContext
from orchestrator.terminal import without_stderr


def write_sheet(context: WorkerContext, file: str) -> None:
    """Write a PNG of training images with the changes that the first epochs make. Raises BadInput."""
    if not context.samples:
        raise BadInput("--show must have something to show, and no point changes its training images: set augment")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        png = pool.submit(_draw, context).result()
    try:
        Path(file).write_bytes(png)
    except OSError as error:
        raise BadInput(f"--show must be a file that can be written, got {file}: {error.strerror}") from None


def _draw(context: WorkerContext) -> bytes:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a GPU may be at work for others
    with without_stderr():
        from orchestrator.train.samples import draw_png

        return draw_png(context)
