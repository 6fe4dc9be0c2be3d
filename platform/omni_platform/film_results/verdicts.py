"""Is a variant a cure, and is it useful? The two rules of the sweep, judged on seeds and questions.

* A cure: own accuracy no lower than the best variant without latents, within one point, and another clip's latents cost
  at least 20 points, the whole interval above.
* Useful: it beats every variant without latents, on accuracy with the paired interval above zero, or at an accuracy
  within one point or more of it with fewer sequential steps (every seed below every seed).

Both need three seeds, of the variant and of all it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omni_platform.film_results.cells import OTHER, OWN, Variant
from omni_platform.film_results.intervals import Estimate, difference, estimate

MIN_SEEDS = 3
WITHIN = 0.01
LEAST_COST = 0.20


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was found for one variant on some families; what could not be measured is None."""

    own: Estimate | None = None
    other: Estimate | None = None
    cost: Estimate | None = None
    """Own minus another clip's, over the same questions."""
    best: str | None = None
    """The best variant without latents."""
    lead: Estimate | None = None
    """Own minus that of the best variant without latents, over the same questions."""
    cure: str
    useful: str


def judge(variant: Variant, variants: Sequence[Variant], families: Sequence[str]) -> Judgement:
    """Judge a variant against those without latents that had the same budget."""
    own, other = variant.rights(OWN, families), variant.rights(OTHER, families)
    if own is None:
        words = missing_seeds(variant.seeds) or "not measured"
        return Judgement(cure=words, useful=words)
    rivals = [v for v in variants if not v.latent and v.budget == variant.budget]
    ready = {rival.name: rights for rival in rivals if (rights := rival.rights(OWN, families)) is not None}
    best = max(ready, key=lambda name: estimate(ready[name]).mean, default=None)
    lead = difference(own, ready[best], same_cells=False) if best else None
    cost = difference(own, other, same_cells=True) if other is not None else None
    too_few = missing_seeds(variant.seeds) or _missing_rivals(rivals)
    return Judgement(
        own=estimate(own),
        other=estimate(other) if other is not None else None,
        cost=cost,
        best=best,
        lead=lead,
        cure=too_few or _cure(lead, cost),
        useful=too_few or _useful(variant, rivals, families),
    )


def best_without_latents(variants: Sequence[Variant]) -> Estimate | None:
    """The best mean over the benchmark among variants without latents with the usual budget."""
    rights = [v.rights(OWN) for v in variants if not v.latent and not v.budget]
    return max((estimate(r) for r in rights if r is not None), key=lambda found: found.mean, default=None)


def missing_seeds(seeds: int) -> str:
    """Why there is no verdict, where there are too few seeds for one; else nothing."""
    return "" if seeds >= MIN_SEEDS else f"{seeds} seed{'s' * (seeds != 1)}: no verdict"


def _missing_rivals(rivals: Sequence[Variant]) -> str:
    if not rivals:
        return "nothing to compare with: no verdict"
    fewest = min(rivals, key=lambda rival: rival.seeds)
    return f"{fewest.name} has {words}" if (words := missing_seeds(fewest.seeds)) else ""


def _cure(lead: Estimate | None, cost: Estimate | None) -> str:
    if lead is None or cost is None:
        return "not measured"
    lacks = []
    if lead.mean < -WITHIN:
        lacks.append("less accurate")
    if cost.low < LEAST_COST:
        lacks.append("latents cost too little" if cost.mean < LEAST_COST else "cost's interval reaches below 20 points")
    return f"no: {', '.join(lacks)}" if lacks else "**yes**"


def _useful(variant: Variant, rivals: Sequence[Variant], families: Sequence[str]) -> str:
    own, won, lost = variant.rights(OWN, families), [], []
    for rival in rivals:
        theirs = rival.rights(OWN, families)
        if own is None or theirs is None:
            return "not measured"
        lead = difference(own, theirs, same_cells=False)
        if lead.low > 0:
            won.append(rival.name)
        elif lead.mean >= -WITHIN and _fewer_steps(variant, rival, families):
            won.append(f"{rival.name} (fewer steps)")
        else:
            lost.append(rival.name)
    return f"no: not over {', '.join(lost)}" if lost else f"**yes**: over {', '.join(won)}"


def _fewer_steps(variant: Variant, rival: Variant, families: Sequence[str]) -> bool:
    mine, theirs = variant.steps(families), rival.steps(families)
    return bool(mine and theirs) and max(mine) < min(theirs)
