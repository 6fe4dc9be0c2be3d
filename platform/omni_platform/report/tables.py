"""Tables of figures as HTML: accuracy by family, the cost of each condition, and every family under every condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from omni_platform.report.figure import MISSING, Figure, read_figure, write_figure, write_number
from omni_platform.report.wording import BLIND, OWN, in_order, plain, say


def draw_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A table of plain texts, escaped here; the first `words` columns are words, the others numbers."""
    top = "".join(f"<th{_align(i, words)}>{escape(text)}</th>" for i, text in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{_align(i, words)}>{escape(text)}</td>" for i, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def family_table(report: Mapping[str, Any], *, chances: Mapping[str, float], ceilings: Mapping[str, float]) -> str:
    """Own accuracy of each family beside chance, the blind ceiling where it is known, and the blind controls."""
    blind = [name for name in BLIND if name in report["conditions"]]
    head = ["family", "n", "accuracy [95 %]", "chance"]
    head += ["blind ceiling"] if ceilings else []
    head += [say(name) for name in blind]
    rows = []
    for family in families(report):
        own = figure_of(report, OWN, family)
        row = [plain(family), _count(own), write_figure(own), _share(chances.get(family))]
        row += [_share(ceilings.get(family))] if ceilings else []
        rows.append(row + [write_figure(figure_of(report, name, family)) for name in blind])
    return draw_table(head, rows)


def cost_table(report: Mapping[str, Any]) -> str:
    """Accuracy under each condition, and own minus that over the same questions."""
    rows = []
    for name in in_order(report["conditions"]):
        figure = figure_of(report, name, "all")
        cost = read_figure(report["costs"].get(name), n=report["n"])
        rows.append([say(name), _count(figure), write_figure(figure), write_figure(cost)])
    return draw_table(["condition", "n", "accuracy [95 %]", "cost [95 %]"], rows)


def whole_table(report: Mapping[str, Any]) -> str:
    """Accuracy of every family under every condition, with intervals."""
    kinds = families(report)
    rows = [
        [say(name), *(write_figure(figure_of(report, name, kind)) for kind in kinds)]
        for name in in_order(report["conditions"])
    ]
    counts = ["n", *(_count(figure_of(report, OWN, kind)) for kind in kinds)]
    return draw_table(["condition", *map(plain, kinds)], [*rows, counts])


def families(report: Mapping[str, Any]) -> list[str]:
    """`all`, then the families of the report where there are several."""
    kinds = list(report["conditions"][OWN]["by_type"])
    return ["all", *kinds] if len(kinds) > 1 else kinds


def figure_of(report: Mapping[str, Any], condition: str, family: str) -> Figure | None:
    """The accuracy of a family (or `all`) under a condition."""
    figures = report["conditions"][condition]
    return read_figure(figures["all"] if family == "all" else figures["by_type"].get(family))


def _count(figure: Figure | None) -> str:
    return MISSING if figure is None or figure.n is None else str(figure.n)


def _share(value: float | None) -> str:
    return MISSING if value is None else write_number(value)


def _align(column: int, words: int) -> str:
    return "" if column < words else ' class="number"'
