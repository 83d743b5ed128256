"""Peers: what people run today on the same grid, each as they would write it. One JSON line at the end.

usage: python tests/benchmarks/peers.py notebook|ray-tune|ray-asha|keras-tuner|hyperband FOLDER GRID_JSON
GRID_JSON: {"batch_size": [10, 32], "epochs": [1, 2], "dropout": [0.0, 0.5], "l2": [0.01]}; ray-tune also takes "seed".
ray-asha and hyperband take one value for epochs, the most that they give a trial, and name a winner.
PEER_SIDE is the side of the square images, in pixels; 64 without it.
"""

import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SIZE = (int(os.environ.get("PEER_SIDE", 64)),) * 2


def network(dropout: float, l2: float, front: tuple = ()):
    """The notebook's network, compiled as there."""
    import tensorflow as tf

    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((*SIZE, 3)),
            *front,
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(1, activation="sigmoid", kernel_regularizer=tf.keras.regularizers.l2(l2)),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def flows(folder: str, batch_size: int) -> tuple:
    """Training and validation as ImageDataGenerator gives them: both decoded and augmented again in every epoch."""
    import tensorflow as tf

    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        rescale=1 / 255,
        rotation_range=20,
        width_shift_range=0.2,
        height_shift_range=0.2,
        horizontal_flip=True,
        validation_split=0.2,
    )
    return tuple(
        generator.flow_from_directory(folder, SIZE, batch_size=batch_size, class_mode="binary", subset=subset)
        for subset in ("training", "validation")
    )


def notebook(folder: str, grid: dict) -> list[float]:
    """One combination after another, in one process."""
    import tensorflow as tf

    best = []
    for values in itertools.product(*grid.values()):
        config = dict(zip(grid, values, strict=True))
        tf.keras.backend.clear_session()
        training, validation = flows(folder, config["batch_size"])
        model = network(config["dropout"], config["l2"])
        history = model.fit(training, epochs=config["epochs"], validation_data=validation, verbose=0).history
        best.append(history["val_accuracy"][-1])
    return best


def ray_asha(folder: str, grid: dict) -> dict:
    """The same as ray-tune with ASHA, which stops all but the best third after 3 and 9 epochs. Returns the winner."""
    from ray.tune.schedulers import ASHAScheduler

    (epochs,) = grid["epochs"]
    scheduler = ASHAScheduler(metric="val_accuracy", mode="max", max_t=epochs, grace_period=3, reduction_factor=3)
    best = _run_tune(folder, grid, scheduler).get_best_result("val_accuracy", "max", scope="last")
    return best.config


def ray_tune(folder: str, grid: dict) -> list[float]:
    """The same loop as a Tune trial, one CPU each, Tune's defaults."""
    table = _run_tune(folder, grid).get_dataframe().sort_values([f"config/{name}" for name in grid])
    return list(table.val_accuracy)


def _run_tune(folder: str, grid: dict, scheduler: object = None):
    import ray
    from ray import tune

    def train(config: dict) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        if "seed" in config:
            tf.keras.utils.set_random_seed(config["seed"])

        class Report(tf.keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
                tune.report({name: float(value) for name, value in (logs or {}).items()})

        training, validation = flows(folder, config["batch_size"])
        model = network(config["dropout"], config["l2"])
        model.fit(training, epochs=config["epochs"], validation_data=validation, verbose=0, callbacks=[Report()])

    ray.init(log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            param_space={name: tune.grid_search(values) for name, values in grid.items()},
            tune_config=tune.TuneConfig(scheduler=scheduler),
            run_config=tune.RunConfig(name="peer", storage_path=scratch, verbose=0),
        )
        return tuner.fit()


def keras_tuner(folder: str, grid: dict) -> list[float]:
    """GridSearch over a good tf.data pipeline: parallel decode, augmentation layers, prefetch."""
    return [float(trial.score) for trial in _run_keras_tuner(folder, grid, "GridSearch").oracle.trials.values()]


def hyperband(folder: str, grid: dict) -> dict:
    """KerasTuner's Hyperband over the same pipeline. Returns the winner."""
    return _run_keras_tuner(folder, grid, "Hyperband").get_best_hyperparameters()[0].values


def _run_keras_tuner(folder: str, grid: dict, kind: str):
    import keras_tuner as kt
    import tensorflow as tf

    layers, auto = tf.keras.layers, tf.data.AUTOTUNE
    parts: dict[str, list[tuple[str, float]]] = {"training": [], "validation": []}
    for label, name in enumerate(sorted(os.listdir(folder))):
        files = sorted(str(path) for path in (Path(folder) / name).iterdir())
        cut = int(0.2 * len(files))
        parts["validation"] += [(path, float(label)) for path in files[:cut]]
        parts["training"] += [(path, float(label)) for path in files[cut:]]
    augment = tf.keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(20 / 360, fill_mode="nearest"),
            layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
        ]
    )

    def decode(path, label):
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), 3), SIZE, method="nearest"), label

    def dataset(part: str, batch_size: int) -> tf.data.Dataset:
        paths, labels = zip(*parts[part], strict=True)
        chain = tf.data.Dataset.from_tensor_slices((list(paths), list(labels)))
        if part == "training":
            chain = chain.shuffle(len(paths))
        chain = chain.map(decode, num_parallel_calls=auto).batch(batch_size)
        if part == "training":
            chain = chain.map(lambda x, y: (augment(x, training=True), y), num_parallel_calls=auto)
        return chain.prefetch(auto)

    class Grid(kt.HyperModel):
        def build(self, hp):
            for name in ("batch_size",) if kind == "Hyperband" else ("batch_size", "epochs"):
                hp.Choice(name, grid[name])
            rates = {name: hp.Choice(name, grid[name]) for name in ("dropout", "l2")}
            return network(**rates, front=(layers.Rescaling(1 / 255),))

        def fit(self, hp, model, *args, **kwargs):
            if kind == "Hyperband":
                given = {name: kwargs[name] for name in ("callbacks", "epochs", "initial_epoch")}
            else:
                given = {"callbacks": kwargs["callbacks"], "epochs": hp.get("epochs")}
            return model.fit(
                dataset("training", hp.get("batch_size")),
                validation_data=dataset("validation", hp.get("batch_size")),
                verbose=0,
                **given,
            )

    with tempfile.TemporaryDirectory() as scratch:
        budget = {"max_epochs": max(grid["epochs"]), "factor": 3} if kind == "Hyperband" else {}
        tuner = getattr(kt, kind)(Grid(), objective="val_accuracy", directory=scratch, project_name="peer", **budget)
        tuner.search(verbose=0)
        return tuner


if __name__ == "__main__":
    which, folder, grid = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    began = time.perf_counter()
    run = {
        "notebook": notebook,
        "ray-tune": ray_tune,
        "ray-asha": ray_asha,
        "keras-tuner": keras_tuner,
        "hyperband": hyperband,
    }[which]
    found = run(folder, grid)
    said = {"winner": found} if isinstance(found, dict) else {"val_accuracy": found}
    print(json.dumps({"peer": which, "wall_s": round(time.perf_counter() - began, 1), **said}))
