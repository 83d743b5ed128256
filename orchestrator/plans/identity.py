"""Identity: the hash of everything that decides a trial's weights. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts
from orchestrator.spec.axes import Settings, axis_path, canonical, changes_nothing, resolve
from orchestrator.spec.networks import Networks
from orchestrator.spec.presets import left_to_preset
from orchestrator.spec.schedules import DEPEND_ON_THE_END, check_momentum, idle_fields, stable_epochs
from orchestrator.spec.sections import Spec, is_streamed

_FINE_TUNE = "train.fine_tune_learning_rate"
_DECAY = "train.decay_share"
# Axes that decide what kind of trial it is
_OF_KIND = (
    *("backbone", "unfreeze", "image_size", "training_images"),
    *("preset", "mixup", "cutmix"),
    *("schedule", "optimizer", "momentum", "weight_decay"),
)
# The trial itself, the frozen one from which it branches, or the stable part that it shares with longer ones
Part = Literal["whole", "frozen", "stable"]
_IN_KIND = ("epochs", "backbone", "unfreeze", "preset")  # axes that do not stand in the hash as they are


@dataclass(frozen=True)
class _Kind:
    """What trials of one network, one data set and one schedule have in common.

    Attributes:
        settings: Theirs, but for the axes that are not in _OF_KIND.
        lines: What they add to the hash. idle: fields that change nothing for them.
    """

    settings: Settings
    lines: Mapping[str, str]
    idle: frozenset[str]

    @property
    def unfreezes(self) -> bool:
        return bool(self.settings.backbone and self.settings.backbone.unfreeze)

    @property
    def is_alone(self) -> bool:
        """Whether a longer trial has other weights after as many epochs."""
        return self.unfreezes or self.settings.train.schedule in DEPEND_ON_THE_END


class TrialHashes:
    """Hashes of everything that decides a trial's weights; points that share a trial share its hash."""

    def __init__(
        self, spec: Spec, counts: Counts, shared: Mapping[str, Any], networks: Networks, share_epochs: bool
    ) -> None:
        self._spec, self._counts, self._networks, self._share_epochs = spec, counts, networks, share_epochs
        self._paths = {name: axis_path(name) for name in spec.axes}
        self._fixed = {path: canonical(value) for path, value in shared.items()}
        self._made: dict[tuple[Any, ...], Any] = {}
        self._kinds: dict[tuple[Any, ...], _Kind] = {}

    def of(
        self,
        values: Mapping[str, Any],
        texts: Mapping[str, str],
        draw: tuple[int, int],
        epochs: int,
        part: Part = "whole",
    ) -> Any:
        """The hash of the trial that has these values. texts: the values in canonical form. draw: its seed and fold.

        part: `frozen` is the same but unfreezes nothing; `stable` is the same however long it is.
        """
        kind = self._kind({**values, "unfreeze": 0} if part == "frozen" else values)
        alone = None if part == "stable" or (self._share_epochs and not kind.is_alone) else epochs
        key = (*(text for name, text in texts.items() if name != "epochs"), draw, alone, part)
        found = self._made.get(key)
        if found is None:
            own = {self._paths[name]: text for name, text in texts.items() if name not in _IN_KIND}
            if not kind.unfreezes:
                own.pop(_FINE_TUNE, None)
            own = {**self._fixed, **own, **kind.lines, "seed": str(draw[0])} | ({"alone": str(alone)} if alone else {})
            idle = kind.idle | ({_DECAY} if part == "stable" else set())
            own = {path: text for path, text in own.items() if path not in idle}
            own |= {"fold": str(draw[1])} if self._spec.data.folds else {}
            lines = sorted(f"{path}={text}" for path, text in own.items() if not changes_nothing(path, text))
            found = self._made[key] = hashlib.sha256("\n".join(lines).encode())
        return found

    def of_frozen(self, values: Mapping[str, Any], draw: tuple[int, int], epochs: int) -> str | None:
        """Id of the trial from which the one with these values branches; None where it starts from nothing."""
        if not self._kind(values).unfreezes:
            return None
        texts = {name: canonical(value) for name, value in values.items()}
        return short(self.of(values, texts, draw, epochs, "frozen"))

    def of_stable(self, values: Mapping[str, Any], draw: tuple[int, int], epochs: int) -> tuple[str, int] | None:
        """Id of the stable part of the trial with these values, and its epochs; None where it has none to share."""
        kind = self._kind(values)
        if kind.settings.train.schedule != "wsd" or kind.unfreezes or not self._share_epochs or self._spec.race:
            return None
        texts = {name: canonical(value) for name, value in values.items()}
        until = stable_epochs(resolve(self._spec, values).train, epochs)
        return (short(self.of(values, texts, draw, epochs, "stable")), until) if until else None

    def _kind(self, values: Mapping[str, Any]) -> _Kind:
        key = tuple(values.get(name) for name in _OF_KIND)
        if key not in self._kinds:
            settings = resolve(self._spec, {name: values[name] for name in _OF_KIND if name in values})
            self._check(settings)
            check_momentum(settings.train)
            lines = self._networks.lines(settings, self._spec.axes)
            # streamed shards are shuffled in windows, so that such a trial gets other weights
            images = self._counts.images
            if self._counts.packed and is_streamed(settings.data, images):
                lines["streamed"] = True
            lines |= {f"augment.{name}": getattr(settings.augment, name) for name in left_to_preset(self._spec)}
            texts = {path: canonical(value) for path, value in lines.items()}
            idle = frozenset(f"train.{name}" for name in idle_fields(settings.train))
            self._kinds[key] = _Kind(settings, texts, idle)
        return self._kinds[key]

    def _check(self, settings: Settings) -> None:
        size, images = settings.data.image_size, settings.data.training_images
        if settings.backbone and min(size) < (side := self._networks.backbones[settings.backbone.name].least_side):
            raise BadInput(
                f"image_size must be at least [{side}, {side}] for the backbone {settings.backbone.name}, got {[*size]}"
            )
        if images is not None and images > self._counts.training:
            raise BadInput(
                f"training_images must be at most {self._counts.training}, as so many images train, got {images}"
            )
        self._check_mixing(settings)

    def _check_mixing(self, settings: Settings) -> None:
        augment, backbone = settings.augment, settings.backbone
        if augment.cutmix and backbone:
            raise BadInput(
                f"cutmix must be 0 with a backbone, whose features have no place to put a box, got {augment.cutmix:g}: "
                f"use mixup"
            )
        reads_shards = self._counts.packed and (not backbone or backbone.unfreeze)
        if (augment.mixup or augment.cutmix) and reads_shards and is_streamed(settings.data, self._counts.images):
            name, value = ("mixup", augment.mixup) if augment.mixup else ("cutmix", augment.cutmix)
            raise BadInput(
                f"{name} must be 0 where shards are streamed, as no second image can be read with each, got {value:g}: "
                f"raise data.cache_limit_gb, so that nodes keep the decoded images"
            )


def short(digest: Any) -> str:
    """A hash as an id: 12 hex digits."""
    return digest.hexdigest()[:12]
