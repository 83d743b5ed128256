"""Comparison: which configurations may be the best, and what choosing the first can cost. Pure.

Two figures differ by chance in two ways: other seeds would train other weights, and other images would be judged
otherwise. For the difference d between the leader and another configuration,

    images = variance over the images of their mean d over the seeds, / images       holds the independent part of seeds
    seed   = 2 * residual variance of scores, configuration x seed                   pooled over all with the most seeds
    excess = what of `seed` is more than the independent part
    for these images:           seed / seeds
    for new images too:         images + excess / seeds, and no less than that

is the variance of their mean. Folds are compared like seeds, of which each has images of its own: `seed` then holds the
images too, and as any two folds train on shared images, 1 / (folds - 1) is added to 1 / seeds.

Quantiles are Student's t, one-sided, at 95%, shared out (Bonferroni) over all ordered pairs, as the leader is whichever
chance puts first, and over the looks that a race takes. With one seed only the images count: they give an order, and no
word on other seeds.
make bench-race replays recorded grids and counts how often this is wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from orchestrator.board.estimates import Configuration, Draw, overlap, t_quantile
from orchestrator.metrics import METRICS

_ERROR = 0.05  # how often a verdict may be wrong
_MOSTLY = 0.8  # of the variance: four times the part of the seeds


@dataclass(frozen=True, slots=True)
class Compared:
    """One configuration beside the leader.

    Attributes:
        behind_by: How much better the leader is, on the seeds that both have; in units of the metric.
        error: Standard error of that, for new images and seeds; for these images where nothing is known of each, or for
            this seed where there is one. None where nothing is known at all.
        may_be_best: Whether the difference may be chance, or that of one ranked below with as many seeds may be.
    """

    behind_by: float
    error: float | None
    may_be_best: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """All configurations beside the leader, in their order; the first is the leader itself.

    Attributes:
        costs: How much worse than the best the leader may be, for new images and seeds, at 95%; None where seeds or
            images are lacking for that.
        costs_here: The same for these images and new seeds.
        by_images: Whether each image was compared. seeds: how many the leader has.
        images_share: The part of the variance, between the leader and the next, that only more images can lessen.
            None where that is not known.
    """

    each: tuple[Compared, ...]
    costs: float | None
    costs_here: float | None
    by_images: bool
    seeds: int
    images_share: float | None

    @property
    def mostly_images(self) -> bool:
        """Whether more seeds would tell little, and only more images more."""
        return self.seeds > 1 and (self.images_share or 0.0) > _MOSTLY


@dataclass(frozen=True, slots=True)
class _Chance:
    """What chance does to differences: see the head of this file. freedom: 0 where it is not known what seeds do."""

    seed: float
    excess: float
    freedom: int
    quantile: float
    by_images: bool
    overlap: float

    def error(self, leader: Configuration, other: Configuration, seeds: Sequence[Draw]) -> tuple[float, float]:
        """Standard error of their difference on these seeds, and the part of its square that is the images'."""
        images = _image_variance(leader, other, seeds) if self.by_images else 0.0
        of_mean = 1 / len(seeds) + self.overlap
        square = max(images + self.excess * of_mean, self.seed * of_mean)
        return math.sqrt(square), images / square if square else 0.0


def compare(ranked: Sequence[Configuration], metric: str, looks: int = 1) -> Comparison:
    """Compare configurations with the first. ranked: not empty, best first, those with most seeds first.

    looks: how many times a race may compare them before it ends.
    """
    leader, sign, chance = ranked[0], METRICS[metric].sign, _chance(ranked, looks)
    each, costs, costs_here, images_share = [Compared(0.0, 0.0, True)], 0.0, 0.0, None
    for other in ranked[1:]:
        common = [seed for seed in leader.scores if seed in other.scores]
        alike = [leader.scores[s] - other.scores[s] for s in common] or [leader.score.mean - other.score.mean]
        lead = sign * math.fsum(alike) / len(alike)
        if not common or not (chance.freedom or (leader.score.count == 1 and chance.by_images)):
            each.append(Compared(lead, None, True))
            continue
        error, of_images = chance.error(leader, other, common)
        images_share = of_images if images_share is None else images_share
        each.append(Compared(lead, error, lead <= chance.quantile * error))
        costs = max(costs, chance.quantile * error - lead)
        costs_here = max(costs_here, chance.quantile * math.sqrt(chance.seed / len(common)) - lead)
    known = chance.freedom > 0
    return Comparison(
        each=_without_contradictions(ranked, each),
        costs=costs if known and (chance.by_images or chance.overlap) else None,
        costs_here=costs_here if known and not chance.overlap else None,
        by_images=chance.by_images,
        seeds=leader.score.count,
        images_share=images_share if chance.by_images else None,
    )


def _chance(ranked: Sequence[Configuration], looks: int) -> _Chance:
    seeds = tuple(ranked[0].scores)
    folds = len({fold for _, fold in seeds})
    by_images = folds == 1 and all(len(each.right) == len(each.scores) for each in ranked) and _one_length(ranked)
    block = [each for each in ranked if set(each.scores) >= set(seeds)]
    seed, freedom, within = _seed_variance(block, seeds, by_images)
    if not by_images and seed <= 1e-18:  # accuracies move in steps, so few seeds may all differ by the same
        freedom = 0
    pairs = max(1, len(ranked) * (len(ranked) - 1))  # chance may put any one above any other
    excess = max(0.0, seed - within) if by_images else seed
    quantile = _quantile(_ERROR / pairs / looks, freedom)
    return _Chance(seed, excess, freedom, quantile, by_images, overlap(folds))


def _one_length(ranked: Sequence[Configuration]) -> bool:
    return len({len(right) for each in ranked for right in each.right.values()}) == 1


def _seed_variance(block: Sequence[Configuration], seeds: Sequence[Draw], by_images: bool) -> tuple[float, int, float]:
    """Variance of a difference from one seed to the next, its degrees of freedom, and its independent part.

    block: the configurations that have all of these seeds, the leader first.
    """
    freedom = (len(block) - 1) * (len(seeds) - 1)
    if not freedom:
        return 0.0, 0, 0.0
    scores = np.array([[each.scores[s] for s in seeds] for each in block])
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    within = 0.0
    if by_images:
        leader = np.stack([block[0].right[s] for s in seeds])
        parts = [
            (leader - np.stack([each.right[s] for s in seeds])).var(0, ddof=1).mean() / leader.shape[1]
            for each in block[1:]
        ]
        within = float(np.mean(parts))
    return 2 * float((rest**2).sum()) / freedom, freedom, within


def _image_variance(leader: Configuration, other: Configuration, seeds: Sequence[Draw]) -> float:
    difference = np.mean([leader.right[s] - other.right[s] for s in seeds], axis=0)
    return float(difference.var(ddof=1)) / len(difference) if len(difference) > 1 else 0.0


def _quantile(error: float, freedom: int) -> float:
    """What chance exceeds with a probability of `error`: Student's t, or the normal distribution for freedom 0."""
    return t_quantile(freedom, 1 - 2 * error) if freedom else NormalDist().inv_cdf(1 - error)


def _without_contradictions(ranked: Sequence[Configuration], each: Sequence[Compared]) -> tuple[Compared, ...]:
    """Whoever ranks above one that may be best, with as many seeds, may be best too."""
    last: dict[int, int] = {}
    for place, (configuration, compared) in enumerate(zip(ranked, each, strict=True)):
        if compared.may_be_best:
            last[configuration.score.count] = place
    return tuple(
        Compared(compared.behind_by, compared.error, place <= last.get(configuration.score.count, -1))
        for place, (configuration, compared) in enumerate(zip(ranked, each, strict=True))
    )
