"""The page docs/speed.md, from what bench_limit.py measured. Pure: nothing is measured here."""

import math
import statistics
import textwrap
from collections.abc import Sequence

PAGE = """\
# Speed: how near to what the machine can do

{machine}

- **Floor**: no program that gives the same answer takes less. The arithmetic of all training and validation, at the
  speed of products of large matrices on all cores; every image read once, at the speed of plain reads; and the start of
  Ray and of one TensorFlow for each core, all at once.
- **Bare**: what this network could reach. The same, but in place of the arithmetic its own step in a loop, on one batch
  that never changes (the faster of two times); and every image decoded once. Convolutions of 3 or 32 channels, pooling
  and Adam are far from the speed of large matrices.
- **We take**: the whole command, from enter to the verdict, with empty caches where nothing else is said. The median of
  {repeats} runs, and the least and the most.

{limits}

## The same answer from others

Each a whole process, once, in the same run of the benchmark; the accuracies are of one seed.

{peers}

## What the floors are made of

{made_of}

- **Peak**: {float32:,.0f} GFLOP/s in float32{bfloat16}: the best of six products of matrices of 1,024 and 2,048 rows
  in TensorFlow, in {cores} processes of one thread at once.
- **Reads**: {read:,.0f} MB/s from a folder with 8 threads, from the system's memory.
- **Start**: Ray and TensorFlow at once {start}, of which the fastest counts. Alone:
  `import tensorflow` {tensorflow}, `ray.init` and `ray.shutdown` {ray}.
- **Arithmetic**: of convolutions and dense layers, backward as twice forward without the gradient of the images, for
  the epochs that were trained: points that differ only in epochs share them. Pooling, augmentation, Adam and metrics
  are not counted.

## On what

{on_what}

One part again: `make bench-limit ARGS="race"`. Another backbone or other images: `make bench-limit BACKBONE=FILE
DATA=FOLDER`. The others alone: `tests/benchmarks/peers.py` and `tests/benchmarks/peer_backbone.py` say how.
"""
PARTS = ("grid", "race", "features")


def write_page(found: dict[str, dict]) -> str:
    """The page, from the parts that there are: `machine`, and at least one of the others."""
    peaks, about = found["machine"], found["machine"]["machine"]
    bfloat16, rows = peaks["mixed_bfloat16"], _rows(found)
    return PAGE.format(
        machine=_wrapped(
            f"`make bench-limit` wrote this page on {about['cores']} cores ({about['processor']}, with "
            f"{', '.join(about['features'])}) and {', '.join(f'{n} {v}' for n, v in about['versions'].items())}. Other "
            "machines have other figures, and other ratios."
        ),
        cores=about["cores"],
        repeats=max((len(row["walls_s"]) for row in rows), default=0),
        limits=_table(["what", "floor", "bare", "we take", "floor / that", "bare / that"], _limits(rows, peaks)),
        peers=_table(
            ["what", "program", "takes", "as long as the first", "val_accuracy"],
            [line for name in PARTS if name in found for line in _peers(name, found[name])],
        ),
        made_of=_table(["what", "arithmetic", "images read", "start", "bare steps, decoding"], _made_of(rows, peaks)),
        float32=peaks["float32"] / 1e9,
        bfloat16=f", {bfloat16 / 1e9:,.0f} in bfloat16" if bfloat16 else " (these CPUs have no bfloat16)",
        read=peaks["read_bytes_per_s"] / 1e6,
        start=_spread(peaks["start_s"]),
        tensorflow=_spread(peaks["tensorflow_s"]),
        ray=_spread(peaks["ray_s"]),
        on_what="\n".join(
            [*(_on_what(name, found[name]) for name in PARTS if name in found), f"- machine: {_when(peaks)}."]
        ),
    )


def _rows(found: dict[str, dict]) -> list[dict]:
    return [row for name in PARTS if name in found for row in found[name]["rows"]]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, *lines]).replace(
        "\n", f"\n|{'---|' * len(head)}\n", 1
    )


def _spread(values_s: Sequence[float]) -> str:
    middle = f"{statistics.median(values_s):.1f} s"
    return f"{middle} ({min(values_s):.1f} to {max(values_s):.1f})" if len(values_s) > 1 else f"{middle}, once"


def _limits(rows: Sequence[dict], peaks: dict) -> list[list[str]]:
    lines = []
    for row in rows:
        fixed_s = row["bytes"] / peaks["read_bytes_per_s"] + min(peaks["start_s"])
        floor_s, bare_s = row["flop"] / peaks[row["precision"]] + fixed_s, row["bare_s"] + fixed_s
        took_s = statistics.median(row["walls_s"])
        shares = [f"{floor_s / took_s:.0%}", f"{bare_s / took_s:.0%}"]
        lines.append([row["what"], f"{floor_s:.1f} s", f"{bare_s:.1f} s", _spread(row["walls_s"]), *shares])
    return lines


def _made_of(rows: Sequence[dict], peaks: dict) -> list[list[str]]:
    return [
        [
            row["what"],
            f"{row['flop'] / 1e12:.2f} TFLOP: {row['flop'] / peaks[row['precision']]:.2f} s",
            f"{row['bytes'] / 1e6:.0f} MB: {row['bytes'] / peaks['read_bytes_per_s']:.2f} s",
            f"{min(peaks['start_s']):.1f} s",
            f"{row['bare_s']:.1f} s",
        ]
        for row in rows
    ]


def _peers(name: str, part: dict) -> list[list[str]]:
    if name == "features":
        mine, what = part["ours"], f"{_points(part['peers_grid'])} heads, {part['peers_grid']['epochs'][0]} epoch each"
    else:
        mine, what = part["rows"], {"grid": "the grid", "race": "a winner"}[name]
    ours = [{**row, "says": f"this, {row['what']}", "wall_s": statistics.median(row["walls_s"])} for row in mine]
    lines = []
    for each in [*ours, *part["peers"]]:
        scores = "{:.3f} to {:.3f}".format(*each["scores"]) if "scores" in each and name != "race" else ""
        ratio = each["wall_s"] / ours[0]["wall_s"]
        lines.append([what, each["says"], f"{each['wall_s']:.1f} s", f"{ratio:.1f}", scores])
    return lines


def _on_what(name: str, part: dict) -> str:
    axes = ", ".join(f"{axis} {values}" for axis, values in part["grid"].items())
    epochs = ", ".join(f"{row['epochs']} ({row['what']})" for row in part["rows"])
    backbone = f", backbone {part['backbone']}" if "backbone" in part else ""
    images = f"{part['rows'][0]['images']:,} images at {part['side']}x{part['side']}{backbone}"
    said = f"- {name}: {_points(part['grid'])} points, {axes}; {images}; epochs trained: {epochs}. {_when(part)}."
    return _wrapped(said, "  ")


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _when(part: dict) -> str:
    return f"Measured {part['when']}" + (f", commit {part['commit']}" if part["commit"] else "")


def _points(grid: dict[str, list]) -> int:
    return math.prod(len(values) for values in grid.values())
