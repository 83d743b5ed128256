"""Context: everything that the trials of a run share, as it is sent to the workers. Pure."""

from dataclasses import dataclass

from orchestrator.data.index import Index
from orchestrator.run.folder import KeepModels, Run
from orchestrator.spec.sections import Spec
from orchestrator.store import Store


@dataclass(frozen=True)
class WorkerContext:
    """Everything that the trials of a run share; sent once to each node.

    Attributes:
        images: The store that the index lists.
        keep: Which models the workers write.
        models_only: The trials are done and are trained again only for their models: results and checkpoints stay.
    """

    spec: Spec
    index: Index
    images: Store
    run: Run
    keep: KeepModels = KeepModels.none
    models_only: bool = False
