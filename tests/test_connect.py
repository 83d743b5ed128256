"""connect: how many trials fit on a cluster, node by node."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import ray

from orchestrator.cluster import connect, patches
from orchestrator.cluster.connect import room
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Resources


def node(cpus: float, gpus: float = 0, group: str = "") -> dict[str, dict]:
    """As ray.nodes() has it. group: what the autoscaler calls nodes that it started."""
    has = {name: count for name, count in (("CPU", cpus), ("GPU", gpus)) if count}
    return {"Resources": has, "Labels": {"ray.io/node-group": group} if group else {}}


@pytest.mark.parametrize(
    ("nodes", "to_come", "trial", "fit"),
    [
        ([node(4), node(4)], {}, (1, 0), (8, 8)),
        ([node(3), node(3)], {}, (2, 0), (2, 2)),  # three by the sum
        ([node(8, 1), node(8, 1)], {}, (1, 0.25), (8, 8)),
        ([node(0)], {"nodes": 3, "CPU": 4}, (2, 0), (0, 6)),
        ([node(0, group="headgroup")], {}, (2, 0), (0, 0)),  # the autoscaler may bring some, nobody knows of which size
    ],
)
def test_a_trial_fits_on_one_node(nodes: list, to_come: dict, trial: tuple[int, float], fit: tuple[int, int]) -> None:
    """Not on the rest of several. Now, and once all nodes are there."""
    assert room(nodes, to_come, *trial) == fit


@pytest.mark.parametrize(
    ("nodes", "to_come", "trial", "says"),
    [
        ([node(4), node(4)], {}, (8, 0), "a node with 8 CPUs, and the largest of this cluster has 4 CPUs: lower"),
        ([node(8, 1), node(8, 1)], {}, (1, 2), "a node with 1 CPU and 2 GPUs, and the largest of this cluster has 8 "),
        ([node(0)], {"nodes": 3, "CPU": 4}, (8, 0), "a node with 8 CPUs, and the largest of this cluster has 4 CPUs"),
        ([node(2), node(2, group="")], {}, (3, 0), "a node with 3 CPUs, and the largest of this cluster has 2 CPUs"),
    ],
)
def test_what_fits_on_no_node_is_refused(nodes: list, to_come: dict, trial: tuple[int, float], says: str) -> None:
    """Ray would wait for such a node for ever, in silence."""
    with pytest.raises(BadInput, match=says):
        room(nodes, to_come, *trial)


def test_only_workers_of_a_cluster_are_handed_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two a notebook's kernel trained on before. AWS keys are never in it: Ray would log them."""
    from ray.tune.execution.class_cache import _ActorClassCache

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")

    def handed_on(is_own: bool) -> dict[str, str]:
        patches.prepare_tune(2, is_own)
        actor = _ActorClassCache().get(type("Trainable", (), {}))
        return dict(actor._default_options["runtime_env"].get("env_vars") or {})

    assert handed_on(is_own=True) == {}
    found = handed_on(is_own=False)
    assert found["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
    assert "AWS_ACCESS_KEY_ID" not in found
    assert handed_on(is_own=True) == {}


@pytest.mark.parametrize("by_ctrl_c", [False, True], ids=["in time", "until Ctrl-C"])
def test_a_head_that_lets_nobody_join_ends_no_process(monkeypatch: pytest.MonkeyPatch, by_ctrl_c: bool) -> None:
    """A notebook's kernel gets an exception and goes on; joined after all, it would use a Ray that nobody asked for."""
    joins, over = threading.Event(), threading.Event()

    def init(**_: object) -> None:
        if by_ctrl_c:
            os.kill(os.getpid(), signal.SIGINT)
        joins.wait()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", over.set)
    monkeypatch.setattr(connect, "wait_for", lambda address: None)
    monkeypatch.setattr(connect, "_JOIN_S", 60 if by_ctrl_c else 0.1)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")

    def join() -> None:
        with connect.connect(Resources()):
            pass

    with pytest.raises(KeyboardInterrupt if by_ctrl_c else BadInput) as ended:
        join()
    assert by_ctrl_c or str(ended.value).endswith("10.0.0.5:6379 has not let this command join within 0.1 s")
    with pytest.raises(BadInput, match=r"still asked: wait a minute"):
        join()
    joins.set()
    assert over.wait(10)


@pytest.mark.parametrize(
    "loopback", ["true", "ip link set lo up; ip addr del 127.0.0.1/8 dev lo"], ids=["none", "IPv6"]
)
def test_a_machine_without_127_0_0_1_is_told_at_once(loopback: str) -> None:
    """Ray would try for fourteen minutes, or tell of a file that is not there."""
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, loopback], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare and ip, and leave to make a network namespace")
    code = "from orchestrator.cluster.own_ray import settings; settings(1)"
    command = f"{loopback}; {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    ran = subprocess.run([*alone, command], capture_output=True, text=True, timeout=60, check=False)
    said = r"BadInput: Ray must reach 127\.0\.0\.1 to start here, and this machine does not \(.*\): bring it up"
    assert re.search(said, ran.stderr.splitlines()[-1])
