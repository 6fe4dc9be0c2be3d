"""The sweep's figures for machines: one row a variant, seed and family, and one for the mean over the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omni_platform.film_results.cells import OTHER, OWN, TRAINED, Variant, at
from omni_platform.media.benchmark import BENCHMARK

ALL = "all"
_CONDITIONS = {
    "own": OWN,
    "zero": "latents_zero",
    "noise": "latents_noise",
    "other": OTHER,
    "gold": "latents_gold",
}


def rows_of(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """The rows; a key that does not apply is left out. `all` weighs the families of the benchmark alike."""
    return [row for variant in variants for i in range(variant.seeds) for row in _of_cell(variant, i)]


def further_rows(sweeps: Mapping[str, Sequence[Variant]]) -> list[dict[str, Any]]:
    """Rows of sweeps about other families or other clips, each with the name of its `sweep`; families trained alone."""
    return [
        row | {"sweep": name}
        for name, variants in sweeps.items()
        for row in rows_of(variants)
        if row["family"] in TRAINED
    ]


def _of_cell(variant: Variant, index: int) -> list[dict[str, Any]]:
    result = variant.results[index]
    about = {"variant": variant.name, "latent": variant.latent, "seed": result["seed"]}
    shares = {key: _accuracies(result["rights"].get(name, {})) for key, name in _CONDITIONS.items()}
    counts = {family: len(digits) for family, digits in result["rights"][OWN].items()}
    pointing = {family: _pointing(result, ("retrieval_by_type", family)) for family in counts}
    rows = [
        _row(about, family, n, {key: of[family] for key, of in shares.items() if family in of} | pointing[family])
        for family, n in counts.items()
    ]
    asked = [family for family in BENCHMARK if family in counts]
    if asked:
        means = {
            key: sum(of[family] for family in asked) / len(asked) for key, of in shares.items() if set(asked) <= set(of)
        }
        rows.append(_row(about, ALL, sum(counts[f] for f in asked), means | _pointing(result, ("retrieval",))))
    return rows


def _pointing(result: Mapping[str, Any], where: Sequence[str]) -> dict[str, float]:
    """How often visual latents are nearest to their own moment among those of the clip, where it was measured."""
    found = at(result, ("report", "measures", *where, "clip_visual", "mean"))
    return {} if found is None else {"retrieval_top1": found}


def _row(about: Mapping[str, Any], family: str, n: int, figures: Mapping[str, float]) -> dict[str, Any]:
    rounded = {key: round(value, 4) for key, value in figures.items()}
    return {"variant": about["variant"], "latent": about["latent"], "family": family, "seed": about["seed"], "n": n} | (
        rounded
    )


def _accuracies(of_family: Mapping[str, str]) -> dict[str, float]:
    return {family: digits.count("1") / len(digits) for family, digits in of_family.items()}
