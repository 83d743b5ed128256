"""Context: all that the trials of a run share, as it travels to the workers."""

from dataclasses import dataclass

from orchestrator.data.index import Index
from orchestrator.run.folder import KeepModels, Run
from orchestrator.spec.sections import Spec
from orchestrator.store import Store


@dataclass(frozen=True)
class WorkerContext:
    """All that the trials of a run share; crosses the network once per node.

    Attributes:
        images: Where the index was listed.
        keep: Which models the workers write.
        models_only: The trials are done, and are trained again for their models: results and checkpoints stay.
    """

    spec: Spec
    index: Index
    images: Store
    run: Run
    keep: KeepModels = KeepModels.none
    models_only: bool = False
