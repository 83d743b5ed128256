"""The forecast of --plan against a run of the same grid: python tests/benchmarks/bench_forecast.py, on a quiet machine.

Calibrates, forecasts, runs, and ends with status 1 where the forecast is off by more than a quarter. About 3 minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from orchestrator.driver.calibrate import read_pace
from orchestrator.plans.forecast import outlook

GRIDS = {
    "one axis": ["--set", "grid={batch_size: [5, 10, 32, 64], epochs: [6]}"],
    "two axes, shared epochs": ["--set", "grid={batch_size: [8, 16, 48], dropout: [0.0, 0.5], epochs: [4, 8]}"],
    "bfloat16": ["--set", "grid={batch_size: [10, 32], l2: [0.0, 0.01], precision: [mixed_bfloat16], epochs: [10]}"],
}


def main() -> int:
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ORCHESTRATOR_CACHE_DIR"] = f"{folder}/cache"
        subprocess.run([sys.executable, "-m", "orchestrator.calibrate"], check=True)
        pace = read_pace()
        for name, arguments in GRIDS.items():
            line = [sys.executable, "-m", "orchestrator.grid", "--set", "data.image_size=64", *arguments]
            line += ["--output", f"{folder}/{name}"]
            planned = subprocess.run([*line, "--plan", "--json"], check=True, capture_output=True, text=True)
            trials_s = [trial["forecast_s"] for trial in json.loads(planned.stdout)["trials"]]
            slots = os.cpu_count() or 1
            _, hours, _ = next(outlook(trials_s, slots, pace, 1200, None))
            began = time.monotonic()
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            took_s = time.monotonic() - began
            off = hours * 3600 / took_s - 1
            worst = max(worst, abs(off))
            print(f"{name}: forecast {hours * 3600:.1f} s, measured {took_s:.1f} s, off by {off:+.0%}", flush=True)
    return int(worst > 0.25)


if __name__ == "__main__":
    sys.exit(main())
