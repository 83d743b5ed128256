"""Features: which features of which backbone the trials of a plan need. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.plans.forecast import Pace, backbone_image_s
from orchestrator.plans.trials import Trial
from orchestrator.spec.axes import AXIS_PATHS, resolve
from orchestrator.spec.backbones import Pretrained, views
from orchestrator.spec.sections import Spec


@dataclass(frozen=True, slots=True)
class FeatureView:
    """The features of one view of all images.

    Attributes:
        id: See spec.backbones.View.
        pixels: Which ones the backbone takes, and why that is thought.
        width: Features of an image; None where only Keras can say.
        core_s: Forecast of the seconds that one core takes to make them.
    """

    id: str
    backbone: str
    pixels: str
    image_size: tuple[int, int]
    images: int
    width: int | None
    core_s: float

    @property
    def size_bytes(self) -> int | None:
        """On the disk of each node, and in the run folder."""
        return None if self.width is None else 4 * self.width * self.images


def feature_views(
    trials: Iterable[Trial], spec: Spec, backbones: Mapping[str, Pretrained], index: tuple[str, int], pace: Pace
) -> tuple[FeatureView, ...]:
    """Every view that some trial needs, or the frozen one from which it branches. index: its digest, and its images."""
    deciding = [name for name, (section, _) in AXIS_PATHS.items() if section in ("augment", "backbone")]
    deciding = [name for name in (*deciding, "image_size") if name in spec.axes and name != "unfreeze"]
    found: dict[str, FeatureView] = {}
    for values in {tuple(trial.values[name] for name in deciding): trial.values for trial in trials}.values():
        settings = resolve(spec, {name: values[name] for name in deciding})
        if (backbone := settings.backbone) is None:
            continue
        pretrained, size = backbones[backbone.name], settings.data.image_size
        core_s = index[1] * backbone_image_s(pretrained, size, pace)
        pixels = f"pixels {pretrained.preprocessing}, {pretrained.says}"
        width = None if backbone.pooling == "flatten" else pretrained.features
        for view in views(settings, pretrained, index[0]):
            found[view.id] = FeatureView(view.id, backbone.name, pixels, size, index[1], width, core_s)
    return tuple(found.values())
