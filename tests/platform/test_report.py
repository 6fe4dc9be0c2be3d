"""The page of an evaluation: it says what the figures say, shows what there is, and lets no data be markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from omni_platform.data.batches import TrainingRow
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_clip
from omni_platform.report.answers import ShownAnswer
from omni_platform.report.curves import RunCurves
from omni_platform.report.figure import read_figure, write_figure
from omni_platform.report.measures import measures_table
from omni_platform.report.page import About, render_page
from omni_platform.report.verdict import say_verdict
from omni_platform.report.wording import in_order
from omni_platform.schema import LookStep, Sample, TextStep

ABOUT = About(
    model="models:/m@champion",
    dataset="rows",
    command="python jobs/evaluate.py --config a.yaml",
    created_at="2026-01-02T03:04:05+00:00",
    code_version="0.1.0+gabc",
    asked=("own", "latents_other"),
    run_id="run-1",
)


def _accuracy(value: float, n: int = 40) -> dict[str, Any]:
    return {"n": n, "accuracy": value, "low": value - 0.1, "high": min(value + 0.1, 1.0)}


def _report(*conditions: str, **fields: Any) -> dict[str, Any]:
    """Two families; every condition costs half a point of accuracy more than the one before."""
    figures = {c: 0.8 - 0.05 * i for i, c in enumerate(("own", *conditions))}
    return {
        "n": 80,
        "chance": 0.35,
        "conditions": {
            c: {"all": _accuracy(v, 80), "by_type": {"yes_no": _accuracy(v), "colours": _accuracy(v - 0.1)}}
            for c, v in figures.items()
        },
        "costs": {c: {"mean": 0.8 - figures[c], "low": 0.01, "high": 0.6} for c in conditions},
        "latent_steps_mean": 5.0,
        "looked_right_share": None,
        **fields,
    }


def _records() -> list[dict[str, Any]]:
    return [
        {"condition": c, "question_type": kind, "options": options}
        for c in ("own", "neither")
        for kind, options in (("yes_no", ["yes", "no"]), ("colours", list("abcde")))
    ]


def _answer(**fields: Any) -> ShownAnswer:
    frames, fps, waveform = render_clip(make_scene(seed=1, index=0, num_shots=3), fps=2.0, side_px=28)
    sample = Sample(
        sample_id="s<1>",
        clip_uri="c.mp4",
        question="Is <b>this</b> bold?",
        answer="yes & no",
        trajectory=(LookStep(start_s=1.0, end_s=2.0), TextStep(text="x")),
    )
    row = TrainingRow(
        sample=sample,
        clip_id="c",
        frames=frames,
        sample_fps=fps,
        waveform=waveform,
        read_segments=lambda: ((), ()),
    )
    record = {"condition": "own", "right": False, "answer": "<i>no</i>", "text": "<script>x</script>", **fields}
    return ShownAnswer(row=row, record=record)


class _Texts(HTMLParser):
    """Tags, addresses and visible texts of a page, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_text_from_data_shows_as_text_and_the_page_needs_nothing_beside_it():
    report = _report("latents_other", "<u>odd</u>", measures={"<u>m": {"k": "<u>v"}})
    page = render_page(
        report,
        _records(),
        about=replace(ABOUT, model="<b>m</b>", dataset="<b>d", command="<b>c", run_id="<b>r"),
        answers=[_answer(moments=[])],
        curves=[RunCurves(label="<b>run", histories={"train/<b>": {1: 1.0, 2: 2.0}})],
    )
    read = _Texts(page)
    assert not read.tags & {"b", "i", "u", "script", "link", "img"}
    assert all(link.startswith("data:image/jpeg;base64,") for link in read.links) and len(read.links) == 1
    assert "url(" not in page and "@import" not in page
    text = "\n".join(read.texts)
    for given in ("Is <b>this</b> bold?", "<i>no</i>", "<script>x</script>", "s<1>", "<u>odd</u>", "<u>v", "<b>run"):
        assert given in text, given


def test_every_picture_is_well_formed():
    curves = [RunCurves(label="a", histories={"train/loss": {1: 2.0, 2: 1.0}})]
    page = render_page(_report("neither"), _records(), about=ABOUT, answers=[_answer()], curves=curves)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 5  # families, costs, a key, a panel, a timeline
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_what_an_evaluation_does_not_have_is_left_out():
    bare = render_page(_report(), _records(), about=ABOUT)
    for heading in ("What each condition costs", "Learning curves", "Where it looked"):
        assert heading not in bare
    assert "blind ceiling" not in bare and "Best blind control" not in bare
    full = render_page(_report("neither"), _records(), about=ABOUT, ceilings={"colours": 0.25})
    assert "What each condition costs" in full and "blind ceiling" in full and "Best blind control" in full


def test_chance_of_a_family_is_that_of_its_own_options():
    page = render_page(_report(), _records(), about=ABOUT)
    rows = dict(re.findall(r"<tr><td>(yes no|colours|all)</td>(.*?)</tr>", page))
    chances = {family: re.findall(r">([^<]+)</td>", row)[2] for family, row in rows.items()}
    assert chances == {"all": "0.35", "yes no": "0.50", "colours": "0.20"}


def test_conditions_stand_in_reading_order_and_new_ones_at_the_end():
    given = ["brand_new", "latents_zero", "own", "media_blocked", "no_audio"]
    assert in_order(given) == ["own", "no_audio", "latents_zero", "media_blocked", "brand_new"]
    page = render_page(_report(*given[:2], *given[3:]), _records(), about=ABOUT)
    table = page[page.index("cost [95 %]") :]
    places = [table.index(f"<td>{name}</td>") for name in ("own answer", "silence", "latents: zeros", "brand new")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.47, 0.57, "costs 0.52 [0.47, 0.57] (own minus exchanged, paired, n = 80): they are used."),
        (
            -0.02,
            0.04,
            "costs nothing that can be told from zero, 0.01 [-0.02, 0.04] (own minus exchanged, paired, n = 80)",
        ),
        (-0.01, 0.04, "they are not used."),
        (-0.01, 0.57, "no sign that they are used."),
        (-0.2, -0.1, "the model's own do harm."),
    ],
)
def test_the_verdict_follows_the_interval(low, high, said):
    report = _report("latents_other")
    report["costs"]["latents_other"] = {"mean": (low + high) / 2, "low": low, "high": high}
    assert said in say_verdict(report, ABOUT.asked).replace("\u00a0", " ")


def test_the_verdict_tells_a_method_without_latents_from_a_question_not_asked():
    assert say_verdict(_report(), ("own", "latents_other")).startswith("The method makes no latents")
    assert "not measured: add latents_other" in say_verdict(_report(), ("own",))
    silent = _report("latents_other", latent_steps_mean=0.0)
    assert "never opened a latent phase" in say_verdict(silent, ABOUT.asked)


def test_measures_of_any_shape_become_rows():
    measures = {
        "donor_following": {"mean": 0.61, "low": 0.53, "high": 0.69, "n": 128},
        "attention": {"n": 90, "media": {"mean": 0.05, "low": 0.04, "high": 0.06}, "layers": [0.1, 0.25]},
        "decodable": {"latents": {"accuracy": 0.9, "low": 0.8, "high": 0.95, "n": 60, "chance": 0.2, "folds": 5}},
        "absent": None,
    }
    table = measures_table(_report(measures=measures, unreadable_share=0.004))
    rows = [re.findall(r">([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert rows == [
        ["donor following", "128", "0.61", "[0.53, 0.69]", "–"],
        ["attention, media", "90", "0.05", "[0.04, 0.06]", "–"],
        ["attention, layers", "–", "0.10  0.25", "–", "–"],
        ["decodable, latents", "60", "0.90", "[0.80, 0.95]", "0.20"],
        ["decodable, latents, folds", "60", "5.00", "–", "–"],
        ["answers that name no option, share", "80", "0.0040", "–", "–"],
        ["latent steps an answer, mean", "80", "5.00", "–", "–"],
    ]


def test_figures_are_written_so_that_they_can_be_told_apart():
    values = (0.0, -0.001, -0.004, 0.0099, 0.5, 12.0, 12.34, 1234.5)
    written = [write_figure(read_figure(value)) for value in values]
    assert written == ["0.00", "-0.0010", "-0.0040", "0.01", "0.50", "12", "12.3", "1234"]
    assert [write_figure(read_figure(value)) for value in (float("nan"), None, True, {"low": 1.0})] == ["–"] * 4
