"""The finished cells of a sweep, put together by variant, and what the sweep's own config says there should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from omni_platform.media.benchmark import BENCHMARK
from omni_platform.media.film_hops import HOPS

OWN, OTHER = "own", "latents_other"
TRAINED = (*BENCHMARK, *HOPS)
"""The families that a sweep may train; others are asked to see what carries over."""
LATENT_METHOD = "latent_omni"
BUDGETS = ("few", "double")
"""Endings of names: learned from fewer clips, in twice the steps."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep's config asks for."""

    methods: Mapping[str, str]
    """Variant -> method, in the config's order."""
    seeds: tuple[int, ...]
    output_dir: str

    @property
    def num_cells(self) -> int:
        return len(self.methods) * len(self.seeds)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One setting with the results of its seeds, in the order of the seeds."""

    name: str
    method: str
    results: tuple[Mapping[str, Any], ...] = ()

    @property
    def latent(self) -> bool:
        return self.method == LATENT_METHOD

    @property
    def budget(self) -> str:
        """few, double or nothing: how much it learned from. Variants are compared with those of the same budget."""
        ending = self.name.rsplit("_", 1)[-1]
        return ending if ending in BUDGETS else ""

    @property
    def seeds(self) -> int:
        return len(self.results)

    @property
    def whole(self) -> str:
        """The name of the variant with the usual budget."""
        return self.name.removesuffix(f"_{self.budget}")

    @property
    def asked(self) -> tuple[str, ...]:
        """The families that were trained and that every seed was asked; a sweep may be about some of them."""
        own = [result["rights"].get(OWN, {}) for result in self.results]
        return tuple(family for family in TRAINED if own and all(family in of_seed for of_seed in own))

    def rights(self, condition: str, families: Sequence[str] | None = None) -> list[np.ndarray] | None:
        """One array (seeds, questions) a family, 1 for right; None unless every seed has all of them.

        Without `families` those that were asked.
        """
        families = self.asked if families is None else families
        digits = [[result["rights"].get(condition, {}).get(f) for f in families] for result in self.results]
        if not digits or not families or any(text is None for texts in digits for text in texts):
            return None
        columns = zip(*digits, strict=True)
        return [np.array([[int(digit) for digit in text] for text in texts], float) for texts in columns]

    def steps(self, families: Sequence[str]) -> list[float]:
        """Sequential steps of each seed, mean over families; seeds that were not asked all of them are left out."""
        found = [[at(result, ("steps", family)) for family in families] for result in self.results]
        return [float(np.mean(of_seed)) for of_seed in found if None not in of_seed]

    def figures(self, *keys: str) -> list[float]:
        """A figure of each seed, found by its path in the result; seeds that do not have it are left out."""
        found = [at(result, keys) for result in self.results]
        return [float(value) for value in found if value is not None]


def read_plan(path: str | Path) -> Plan:
    """The plan in a sweep's YAML. Raises `ValueError` for a variant that is like one that is not there."""
    data = yaml.safe_load(Path(path).read_text())
    cells = data["cells"]
    default = data.get("trial", {}).get("method", LATENT_METHOD)
    return Plan(
        methods={name: _method(cells, name, default) for name in cells},
        seeds=tuple(data.get("seeds", (0, 1, 2))),
        output_dir=data["output_dir"],
    )


def variants_of(plan: Plan, results: Sequence[Mapping[str, Any]]) -> list[Variant]:
    """Every variant with a result or a place in the plan: the plan's first and in its order, then others as they come.

    Of a variant and seed that was run under several configs the last counts. Raises `ValueError` for results that were
    not asked the same questions.
    """
    latest = {(result["variant"], result["seed"]): result for result in results}
    _refuse_other_questions(list(latest.values()))
    methods = dict(plan.methods)
    for result in latest.values():
        methods.setdefault(result["variant"], result["method"])
    return [
        Variant(
            name=name,
            method=method,
            results=tuple(latest[key] for key in sorted(key for key in latest if key[0] == name)),
        )
        for name, method in methods.items()
    ]


def count_planned(plan: Plan, variants: Sequence[Variant]) -> int:
    """How many of the plan's cells have a result."""
    return sum(r["seed"] in plan.seeds for v in variants if v.name in plan.methods for r in v.results)


def _method(cells: Mapping[str, Mapping[str, Any]], name: str, default: str) -> str:
    if name not in cells:
        raise ValueError(f"a cell is like {name!r}, which is none of {', '.join(cells)}")
    cell = cells[name] or {}
    return cell.get("method") or (_method(cells, cell["like"], default) if "like" in cell else default)


def _refuse_other_questions(results: Sequence[Mapping[str, Any]]) -> None:
    counts: dict[str, tuple[int, str]] = {}
    for result in results:
        for family, digits in result["rights"][OWN].items():
            count, cell = counts.setdefault(family, (len(digits), result["cell"]))
            if count != len(digits):
                raise ValueError(
                    f"cells {cell} and {result['cell']} were asked {count} and {len(digits)} questions of {family}: "
                    "they are of different tests; give each sweep its own experiment_name"
                )


def at(data: Any, keys: Sequence[str]) -> Any:
    """What lies in nested dicts under a path of keys, None where it is not there."""
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data
