"""Stop signal: an actor on the driver's node, which tells workers in mid-epoch to stop.

It also carries the driver's AWS keys to them. Its process imports this file, so this file imports little.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from orchestrator.cluster import patches

# isort: split
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STOP_S = 8.0  # how long workers may take to write their last checkpoints


class StopSignal:
    """The actor. Its answers are small, so they stay in memory; the object store may write what it holds to a disk."""

    def __init__(self, aws_keys: dict[str, str]) -> None:
        self._answered, self._stop, self._aws_keys = asyncio.Event(), False, aws_keys

    async def aws_keys(self) -> dict[str, str]:
        return self._aws_keys

    async def stopping(self) -> bool:
        """Returns once `answer` was called: whether workers are to stop."""
        await self._answered.wait()
        return self._stop

    async def answer(self, stop: bool) -> None:
        """stop: once True, it stays so."""
        self._stop = self._stop or stop
        self._answered.set()


class RaisedSignal(NamedTuple):
    """What the driver has of a running StopSignal.

    stopping, aws_keys: Ray's references to what those methods return. Workers read them; `stopping` is not ready yet.
    """

    actor: Any
    stopping: Any
    aws_keys: Any

    def stop_workers(self) -> None:
        self.actor.answer.remote(True)


@contextlib.contextmanager
def stop_signal(kill: threading.Event) -> Iterator[RaisedSignal]:
    """Run a StopSignal on this node. At the end workers are told to stop, unless `kill` is set."""
    aws_keys = {name: os.environ[name] for name in patches.AWS_KEYS if name in os.environ}
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    restarts = {"max_restarts": -1, "max_task_retries": -1}  # without them its death would look like a stop to workers
    actor: Any = ray.remote(StopSignal).options(num_cpus=0, scheduling_strategy=here, **restarts).remote(aws_keys)
    raised = RaisedSignal(actor, actor.stopping.remote(), actor.aws_keys.remote())
    try:
        yield raised
    finally:  # Ray would make an open call again as it ends, and complain on stderr
        calls = [raised.stopping, raised.aws_keys, actor.answer.remote(not kill.is_set())]
        if ray.wait(calls, num_returns=len(calls), timeout=5)[1]:
            patches.abandon_ray()
