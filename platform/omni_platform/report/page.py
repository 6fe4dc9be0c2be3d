"""An evaluation as one HTML file: whether latents matter, every figure with its interval, and clips to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from omni_platform.report.answers import ShownAnswer
from omni_platform.report.bars import Bar, draw_bars
from omni_platform.report.curves import RunCurves, draw_curves
from omni_platform.report.figure import read_figure, write_figure, write_number
from omni_platform.report.measures import measures_table
from omni_platform.report.style import STYLE
from omni_platform.report.tables import cost_table, families, family_table, figure_of, whole_table
from omni_platform.report.timeline import draw_timeline
from omni_platform.report.verdict import say_verdict
from omni_platform.report.wording import BLIND, OWN, in_order, plain, say


@dataclass(frozen=True, kw_only=True)
class About:
    """What was evaluated, when, and by what."""

    model: str
    dataset: str
    command: str
    """What makes this page again."""
    created_at: str
    code_version: str
    asked: tuple[str, ...]
    """The conditions that were to be run."""
    run_id: str | None = None


def render_page(
    report: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    *,
    about: About,
    answers: Sequence[ShownAnswer] = (),
    curves: Sequence[RunCurves] = (),
    ceilings: Mapping[str, float] | None = None,
) -> str:
    """The page as text; what an evaluation does not have is left out.

    `report` is what `summarise` gives, with `measures` where there are any. `ceilings` is what one sense alone can
    reach, by family.
    """
    chances = _chances(records, report["chance"])
    sections = [
        _head(report, about),
        _accuracy(report, chances, ceilings or {}),
        _probes(report),
        _learning(curves),
        _timelines(answers),
        f"<h2>Measures</h2>{measures_table(report)}",
        f"<h2>This page again</h2><pre>{escape(about.command)}</pre>",
    ]
    title = escape(f"Evaluation of {about.model}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _chances(records: Sequence[Mapping[str, Any]], overall: float) -> dict[str, float]:
    """Accuracy of a guess by family; an open question counts as 0."""
    guesses: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record["condition"] == OWN:
            guesses[record["question_type"]].append(1 / len(record["options"]) if len(record["options"]) else 0.0)
    return {"all": overall, **{family: sum(g) / len(g) for family, g in guesses.items()}}


def _head(report: Mapping[str, Any], about: About) -> str:
    blind = {
        name: figure for name in BLIND if name in report["conditions"] and (figure := figure_of(report, name, "all"))
    }
    entries = {
        "Model": about.model,
        "Questions": f"{report['n']}, from {about.dataset}",
        "Accuracy": f"{write_figure(figure_of(report, OWN, 'all'))}, chance {write_number(report['chance'])}",
    }
    if blind:
        best = max(blind, key=lambda name: blind[name].point)
        entries["Best blind control"] = f"{write_figure(blind[best])} ({say(best)})"
    entries |= {"Made": f"{about.created_at} by {about.code_version}"}
    entries |= {"Run": about.run_id} if about.run_id else {}
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
    return f'<h1>Evaluation</h1><p class="verdict">{escape(say_verdict(report, about.asked))}</p><dl>{listed}</dl>'


def _accuracy(report: Mapping[str, Any], chances: Mapping[str, float], ceilings: Mapping[str, float]) -> str:
    bars = []
    for family in families(report):
        # Chance last: where the two are the same it is drawn over the ceiling, and both can be seen.
        marks = {"ceiling": ceilings[family]} if family in ceilings else {}
        marks |= {"chance": chances[family]} if family in chances else {}
        figure = figure_of(report, OWN, family)
        if figure is not None:
            bars.append(Bar(label=plain(family), figure=figure, marks=marks))
    picture = draw_bars(bars, axis="accuracy", limits=(0.0, 1.0))
    told = "Own answers, free-running, with 95 % Wilson intervals. Dashed: chance."
    told += " Red: the best that one sense alone can reach." if ceilings else ""
    table = family_table(report, chances=chances, ceilings=ceilings)
    return f"<h2>Accuracy by family</h2><figure>{picture}<figcaption>{told}</figcaption></figure>{table}"


def _probes(report: Mapping[str, Any]) -> str:
    bars = []
    for name in in_order(report["costs"]):
        figure = read_figure(report["costs"][name], n=report["n"])
        if figure is not None:
            bars.append(Bar(label=say(name), figure=figure, colour="second" if name in BLIND else "first"))
    if not bars:
        return ""
    picture = draw_bars(bars, axis="cost in accuracy: own minus condition", limits=(-0.05, 0.1))
    told = "Paired over the same questions, with 95 % bootstrap intervals: one that holds zero shows no cost."
    colours = {bar.colour for bar in bars}
    told += " Orange: senses taken away." if "second" in colours else ""
    told += " Blue: latents, or the way to them, changed." if "first" in colours else ""
    whole = f"<details><summary>Every family under every condition</summary>{whole_table(report)}</details>"
    return (
        f"<h2>What each condition costs</h2><figure>{picture}<figcaption>{told}</figcaption></figure>"
        f"{cost_table(report)}{whole}"
    )


def _learning(curves: Sequence[RunCurves]) -> str:
    drawn = draw_curves(curves)
    return f'<h2>Learning curves</h2><p class="quiet">By optimizer step, one line a run.</p>{drawn}' if drawn else ""


def _timelines(answers: Sequence[ShownAnswer]) -> str:
    if not answers:
        return ""
    told = (
        "Questions taken by a hash of their ids, not by hand. Grey: the segments that the annotated trajectory looks "
        "at. Blue and orange: the moment of the clip that the visual and the audio latents of each phase resemble "
        "most, with the cosine."
    )
    return f'<h2>Where it looked</h2><p class="quiet">{told}</p>{"".join(map(_answer, answers))}'


def _answer(answer: ShownAnswer) -> str:
    sample, record = answer.row.sample, answer.record
    mark = "right" if record["right"] else "wrong"
    given = record["answer"] or "nothing that can be read"
    return (
        f"<article><p><strong>{escape(sample.question)}</strong></p>"
        f'<p>Expected {escape(sample.answer)}, answered {escape(given)}: <span class="{mark}">{mark}</span>'
        f'<span class="quiet"> · {escape(plain(sample.question_type))} · {escape(sample.sample_id)}</span></p>'
        f'{draw_timeline(answer)}<p class="quiet said">“{escape(record["text"])}”</p></article>'
    )
