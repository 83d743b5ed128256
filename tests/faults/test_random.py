"""Any faults, in any order: what is drawn comes from a seed, and a run that fails shows it."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

from aftermath import GRID, Driver, Undisturbed, check, clean, driving, finished, hit, seed
from waiting import eventually, pause

RUN = Path("runs/shirts")


def kill_worker(driver: Driver, draw: random.Random, run: Path) -> None:
    """It goes on in another worker."""
    victims = driver.workers(at_work=draw.random() < 0.5)
    if victims:
        hit(draw.choice(victims))


def kill_driver(driver: Driver, draw: random.Random, run: Path) -> None:
    driver.kill()


def interrupt(driver: Driver, draw: random.Random, run: Path) -> None:
    """Amid imports either signal ends it at once, as SIGTERM does for half a second of the start: nothing has begun."""
    driver.send(draw.choice([signal.SIGINT, signal.SIGTERM]))
    status = driver.end()
    starting = not any("run folder" in line for line in driver.lines)
    at_once = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGABRT) if starting else ()
    assert status in (0, 130, *at_once, *by_ray(driver)), driver.out


def interrupt_twice(driver: Driver, draw: random.Random, run: Path) -> None:
    for _ in range(2):
        driver.send(signal.SIGINT)
        pause(draw.random())
    assert driver.end() in (0, 130, -signal.SIGINT, *by_ray(driver)), driver.out


def by_ray(driver: Driver) -> tuple[int, ...]:
    """Statuses of a driver that ends because a part of Ray was killed: it notices, or Ray ends it without a word."""
    return (1, 2) if driver.crippled else ()


def kill_helper(driver: Driver, draw: random.Random, run: Path) -> None:
    """Ray's own processes may die as well: the driver ends, or goes on."""
    eventually(lambda: driver.processes() or not driver.running)
    if victims := driver.processes():
        hit(draw.choice(victims))
        driver.crippled = True


def freeze(driver: Driver, draw: random.Random, run: Path) -> None:
    """All stops for a moment, and goes on."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in driver.processes():
            hit(pid, number)
        pause(draw.random())


def damage(driver: Driver, draw: random.Random, run: Path) -> None:
    """The driver dies, and one of the run's files is cut, or a bit of it turned over where a checksum would tell."""
    driver.kill()
    eventually(lambda: not driver.workers())
    files = sorted(path for path in run.rglob("*") if path.is_file() and "damaged" not in path.parts)
    if files:
        file = draw.choice(files)
        data = bytearray(file.read_bytes())
        if data and (file.suffix in (".npz", ".parquet") or file.parent.name == "trials") and draw.random() < 0.5:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            del data[draw.randint(0, len(data)) :]
        file.write_bytes(data)


FAULTS = [kill_worker, kill_driver, interrupt, interrupt_twice, kill_helper, freeze, damage]


def test_any_faults(
    quiet: Undisturbed,
    tmp_path: Path,
    env: dict[str, str],
    tries: Callable[[int], int],
    tried: Callable[[str, object, str], None],
) -> None:
    """Whatever hits a grid, and whenever: the same command in the end gives the undisturbed board."""
    draw, count, drivers = random.Random(seed()), 0, []
    while count < tries(20):
        with driving(tmp_path, *GRID, env=env) as driver:
            while driver.running and count < tries(20):
                pause(draw.uniform(0, 8))
                if driver.running:
                    fault = draw.choice(FAULTS)
                    print(f"fault {count + 1}: {fault.__name__}")
                    fault(driver, draw, tmp_path / RUN)
                    count += 1
        drivers.append(driver)
        whole = {f"{trial_id}-{result.epochs}.json" for trial_id, result in quiet.results.items()}
        if whole <= finished(tmp_path / RUN).keys():
            print("the grid is done before the faults are: its first results are taken away")
            for name in sorted(finished(tmp_path / RUN))[:3]:
                (tmp_path / RUN / "trials" / name).unlink()
                (tmp_path / RUN / "checkpoints" / f"{name.partition('-')[0]}.npz").unlink(missing_ok=True)
    status = 1
    for _ in range(2):  # a trial that was hit before it got anywhere three times has failed, and is tried again
        if status == 1:
            with driving(tmp_path, *GRID, env=env) as driver:
                status = driver.end()
            drivers.append(driver)
    for driver in drivers:
        clean(driver)
    assert status == 0, driver.out
    tried("any of these on one run folder, drawn from a seed", count, check(str(tmp_path / RUN), quiet))
