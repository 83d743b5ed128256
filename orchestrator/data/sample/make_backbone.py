"""Makes backbones/fashion.keras: python -m orchestrator.data.sample.make_backbone [IDX_DIR].

A small network that was trained to tell the other eight classes of Fashion-MNIST apart, without its classifier. It has
never seen a shirt or a T-shirt. IDX_DIR holds Fashion-MNIST as published; by default where Debian's
dataset-fashion-mnist puts it. Takes some minutes on two cores. The same libraries and number of threads on the same
machine train the same weights.
"""

import gzip
import sys
from pathlib import Path

import keras
import numpy as np

from orchestrator.data.sample.make_shirts import CLASSES, DEBIAN_IDX_DIR, SIDE

TARGET = Path(__file__).with_name("backbones") / "fashion.keras"
EPOCHS, BATCH_SIZE, SEED = 12, 64, 0


def images(idx_dir: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, SIDE, SIDE, 3) float32 in [0, 1] and (n,) labels 0 to 7 of the classes that the sample does not hold."""
    pixels = np.frombuffer(
        gzip.decompress((idx_dir / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    labels = np.frombuffer(gzip.decompress((idx_dir / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    others = [label for label in range(10) if label not in CLASSES.values()]
    chosen = np.isin(labels, others)
    grey = pixels.reshape(-1, SIDE, SIDE, 1)[chosen] / np.float32(255)
    return np.repeat(grey, 3, axis=3), np.searchsorted(others, labels[chosen])


def network() -> keras.Model:
    """Three blocks of convolutions, (SIDE, SIDE, 3) to (7, 7, 96)."""
    x = pixels = keras.Input((SIDE, SIDE, 3))
    for filters, pools in ((32, True), (64, True), (96, False)):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        if pools:
            x = keras.layers.MaxPooling2D(2)(x)
    return keras.Model(pixels, x, name="fashion")


def main() -> None:
    idx_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN_IDX_DIR
    keras.utils.set_random_seed(SEED)
    backbone = network()
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    x = keras.layers.Dropout(0.3)(x)
    model = keras.Model(backbone.input, keras.layers.Dense(8, activation="softmax")(x))
    training, test = images(idx_dir, "train"), images(idx_dir, "t10k")
    rate = keras.optimizers.schedules.CosineDecay(0.002, EPOCHS * -(-len(training[1]) // BATCH_SIZE))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*training, batch_size=BATCH_SIZE, epochs=EPOCHS, validation_data=test, verbose=2)
    backbone.save(TARGET)
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes, {model.evaluate(*test, verbose=0)[1]:.4f} of its own classes")


if __name__ == "__main__":
    main()
