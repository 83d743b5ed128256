"""connect: how many trials fit on a cluster, node by node."""

import pytest

from orchestrator.cluster.connect import room
from orchestrator.errors import BadInput


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
