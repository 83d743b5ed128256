"""Context: everything that the trials of a run share, as it is sent to the workers, and how a trial answers. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.data.backbone import WeightsFile
from orchestrator.data.index import Index
from orchestrator.runs.folder import KeepModels, Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.spec.networks import Networks
from orchestrator.spec.sections import Spec
from orchestrator.store import Store


@dataclass(frozen=True)
class WorkerContext:
    """Everything that the trials of a run share; sent once to each node.

    Attributes:
        images: The store that the index lists.
        weights: File of each backbone whose weights Keras does not fetch, by name.
        keep: Which models the workers write.
        samples: Axis values of the points whose changed images people may look at; see plans.points.samples.
        models_only: The trials are done and are trained again only for their models: results and checkpoints stay.
    """

    spec: Spec
    index: Index
    images: Store
    run: Run
    keep: KeepModels = KeepModels.none
    models_only: bool = False
    networks: Networks = field(default_factory=Networks)
    weights: Mapping[str, WeightsFile] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Reporter:
    """How a trial tells of itself while it is trained.

    Attributes:
        preparing: Called while features are made: of what, how many images of how many are done, and how many of these
            were made now.
        ready: Called before the first step with what this node cannot read, row of the index -> reason, and with how
            many epochs are done, the share of one at work included.
        epoch: Called after each epoch.
        stopping: Asked about once a second; where it says so, the trial writes its state and stops.
        say: Called with a line that a person should read, from any thread.
        reached: Called at each milestone but the last, with the result up to there; again where a trial goes on.
    """

    preparing: Callable[[str, int, int, int], None] = lambda what, done, images, made: None
    ready: Callable[[dict[int, str], float], None] = lambda unreadable, epochs_done: None
    epoch: Callable[[Epoch], None] = lambda epoch: None
    stopping: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = print
    reached: Callable[[Result], None] = lambda result: None
