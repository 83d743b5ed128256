"""One grid with and without a pretrained network: python tests/benchmarks/bench_backbone.py FILE FOLDER.

FILE: a .keras file with a backbone, which says its image size. FOLDER: images as <class>/<image>. The same points

    features     by this program, with `backbone: FILE`
    in-model     by this program, with the backbone, frozen, in a model function, as one would without `backbone`
    small_cnn    by this program, with its small network at 64 x 64
    keras-tuner  by KerasTuner, with the backbone, frozen, in its model, over tf.data

each a process from empty caches to its end. Prints wall times, their ratios to the first, and validation accuracies.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

GRID = {"batch_size": [16, 64], "dropout": [0.0, 0.5], "l2": [0.0, 0.001]}
MODEL = """
import keras


def frozen(input_shape, classes, dropout=0.0, l2=0.0):
    backbone = keras.saving.load_model({file!r}, compile=False)
    backbone.trainable = False
    image = keras.Input(input_shape)
    x = keras.layers.Rescaling({scale}, offset={offset})(image)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x, training=False))
    x = keras.layers.Dropout(dropout)(x)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    x = keras.layers.Dense(units, activation=activation, kernel_regularizer=keras.regularizers.L2(l2))(x)
    return keras.Model(image, x)
"""
KEEPS = {"-1..1": (2.0, -1.0), "0..1": (1.0, 0.0), "0..255": (255.0, 0.0)}  # as this program takes the file's pixels


def image_size(file: str) -> list[int]:
    """Height and width that a backbone's file names; 128 if it takes any."""
    with zipfile.ZipFile(file) as parts:
        layers = json.loads(parts.read("config.json"))["config"]["layers"]
    shape = layers[0]["config"].get("batch_shape") or [None, None, None, 3]
    return [side or 128 for side in shape[1:3]]


def preprocessing(file: str) -> str:
    """Which pixels this program gives a backbone's file."""
    from orchestrator.data.backbone import find_networks
    from orchestrator.spec.reading import load_spec

    spec = load_spec(json.dumps({"name": "a", "data": {"uri": "."}, "grid": {"epochs": [1]}, "backbone": file}))
    return find_networks(spec)[0].backbones[file].preprocessing


def run(command: list[str], **env: str) -> tuple[float, str]:
    """Wall seconds of a process, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return time.perf_counter() - began, done.stdout


def ours(folder: Path, grid: dict, *sets: str, model_folder: str = "") -> tuple[float, list[float]]:
    """This program: wall seconds, and the points' validation accuracies. sets: PATH=VALUE."""
    with tempfile.TemporaryDirectory() as scratch:
        args = ["--data", str(folder), "--output", scratch, "--json", "--set", f"grid={json.dumps(grid)}"]
        args += ["--set", "augment={}", *(part for each in sets for part in ("--set", each))]
        path = os.pathsep.join(filter(None, [model_folder, os.environ.get("PYTHONPATH", "")]))
        env = {"ORCHESTRATOR_CACHE_DIR": f"{scratch}/cache", "PYTHONPATH": path}
        wall_s, printed = run([sys.executable, "-m", "orchestrator.grid", *args], **env)
        return wall_s, [row["val_accuracy"] for row in json.loads(printed)["rows"]]


def keras_tuner(file: str, folder: Path, grid: dict, mode: str) -> tuple[float, list[float]]:
    job = {"file": file, "folder": str(folder), "grid": grid, "size": image_size(file), "keep": KEEPS[mode]}
    peer = str(Path(__file__).with_name("peer_backbone.py"))
    wall_s, printed = run([sys.executable, peer, json.dumps(job)])
    return wall_s, json.loads(printed.strip().splitlines()[-1])["val_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 20])
    variants = ["features", "in-model", "small_cnn", "keras-tuner"]
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    args = parser.parse_args()
    file = os.path.abspath(args.file)
    mode = preprocessing(file)
    grid, size = {**GRID, "epochs": args.epochs}, image_size(file)
    rows: list[tuple[str, float, list[float]]] = []
    for variant in args.variants:
        if variant == "features":
            row = ours(args.folder, grid, f"backbone={file}", f"data.image_size={size}")
        elif variant == "in-model":
            with tempfile.TemporaryDirectory() as folder:
                scale, offset = KEEPS[mode]
                (Path(folder) / "with_backbone.py").write_text(MODEL.format(file=file, scale=scale, offset=offset))
                sets = ("model=with_backbone:frozen", f"data.image_size={size}")
                row = ours(args.folder, grid, *sets, model_folder=folder)
        elif variant == "small_cnn":
            row = ours(args.folder, grid, "data.image_size=64")
        else:
            row = keras_tuner(file, args.folder, grid, mode)
        rows.append((variant, *row))
        print(f"{variant:<12}{row[0]:>8.1f} s", flush=True)
    images = sum(1 for path in args.folder.rglob("*") if path.is_file())
    print(
        f"\n{len(rows[0][2])} points {json.dumps(grid)}, {images} images, {size[0]}x{size[1]}, {os.cpu_count()} cores"
    )
    for name, wall_s, scores in rows:
        accuracies = f"val_accuracy {min(scores):.4f} to {max(scores):.4f}"
        print(f"{name:<12}{wall_s:>8.1f} s {wall_s / rows[0][1]:>6.1f}x   {accuracies}")


if __name__ == "__main__":
    main()
