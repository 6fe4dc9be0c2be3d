"""Means over seeds and questions with bootstrap intervals, of one setting and of one setting minus another.

Answers are given as one array of rights a family, (S, Q): seeds by questions, 1 for right. A mean over families weighs
each family alike. Every draw takes seeds anew, then questions; seeds answer the same questions, and so do both sides of
a difference. With one seed the interval is over questions alone and says nothing about other seeds.
"""

# S = seeds, Q = questions of a family, D = draws.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

DRAWS = 2000
Rights = Sequence[np.ndarray]
"""One array (S, Q) a family."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval, and over how many seeds."""

    mean: float
    low: float
    high: float
    seeds: int


def estimate(rights: Rights, *, draws: int = DRAWS) -> Estimate:
    """Mean accuracy over families. Raises `ValueError` where there is nothing, or families differ in their seeds."""
    seeds = _num_seeds(rights)
    rng = np.random.default_rng(0)
    drawn_D = _means(rights, _counts(rng, seeds, draws), _questions(rights, draws))
    return _interval(_mean(rights), drawn_D, seeds)


def difference(first: Rights, second: Rights, *, same_cells: bool, draws: int = DRAWS) -> Estimate:
    """Mean of first minus second over the same questions.

    `same_cells`: both sides are of the same trained models, so a draw takes the same seeds for both; otherwise each
    side takes its own. Raises `ValueError` where the sides were not asked the same questions, or not of the same seeds
    where they are of the same models.
    """
    seeds, others = _num_seeds(first), _num_seeds(second)
    if [array.shape[1] for array in first] != [array.shape[1] for array in second]:
        raise ValueError("a paired difference needs the same questions on both sides; compare cells of one sweep")
    if same_cells and seeds != others:
        raise ValueError(f"{seeds} and {others} seeds are not of the same cells")
    rng = np.random.default_rng(0)
    questions = _questions(first, draws)
    seeds_DS = _counts(rng, seeds, draws)
    others_DS = seeds_DS if same_cells else _counts(rng, others, draws)
    drawn_D = _means(first, seeds_DS, questions) - _means(second, others_DS, questions)
    return _interval(_mean(first) - _mean(second), drawn_D, min(seeds, others))


def _num_seeds(rights: Rights) -> int:
    seeds = {array.shape[0] for array in rights}
    if len(seeds) != 1 or 0 in seeds or any(array.shape[1] == 0 for array in rights):
        raise ValueError("an estimate needs at least one family, and every family with the same seeds and a question")
    return seeds.pop()


def _counts(rng: np.random.Generator, size: int, draws: int) -> np.ndarray:
    """How large a share of a draw with replacement each of `size` things gets: (D, size), rows sum to 1."""
    return rng.multinomial(size, np.full(size, 1 / size), size=draws) / size


def _questions(rights: Rights, draws: int) -> tuple[np.ndarray, ...]:
    """Shares of the questions, one (D, Q) a family."""
    return _draw_questions(tuple(array.shape[1] for array in rights), draws)


@lru_cache(maxsize=32)
def _draw_questions(sizes: tuple[int, ...], draws: int) -> tuple[np.ndarray, ...]:
    # A generator of their own: how many seeds were drawn before must not change which questions are.
    rng = np.random.default_rng(1)
    return tuple(_counts(rng, size, draws) for size in sizes)


def _means(rights: Rights, seeds_DS: np.ndarray, questions: Sequence[np.ndarray]) -> np.ndarray:
    of_families = [((seeds_DS @ array) * shares).sum(1) for array, shares in zip(rights, questions, strict=True)]
    return np.mean(of_families, axis=0)


def _mean(rights: Rights) -> float:
    return float(np.mean([array.mean() for array in rights]))


def _interval(mean: float, drawn_D: np.ndarray, seeds: int) -> Estimate:
    # Rounded, so that what is zero is not above zero by an error of addition.
    low, high = (round(float(end), 12) for end in np.quantile(drawn_D, [0.025, 0.975]))
    return Estimate(mean=round(mean, 12), low=low, high=high, seeds=seeds)
