"""What the page shows of the comparison: the benchmark, every variant by family, the cure, shifts, fewer clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from omni_platform.film_results.cells import OWN, Plan, Variant, count_planned
from omni_platform.film_results.intervals import Estimate, difference, estimate
from omni_platform.film_results.verdicts import judge
from omni_platform.media.benchmark import BENCHMARK, SHIFTS, families_of
from omni_platform.media.ceilings import Ceilings
from omni_platform.media.film_reasoning import HELD_OUT

MISSING = "–"
SHIFTED = families_of("shots")
"""The families that shifted tests ask."""
_YARDSTICK = "sft"
_MEAN = "**mean**"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table; the first `words` columns are words, the others numbers.

    Raises `ValueError` for a row of another width: a page would show it under the wrong heads.
    """
    if wrong := [row for row in rows if len(row) != len(head)]:
        raise ValueError(f"a row has {len(wrong[0])} cells under {len(head)} heads: {wrong[0]}")
    rule = ["---" if i < words else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows)) + "\n"


def write(found: Estimate | None) -> str:
    """`0.52 [0.47, 0.57]`, or a dash."""
    return MISSING if found is None else f"{_two(found.mean)} [{_two(found.low)}, {_two(found.high)}]"


def write_seeds(values: Sequence[float], *, digits: int = 2) -> str:
    """Mean over seeds and, where there are several, the least and the greatest in parentheses."""
    if not values:
        return MISSING
    mean, *ends = (f"{round(x, digits) + 0.0:.{digits}f}" for x in (np.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({', '.join(ends)})"


def plain(name: str) -> str:
    """`colour_at_tone` -> `colour at tone`."""
    return name.replace("_", " ")


def benchmark_table(found: Mapping[str, Ceilings]) -> str:
    """What can be reached on each family without both senses."""
    rows = [[plain(family), *(_two(x) for x in (of.chance, of.text, of.ears, of.eyes))] for family, of in found.items()]
    return table(["family", "chance", "text alone", "ears alone", "eyes alone"], rows)


def present_text(plan: Plan, variants: Sequence[Variant]) -> str:
    """How much of the sweep is there."""
    done, extra = count_planned(plan, variants), sum(v.seeds for v in variants)
    others = f" {extra - done} cells beside it (other variants or seeds) are shown too." if extra > done else ""
    absent = [f"`{v.name}`" for v in variants if not v.seeds]
    missing = f" Not there at all: {', '.join(absent)}." if absent else ""
    return f"{done} of the sweep's {plan.num_cells} cells are finished.{others}{missing}"


def comparison_table(variants: Sequence[Variant]) -> str:
    """Every variant's free-running accuracy, and what it takes."""
    yardstick = next((np.mean(v.figures("train_s")) for v in variants if v.name == _YARDSTICK and v.seeds), None)
    shown = _asked(variants)
    head = ["variant", "seeds", "mean", *map(plain, shown), "sequential steps", "training time / sft"]
    rows = []
    for v in (v for v in variants if v.seeds):
        cost = [t / float(yardstick) for t in v.figures("train_s")] if yardstick else []
        families = [_accuracy(v, OWN, (family,)) for family in shown]
        took = [write_seeds(v.steps(v.asked), digits=1), write_seeds(cost)]
        rows.append([f"`{v.name}`", str(v.seeds), _accuracy(v, OWN, v.asked), *families, *took])
    return table(head, rows)


def cure_table(variants: Sequence[Variant]) -> str:
    """Each latent variant against the two rules: on the mean of the families, then family by family."""
    head = ["variant", "family", "seeds", "own", "another clip's", "cost", "best without latents", "own minus best"]
    head += ["cure", "useful"]
    rows = []
    for v in (v for v in variants if v.latent and v.seeds):
        for label, families in ((_MEAN, v.asked), *((plain(f), (f,)) for f in v.asked if len(v.asked) > 1)):
            found = judge(v, variants, families)
            figures = [write(found.own), write(found.other), write(found.cost), found.best and f"`{found.best}`"]
            cells = [f"`{v.name}`", label, str(v.seeds), *figures, write(found.lead), found.cure, found.useful]
            rows.append([cell or MISSING for cell in cells])
    return table(head, rows, words=2)


def further_table(sweeps: Mapping[str, Sequence[Variant]]) -> str:
    """Every variant of sweeps about other families, with what its latents carry and both verdicts."""
    head = ["sweep", "family", "variant", "seeds", "own", "another clip's", "sequential steps", "own minus best"]
    head += ["cure", "useful"]
    rows = []
    for name, variants in sweeps.items():
        run = [v for v in variants if v.seeds]
        for family in dict.fromkeys(family for v in run for family in v.asked):
            rows += [[name, *_judged(v, run, family)] for v in run if family in v.asked]
    return table(head, rows, words=3)


def _judged(variant: Variant, variants: Sequence[Variant], family: str) -> list[str]:
    found = judge(variant, variants, (family,))
    verdicts = [write(found.lead), found.cure, found.useful] if variant.latent else [MISSING] * 3
    steps = write_seeds(variant.steps((family,)), digits=1)
    about = [plain(family), f"`{variant.name}`", str(variant.seeds)]
    return [*about, write(found.own), write(found.other), steps, *verdicts]


def shift_table(variants: Sequence[Variant]) -> str:
    """Accuracy where the test differs from training, beside the plain test of the same families."""
    head = ["variant", "seeds", "as trained", *map(plain, SHIFTS)]
    rows = [
        [f"`{v.name}`", str(v.seeds), _accuracy(v, OWN, _of_shots(v)), *(write(_shifted(v, shift)) for shift in SHIFTS)]
        for v in variants
        if v.seeds
    ]
    return table(head, rows)


def held_out_table(variants: Sequence[Variant], found: Mapping[str, Ceilings]) -> str:
    """Accuracy on families that were never asked in training, as in training and shifted."""
    head = ["variant", "family", "seeds", "chance", "accuracy", *map(plain, SHIFTS)]
    rows = [
        [f"`{v.name}`", plain(family), str(v.seeds), _two(found[family].chance), _accuracy(v, OWN, (family,))]
        + [write(_shifted(v, shift, (family,))) for shift in SHIFTS]
        for v in variants
        for family in HELD_OUT
        if v.seeds
    ]
    return table(head, rows, words=2)


def few_table(variants: Sequence[Variant]) -> str:
    """Variants that learned from fewer clips, and what that cost them."""
    by_name = {v.name: v for v in variants}
    shown = _asked(variants)
    head = ["variant", "seeds", "mean", *map(plain, shown), "lost to all clips"]
    rows = []
    for v in (v for v in variants if v.budget == "few" and v.seeds):
        families = [_accuracy(v, OWN, (family,)) for family in shown]
        whole = by_name[v.whole].rights(OWN) if v.whole in by_name else None
        mine = v.rights(OWN)
        lost = difference(whole, mine, same_cells=False) if whole is not None and mine is not None else None
        rows.append([f"`{v.name}`", str(v.seeds), _accuracy(v, OWN, v.asked), *families, write(lost)])
    return table(head, rows)


def _asked(variants: Sequence[Variant]) -> list[str]:
    """The benchmark's families that any variant was asked."""
    return [family for family in BENCHMARK if any(family in v.asked for v in variants)]


def _accuracy(variant: Variant, condition: str, families: Sequence[str]) -> str:
    rights = variant.rights(condition, families)
    return write(estimate(rights) if rights is not None else None)


def _of_shots(variant: Variant) -> list[str]:
    return [family for family in variant.asked if family in SHIFTED]


def _shifted(variant: Variant, shift: str, families: Sequence[str] | None = None) -> Estimate | None:
    """Mean over families. Of shifted tests only the number of right answers is known, not which."""
    arrays = []
    for family in _of_shots(variant) if families is None else families:
        counts = [r["shifts"].get(shift, {}).get(family) for r in variant.results]
        if not counts or None in counts:
            return None
        # The right answers first: seeds then agree on questions as far as they can, and the interval is the widest.
        arrays.append(np.array([np.arange(c["n"]) < round(c["accuracy"] * c["n"]) for c in counts], float))
    return estimate(arrays) if arrays else None


def _two(value: float) -> str:
    # No "-0.00": a reader would look for the difference.
    return f"{round(value, 2) + 0.0:.2f}"
