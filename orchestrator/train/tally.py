"""Tally: which validation images the model has right, in the epochs that rank its trial."""

from collections.abc import Mapping

import numpy as np

from orchestrator.runs.result import Right, window_of


class Tally:
    """Counts, image by image, how often the model was right.

    Attributes:
        recent: (epochs, ceil(images / 8)) uint8: a bit for each image, after each of the last epochs: those of every
            window that ends now or later.
        kept: Epoch -> `ranked` then.
    """

    def __init__(self, images: int, metric: str) -> None:
        self._images, self._metric = images, metric
        self._counts: tuple[int, int, bytes] | None
        self.resume(np.zeros((0, -(-images // 8)), np.uint8), None, {})

    def resume(self, recent: np.ndarray, ranked: Right | None, kept: Mapping[int, Right]) -> None:
        """Go on from what the attributes were. Raises ValueError where they are of other images."""
        if recent.dtype != np.uint8 or recent.ndim != 2 or recent.shape[1] != -(-self._images // 8):
            raise ValueError("it was validated on other images")
        self.recent, self.kept = recent, dict(kept)
        self._ranked, self._counts = ranked, None

    @property
    def ranked(self) -> Right | None:
        """Of the window that ranks the trial so far; None where its epochs are not all known."""
        if self._counts:  # packed only where it is asked for: not after every epoch
            self._ranked, self._counts = Right.of(*self._counts), None
        return self._ranked

    def add(self, epoch: int, right: np.ndarray, ranks: bool) -> None:
        """Count the epoch that is over.

        right: (images,) bool. ranks: whether the epoch is now the one that ranks the trial.
        """
        self.recent = np.concatenate([self.recent, np.packbits(right)[None]])[-max(1, epoch // 5) :]
        if ranks:
            window = window_of(epoch, self._metric)
            bits = np.unpackbits(self.recent[-window:], axis=1, count=self._images)
            counts = bits.sum(0, dtype=np.uint8).tobytes()
            self._ranked, self._counts = None, (epoch, window, counts) if len(bits) == window else None

    def keep(self, epoch: int) -> None:
        """Remember what ranks the trial after this epoch."""
        if ranked := self.ranked:
            self.kept[epoch] = ranked
