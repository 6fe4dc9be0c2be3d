"""Whatever else an evaluation measured, as one table: any nesting of names, numbers and intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omni_platform.report.figure import (
    FIGURE_KEYS,
    MISSING,
    Figure,
    read_figure,
    write_figure,
    write_interval,
    write_number,
)
from omni_platform.report.tables import draw_table
from omni_platform.report.wording import plain

_OF_ANSWERS = {
    "unreadable_share": "answers that name no option, share",
    "looked_right_share": "nearest moments within the annotated segment, share",
    "latent_phases_mean": "latent phases an answer, mean",
    "latent_steps_mean": "latent steps an answer, mean",
    "completion_tokens_mean": "tokens an answer, mean",
}


def measures_table(report: Mapping[str, Any]) -> str:
    """The measures of a report and the means over its own answers; what is absent or None is left out."""
    rows = [_row(name, figure) for name, figure in _figures(report.get("measures") or {}, ())]
    for key, name in _OF_ANSWERS.items():
        # Where it looked is told by the answers that looked; how many those were the report does not say.
        figure = read_figure(report.get(key), n=None if key == "looked_right_share" else report["n"])
        if figure is not None:
            rows.append(_row(name, figure))
    return draw_table(["measure", "n", "value", "95 % interval", "chance"], rows)


def _figures(data: Any, path: tuple[str, ...], n: int | None = None) -> Iterator[tuple[str, Figure | str]]:
    """Name and figure (or text) of every leaf, in order; an `n` holds for all that is nested beside it."""
    name = ", ".join(plain(part) for part in path)
    figure = read_figure(data, n=n)
    if figure is not None:
        yield name, figure
    if isinstance(data, Mapping):
        told = {"n"} if figure is None else FIGURE_KEYS
        for key, value in data.items():
            if key not in told:
                yield from _figures(value, (*path, str(key)), data.get("n", n))
    elif isinstance(data, (list, tuple)):
        yield name, _in_one_cell(data)
    elif isinstance(data, str):
        yield name, data


def _in_one_cell(values: Sequence[Any]) -> str:
    """A row of numbers such as one for each layer; what is no number as it is."""
    figures = [read_figure(value) for value in values]
    return "  ".join(str(v) if f is None else write_figure(f) for v, f in zip(values, figures, strict=True))


def _row(name: str, figure: Figure | str) -> list[str]:
    if isinstance(figure, str):
        return [name, MISSING, figure, MISSING, MISSING]
    count = MISSING if figure.n is None else str(figure.n)
    chance = MISSING if figure.chance is None else write_number(figure.chance)
    return [name, count, write_number(figure.point), write_interval(figure), chance]
