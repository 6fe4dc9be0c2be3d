"""A few answers of a model to look at closely, right ones and wrong ones, each with its clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from omni_platform.data.batches import TrainingRow, TrainingRows, epoch_order
from omni_platform.report.wording import OWN


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """A question with its clip, and what the model said to it."""

    row: TrainingRow
    record: Mapping[str, Any]
    """As the evaluation wrote it, of the condition `own`."""


def choose_answers(records: Sequence[Mapping[str, Any]], rows: TrainingRows, count: int) -> list[ShownAnswer]:
    """About as many right as wrong answers, of as many families as there are.

    Nobody picks them: the order is one of hashes of sample ids, so the same questions are shown for every model that
    answers them alike.
    """
    own = [record for record in records if record["condition"] == OWN]
    hashed = [own[i] for i in epoch_order([record["sample_id"] for record in own], 0, 0)]
    right = _spread([record for record in hashed if record["right"]])
    wrong = _spread([record for record in hashed if not record["right"]])
    chosen = [record for pair in zip_longest(right, wrong) for record in pair if record is not None][:count]
    places = {sample_id: i for i, sample_id in enumerate(rows.ids)}
    return [ShownAnswer(row=rows.row(places[record["sample_id"]]), record=record) for record in chosen]


def _spread(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of each family, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    rounds = []
    for record in records:
        rounds.append(seen[record["question_type"]])
        seen[record["question_type"]] += 1
    return [record for _, _, record in sorted(zip(rounds, range(len(records)), records, strict=True))]
