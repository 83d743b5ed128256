"""Peer of bench_backbone.py: KerasTuner's GridSearch over a frozen network in the model, and tf.data. One JSON line."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    job = json.loads(sys.argv[1])
    import keras
    import keras_tuner as kt
    import tensorflow as tf

    size, auto = tuple(job["size"]), tf.data.AUTOTUNE
    parts: dict[str, list[tuple[str, int]]] = {"training": [], "validation": []}
    classes = sorted(os.listdir(job["folder"]))
    for label, name in enumerate(classes):
        files = sorted(str(path) for path in (Path(job["folder"]) / name).iterdir())
        cut = int(0.2 * len(files))
        parts["validation"] += [(path, label) for path in files[:cut]]
        parts["training"] += [(path, label) for path in files[cut:]]

    def decode(path, label):
        image = tf.io.decode_image(tf.io.read_file(path), 3, expand_animations=False)
        return tf.image.resize(tf.ensure_shape(image, (None, None, 3)), size), label

    def dataset(part: str, batch_size: int) -> tf.data.Dataset:
        paths, labels = zip(*parts[part], strict=True)
        chain = tf.data.Dataset.from_tensor_slices((list(paths), list(labels)))
        if part == "training":
            chain = chain.shuffle(len(paths))
        return chain.map(decode, auto).batch(batch_size).prefetch(auto)

    class Grid(kt.HyperModel):
        def build(self, hp):
            for name in ("batch_size", "epochs"):
                hp.Choice(name, job["grid"][name])
            backbone = keras.saving.load_model(job["file"], compile=False)
            backbone.trainable = False
            image = keras.Input((*size, 3))
            x = keras.layers.Rescaling(job["keep"][0] / 255, offset=job["keep"][1])(image)
            x = keras.layers.GlobalAveragePooling2D()(backbone(x, training=False))
            x = keras.layers.Dropout(hp.Choice("dropout", job["grid"]["dropout"]))(x)
            l2 = keras.regularizers.L2(hp.Choice("l2", job["grid"]["l2"]))
            model = keras.Model(image, keras.layers.Dense(len(classes), "softmax", kernel_regularizer=l2)(x))
            model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
            return model

        def fit(self, hp, model, *args, **kwargs):
            data = dataset("training", hp.get("batch_size")), dataset("validation", hp.get("batch_size"))
            epochs, callbacks = hp.get("epochs"), kwargs["callbacks"]
            return model.fit(data[0], epochs=epochs, validation_data=data[1], verbose=0, callbacks=callbacks)

    with tempfile.TemporaryDirectory() as folder:
        tuner = kt.GridSearch(Grid(), objective="val_accuracy", directory=folder, project_name="peer")
        tuner.search(verbose=0)
        print(json.dumps({"val_accuracy": [float(trial.score) for trial in tuner.oracle.trials.values()]}))


if __name__ == "__main__":
    main()
