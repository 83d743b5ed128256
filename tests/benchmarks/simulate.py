"""A run on up to 4,000 nodes, simulated: python tests/benchmarks/simulate.py. Prints tables, and draws docs/scale.svg.

Event by event: nodes boot, fill their caches from a store that answers so many requests a second on a prefix, take
trials, report to the one driver and wait until it has taken that; spot nodes vanish, their trials go on elsewhere from
the last checkpoint. What was measured and what is assumed stands in `Setting`.
"""

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.cluster.tune import REPORT_INTERVAL_S
from orchestrator.plans.forecast import FIRST_GUESS, Counts, epoch_s
from orchestrator.spec.axes import resolve
from orchestrator.spec.reading import load_spec

BUCKET_S = 10.0  # over which the peaks of requests are taken


@dataclass(frozen=True)
class Setting:
    """What is simulated. Times in seconds.

    Attributes:
        epochs: That each trial trains; an epoch takes what FIRST_GUESS, measured on one core, says for its batch size.
        trials_per_slot: How large the grid is.
        packed: The images lie in shards, of which a node reads `shard_reads` ranges; else each is a request of its own.
        reports_apart_s: Times the slots: how far apart a trial reports.
    """

    nodes: int = 1000
    slots: int = 8
    trials_per_slot: int = 4
    images: int = 25_000
    epochs: int = 40
    packed: bool = True
    loss_per_h: float = 0.05
    reports_apart_s: float = REPORT_INTERVAL_S
    # measured on 2 cores by bench_scale.py, part `driver`
    trial_s: float = 0.0042  # the driver's time for a trial beside its reports
    report_s: float = 0.00096  # for a report,
    report_slot_s: float = 0.00000032  # and for a report and each trial at work: Tune waits for all of them anew
    # measured: FIRST_GUESS
    worker_start_s: float = FIRST_GUESS.worker_start_s
    trial_start_s: float = FIRST_GUESS.trial_start_s
    fill_per_s: float = 4 / FIRST_GUESS.fill_image_s  # images that a node of 8 cores decodes: four times that of 2
    # assumed
    boot_s: float = 150.0  # from the loss of a node until its replacement has joined
    shard_reads: int = 50
    # AWS: "Best practices design patterns: optimizing Amazon S3 performance"
    reads_per_s: float = 5500.0  # on one prefix
    checkpoint_every_s: float = 60.0


@dataclass
class Attempt:
    """One try of a trial on a slot."""

    trial: int
    node: int
    left_s: float  # of training, when it began
    trained_s: float = 0.0
    until_s: float = 0.0  # when the stretch that it is in will end


class Simulation:
    """Runs one setting; `seed` decides losses and durations."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting, self.random = setting, random.Random(seed)
        self.now = self.driver_free = self.driver_busy = self.lost_s = 0.0
        self.losses = 0
        self.requests: dict[str, Counter[int]] = {}
        self.work_s = durations(setting, self.random)
        self.queue = deque(sorted(range(len(self.work_s)), key=lambda trial: -self.work_s[trial]))  # longest first
        self.left_s, self.done = list(self.work_s), 0
        self.slots = setting.nodes * setting.slots
        self.at_work: dict[int, set[int]] = {}  # node -> its attempts
        self.attempts: dict[int, Attempt] = {}
        self.numbers = itertools.count()
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.filling: list[tuple[float, int]] = []  # (reads of its own at which a node is full, node)
        self.filled, self.filled_at, self.fill_version = 0.0, 0.0, 0
        self.idle: deque[int] = deque()

    def at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), act, args))

    def run(self) -> dict[str, float]:
        for _ in range(self.setting.nodes):
            self.at(self.setting.boot_s, self.joined, next(self.numbers))
        while self.done < len(self.work_s):
            self.now, _, act, args = heapq.heappop(self.events)
            act(*args)
        total = {prefix: sum(counts.values()) for prefix, counts in self.requests.items()}
        peaks = {prefix: max(counts.values()) / BUCKET_S for prefix, counts in self.requests.items()}
        busiest = max(peaks, key=lambda prefix: peaks[prefix])
        useful_s = sum(self.work_s)
        return {
            "makespan_h": self.now / 3600,
            "ideal_h": useful_s / self.slots / 3600,
            "utilisation": useful_s / (self.slots * self.now),
            "redone": self.lost_s / (useful_s + self.lost_s),
            "losses": self.losses,
            "driver": self.driver_busy / self.now,
            "requests_per_s": sum(total.values()) / self.now,
            "peak_per_s": peaks[busiest],
            "prefix": busiest,
        }

    # --- nodes: boot, fill, vanish

    def joined(self, node: int) -> None:
        self.at_work[node] = set()
        self.at(self.now + self.random.expovariate(self.setting.loss_per_h / 3600), self.vanished, node)
        self._fill_on()
        reads = self.setting.shard_reads if self.setting.packed else self.setting.images
        heapq.heappush(self.filling, (self.filled + reads, node))
        self._fill_next()

    def _rate(self) -> float:
        """Reads a second of each node that fills its cache: all share what the prefix gives."""
        setting = self.setting
        own = setting.fill_per_s * (setting.shard_reads / setting.images if setting.packed else 1.0)
        return min(own, setting.reads_per_s / max(1, len(self.filling)))

    def _fill_on(self) -> None:
        took_s, rate = self.now - self.filled_at, self._rate()
        if self.filling and took_s:
            counts = self.requests.setdefault("images/", Counter())
            first, last = int(self.filled_at / BUCKET_S), int(self.now / BUCKET_S)
            for bucket in range(first, last + 1):
                inside_s = min(self.now, (bucket + 1) * BUCKET_S) - max(self.filled_at, bucket * BUCKET_S)
                counts[bucket] += rate * len(self.filling) * inside_s
        self.filled, self.filled_at = self.filled + took_s * rate, self.now

    def _fill_next(self) -> None:
        self.fill_version += 1
        if self.filling:
            self.at(self.now + max(0.0, self.filling[0][0] - self.filled) / self._rate(), self._full, self.fill_version)

    def _full(self, version: int) -> None:
        if version != self.fill_version:
            return
        self._fill_on()
        while self.filling and self.filling[0][0] <= self.filled + 1e-6:
            _, node = heapq.heappop(self.filling)
            self.at(self.now + self.setting.worker_start_s, self.ready, node)
        self._fill_next()

    def ready(self, node: int) -> None:
        for _ in range(self.setting.slots):
            self.free(node)

    def vanished(self, node: int) -> None:
        self.losses += 1
        self.idle = deque(each for each in self.idle if each != node)
        for number in self.at_work.pop(node):
            attempt = self.attempts.pop(number)
            trained_s = max(0.0, attempt.trained_s - max(0.0, attempt.until_s - self.now))
            kept_s = trained_s - trained_s % self.setting.checkpoint_every_s
            self.lost_s += trained_s - kept_s
            self.left_s[attempt.trial] = attempt.left_s - kept_s
            self.queue.appendleft(attempt.trial)
            if self.idle:
                self.free(self.idle.popleft())
        self._fill_on()
        self.filling = [each for each in self.filling if each[1] != node]
        heapq.heapify(self.filling)
        self._fill_next()
        self.at(self.now + self.setting.boot_s, self.joined, next(self.numbers))

    # --- trials: begin, report, end

    def free(self, node: int) -> None:
        if node not in self.at_work:
            return
        if not self.queue:
            self.idle.append(node)
            return
        trial, number = self.queue.popleft(), next(self.numbers)
        self.attempts[number] = Attempt(trial, node, self.left_s[trial])
        self.at_work[node].add(number)
        taken = self.serve(self.setting.trial_s + self.setting.report_slot_s * self.slots)
        self.at(taken + self.setting.trial_start_s, self.report, number)

    def serve(self, takes_s: float) -> float:
        """When the driver, which does one thing after the other, is done with this."""
        self.driver_free = max(self.now, self.driver_free) + takes_s
        self.driver_busy += takes_s
        return self.driver_free

    def report(self, number: int) -> None:
        """A worker tells how far it is, and goes on once the driver has taken it."""
        attempt = self.attempts.get(number)
        if attempt is None:
            return
        setting = self.setting
        taken = self.serve(setting.report_s + setting.report_slot_s * self.slots)
        rest_s = attempt.left_s - attempt.trained_s
        if rest_s <= 1e-6:
            self.at(taken, self.end, number)
            return
        epoch = self.work_s[attempt.trial] / setting.epochs
        stretch_s = min(rest_s, max(epoch, setting.reports_apart_s * self.slots))
        before, attempt.trained_s = attempt.trained_s, attempt.trained_s + stretch_s
        attempt.until_s = taken + stretch_s
        first, last = (int(s / setting.checkpoint_every_s) for s in (before, attempt.trained_s))
        for checkpoint in range(first, last):
            self.request("checkpoints/", taken + (checkpoint + 1) * setting.checkpoint_every_s - before)
        self.at(attempt.until_s, self.report, number)

    def end(self, number: int) -> None:
        attempt = self.attempts.pop(number, None)
        if attempt is None:
            return
        self.done += 1
        self.at_work[attempt.node].discard(number)
        for prefix, times in (("trials/", 1), ("events/", 1), ("models/", 9)):  # 3 files, their look-ups and deletions
            self.request(prefix, self.now, times)
        self.free(attempt.node)

    def request(self, prefix: str, when: float, times: int = 1) -> None:
        self.requests.setdefault(prefix, Counter())[int(when / BUCKET_S)] += times


def durations(setting: Setting, draws: random.Random) -> list[float]:
    """Worker seconds of each trial: batch sizes 5, 10, 16, 32 on images of 64 x 64; a tenth of it by chance."""
    grid = "batch_size: [5, 10, 16, 32]"
    spec = load_spec(f"{{name: a, data: {{uri: x}}, grid: {{{grid}}}}}")
    counts = Counts(setting.images * 4 // 5, setting.images // 5)
    epochs_s = [epoch_s(resolve(spec, {"batch_size": size}), counts) for size in spec.grid["batch_size"]]
    trials = setting.nodes * setting.slots * setting.trials_per_slot
    return [
        setting.epochs * epochs_s[trial % len(epochs_s)] * max(0.5, draws.gauss(1.0, 0.1)) for trial in range(trials)
    ]


NODES = (10, 30, 100, 300, 1000, 2000, 4000)
VARIANTS = {
    "as it is: shards, reports 0.02 s x slots apart": Setting(),
    "each epoch reported at once": Setting(reports_apart_s=0.0),
    "images as single objects": Setting(packed=False),
    "trials of 4 epochs": Setting(epochs=4, trials_per_slot=40),
}


def main() -> None:
    found = {}
    for name, setting in VARIANTS.items():
        print(f"\n{name}")
        print(
            f"{'nodes':>6}{'trials':>11}{'hours':>8}{'ideal':>8}{'used':>7}{'redone':>8}{'nodes lost':>12}"
            f"{'driver':>8}{'requests/s':>12}{'peak/s':>8}  on"
        )
        for nodes in NODES:
            each = found[name, nodes] = Simulation(replace(setting, nodes=nodes)).run()
            trials = nodes * setting.slots * setting.trials_per_slot
            print(
                f"{nodes:>6,}{trials:>11,}{each['makespan_h']:>8.2f}{each['ideal_h']:>8.2f}{each['utilisation']:>7.0%}"
                f"{each['redone']:>8.2%}{each['losses']:>12,}{each['driver']:>8.0%}{each['requests_per_s']:>12.0f}"
                f"{each['peak_per_s']:>8.0f}  {each['prefix']}",
                flush=True,
            )
    draw(found)


def draw(found: dict[tuple[str, int], dict[str, float]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scale", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    for axis, what, title in zip(
        axes, ("utilisation", "driver"), ("worker time spent training", "the driver's time in use"), strict=True
    ):
        for name in VARIANTS:
            axis.plot(NODES, [100 * found[name, nodes][what] for nodes in NODES], marker="o", markersize=4, label=name)
        axis.set(xscale="log", xlabel="nodes of 8 slots", title=title, ylim=(0, 104))
        axis.yaxis.set_major_formatter("{x:.0f}%")
        axis.set_xticks(NODES, [f"{nodes:,}" for nodes in NODES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(Path(__file__).parents[2] / "docs" / "scale.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
