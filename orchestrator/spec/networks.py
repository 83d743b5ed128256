"""Networks: what the trials of a spec are made of, and the lines of a trial's id that say so. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.spec.axes import AXIS_PATHS, Settings, axis_path
from orchestrator.spec.backbones import Pretrained
from orchestrator.spec.code import Code


@dataclass(frozen=True)
class Networks:
    """What the trials of a spec are made of.

    Attributes:
        codes: Model -> its code, for each that some point trains.
        backbones: Name -> what was found of it, for each that some point has.
        folder: Where the model's module lies, if neither in the current folder, to which it may be relative, nor among
            the installed packages.
    """

    codes: Mapping[str, Code] = field(default_factory=dict)
    backbones: Mapping[str, Pretrained] = field(default_factory=dict)
    folder: str = "."

    def backbone(self, settings: Settings) -> Pretrained | None:
        """The backbone of a trial with these settings."""
        return self.backbones[settings.backbone.name] if settings.backbone else None

    def lines(self, settings: Settings, axes: Collection[str]) -> dict[str, Any]:
        """`section.field` -> value, for all that decides on the network of a trial, except the axes themselves."""
        code = self.codes[settings.model]
        found: dict[str, Any] = {"model": settings.model, "model source": code.digest}
        defaults = {name: value for name, value in code.defaults.items() if name not in (*axes, *AXIS_PATHS)}
        found |= {axis_path(name): value for name, value in defaults.items()}
        return found | self.backbone_lines(settings)

    def backbone_lines(self, settings: Settings) -> dict[str, Any]:
        """Those of the backbone alone; none where there is none."""
        backbone = settings.backbone
        if backbone is None:
            return {}
        pretrained = self.backbones[backbone.name]
        found = {f"backbone.{name}": getattr(backbone, name) for name in ("layer", "pooling", "views", "unfreeze")}
        return found | {"backbone": pretrained.identity, "backbone.preprocessing": pretrained.preprocessing}
