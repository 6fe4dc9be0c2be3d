"""Cells of a sweep whose answers are known."""

from __future__ import annotations

from omni_platform.film_results.cells import Variant
from omni_platform.media.benchmark import BENCHMARK, SHIFTS
from omni_platform.media.film_reasoning import HELD_OUT

FAMILIES = (*BENCHMARK, *HELD_OUT)
Q = 200


def digits(share: float) -> str:
    right = round(share * Q)
    return "1" * right + "0" * (Q - right)


def result_of(variant: str, seed: int, method: str, *, steps: float = 5.0, **conditions: float) -> dict:
    return {
        "variant": variant,
        "seed": seed,
        "cell": f"{variant}-s{seed}",
        "run_id": f"{variant}{seed}",
        "method": method,
        "rights": {name: dict.fromkeys(FAMILIES, digits(share)) for name, share in conditions.items()},
        "report": {"measures": _pointing()},
        "shifts": {shift: {family: {"n": 10, "accuracy": 0.7} for family in FAMILIES} for shift in SHIFTS},
        "steps": dict.fromkeys(FAMILIES, steps),
        "train_s": 100.0,
    }


def _pointing() -> dict:
    point = {"clip_visual": {"mean": 0.75, "chance": 0.125}}
    other = {"clip_visual": {"mean": 0.5, "chance": 0.25}}
    return {"retrieval": point, "retrieval_by_type": dict.fromkeys(FAMILIES, point) | {"same_shape": other}}


def variant_of(name: str, method: str, *, seeds: int = 3, steps: float = 5.0, **conditions: float) -> Variant:
    results = tuple(result_of(name, seed, method, steps=steps, **conditions) for seed in range(seeds))
    return Variant(name=name, method=method, results=results)


def rivals(own: float = 0.6, seeds: int = 3) -> list[Variant]:
    return [
        variant_of("sft", "sft", own=own - 0.2, seeds=seeds, steps=1.0),
        variant_of("text_cot", "text_cot", own=own, steps=12.0),
    ]
