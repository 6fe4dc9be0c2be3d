"""The pictures of the page stand where the figures say: bars, intervals, segments, moments, frames, sound."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from omni_platform.artifacts import Card, write_card
from omni_platform.data.batches import TrainingRow, TrainingRows
from omni_platform.data.parts import Part, write_part
from omni_platform.media.decode import DecodedClip
from omni_platform.report.answers import ShownAnswer, choose_answers
from omni_platform.report.bars import Bar, draw_bars
from omni_platform.report.figure import Figure
from omni_platform.report.strip import draw_strip, outline
from omni_platform.report.timeline import draw_timeline
from omni_platform.schema import LookStep, Sample

SECONDS = 4
COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0))


def _frames(side_px: int = 16) -> np.ndarray:
    """One colour a second at two frames a second."""
    return np.concatenate([np.full((2, side_px, side_px, 3), colour, np.uint8) for colour in COLOURS])


def _row(*looks: tuple[float, float], waveform: np.ndarray | None = None) -> TrainingRow:
    sample = Sample(
        sample_id="s",
        clip_uri="c.mp4",
        question="q",
        answer="a",
        trajectory=tuple(LookStep(start_s=a, end_s=b) for a, b in looks),
    )
    return TrainingRow(
        sample=sample,
        clip_id="c",
        frames=_frames(),
        sample_fps=2.0,
        waveform=waveform,
        read_segments=lambda: ((), ()),
    )


def _elements(svg: str, tag: str, css: str) -> list[dict[str, float | str]]:
    found = [e for e in ElementTree.fromstring(svg).iter(tag) if css in e.get("class", "").split()]
    return [dict(e.attrib) for e in found]


def _x(element: dict, *names: str) -> list[float]:
    return [float(element[name]) for name in names]


def test_bars_and_marks_are_to_scale():
    figure = Figure(point=0.5, low=0.25, high=0.75, n=8)
    svg = draw_bars([Bar(label="a", figure=figure, marks={"chance": 0.25})], axis="accuracy", limits=(0.0, 1.0))
    (bar,), (whisker,), (chance,) = (
        _elements(svg, "rect", "bar"),
        _elements(svg, "path", "whisker"),
        _elements(svg, "line", "chance"),
    )
    start, width = _x(bar, "x", "width")
    low, high = (float(x) for x in str(whisker["d"]).split("M")[1].replace("H", " ").split()[::2])
    assert (low - start) / width == pytest.approx(0.5, abs=0.01)
    assert (high - start) / width == pytest.approx(1.5, abs=0.01)
    assert _x(chance, "x1") == [pytest.approx(low)]
    assert "a: 0.50 [0.25, 0.75], n = 8" in svg


def test_a_negative_cost_goes_to_the_left_of_zero_and_fits():
    bars = [Bar(label=str(v), figure=Figure(point=v, low=v - 0.1, high=v + 0.1)) for v in (-0.4, 0.4)]
    svg = draw_bars(bars, axis="cost", limits=(0.0, 0.1))
    (left, left_width), (right, right_width) = (_x(bar, "x", "width") for bar in _elements(svg, "rect", "bar"))
    assert left + left_width == pytest.approx(right, abs=0.2)
    assert left_width == pytest.approx(right_width, abs=0.2)
    edges = [float(x) for e in _elements(svg, "path", "whisker") for x in str(e["d"])[1:].replace("H", " ").split()[:1]]
    assert min(edges) == pytest.approx(216.0)


def test_the_strip_shows_the_frame_that_is_on_at_the_middle_of_each_cell():
    strip = matplotlib.image.imread(
        io.BytesIO(draw_strip(_frames(), sample_fps=2.0, duration_s=4.0, num_cells=4)), "jpeg"
    )
    assert strip.shape == (16, 64, 3)
    for second, colour in enumerate(COLOURS):
        assert np.abs(strip[8, 16 * second + 8].astype(int) - colour).max() < 12
    large = matplotlib.image.imread(
        io.BytesIO(draw_strip(_frames(240), sample_fps=2.0, duration_s=9.0, num_cells=9)), "jpeg"
    )
    assert large.shape == (80, 9 * 80, 3)  # means over squares of 3
    assert np.abs(large[40, -40].astype(int) - COLOURS[-1]).max() < 12  # the last frame stays


def test_the_outline_of_a_sound_is_its_loudest_sample_by_stretch():
    wave = np.zeros(1000, np.float32)
    wave[510], wave[720] = -0.4, 0.2
    assert outline(wave, 10).tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 0, 0.5, 0, 0])
    assert outline(np.zeros(3, np.float32), 10).tolist() == [0.0] * 10


def test_looks_and_moments_share_the_axis_of_the_clip():
    moments = [
        {"phase": 0, "modality": "visual", "start_s": 1.0, "end_s": 2.0, "similarity": 0.5},
        {"phase": 0, "modality": "audio", "start_s": 3.0, "end_s": 4.0, "similarity": 0.25},
        {"phase": 1, "modality": "visual", "start_s": 0.0, "end_s": 1.0, "similarity": 0.125},
    ]
    row = _row((1.0, 2.0), waveform=np.ones(16_000 * SECONDS, np.float32))
    svg = draw_timeline(ShownAnswer(row=row, record={"moments": moments}))
    (strip,) = [e.attrib for e in ElementTree.fromstring(svg).iter("image")]
    start, width = _x(strip, "x", "width")

    def second(element: dict) -> tuple[float, float]:
        x, length = _x(element, "x", "width")
        return (x - start) / width * SECONDS, length / width * SECONDS

    (look,), (heard,), seen = (_elements(svg, "rect", css) for css in ("look", "second", "first"))
    assert second(look) == pytest.approx((1.0, 1.0), abs=0.01)
    assert second(heard) == pytest.approx((3.0, 1.0), abs=0.01)
    assert [second(e)[0] for e in seen] == pytest.approx([1.0, 0.0], abs=0.01)
    texts = [e.text for e in ElementTree.fromstring(svg).iter("text")]
    assert {"phase 1, visual", "phase 1, audio", "phase 2, visual", "0.50", "0.25", "0.12", "4 s"} <= set(texts)


def test_records_without_moments_and_answers_without_looks_are_told_apart():
    mute = _row((0.0, 1.0))
    older = draw_timeline(ShownAnswer(row=mute, record={}))
    assert "phase" not in older and "did not look" not in older and 'class="sound"' not in older
    assert "did not look again" in draw_timeline(ShownAnswer(row=mute, record={"moments": []}))


@pytest.fixture
def rows(tmp_path: Path) -> TrainingRows:
    part = Part()
    for number in range(12):
        clip = DecodedClip(frames=_frames(), sample_fps=2.0, waveform=None, duration_s=4.0)
        part.add_clip(f"clip{number}", f"c{number}.mp4", clip)
        kind = ("common", "common", "rare")[number % 3]
        sample = Sample(sample_id=f"q{number:02}", clip_uri="c", question="q", answer="a", question_type=kind)
        part.add_sample(sample, f"clip{number}", length=1)
    write_part(str(tmp_path), part)
    write_card(tmp_path, Card(name="anchors"))
    return TrainingRows.open(tmp_path)


def test_right_and_wrong_answers_of_every_family_are_shown_with_their_own_clips(rows: TrainingRows):
    records = [
        {"sample_id": i, "condition": c, "question_type": rows.sample(n).question_type, "right": n >= 3, "text": str(n)}
        for c in ("neither", "own")
        for n, i in enumerate(rows.ids)
    ]
    shown = choose_answers(records, rows, 4)
    assert [a.record["right"] for a in shown] == [True, False, True, False]
    assert {a.record["condition"] for a in shown} == {"own"}
    assert {(a.record["question_type"], a.record["right"]) for a in shown} == {
        (kind, right) for kind in ("common", "rare") for right in (True, False)
    }
    assert all(a.row.sample.sample_id == a.record["sample_id"] for a in shown)
    again = choose_answers(records[::-1], rows, 4)
    assert [a.record["sample_id"] for a in again] == [a.record["sample_id"] for a in shown]
    only_right = [r for r in records if r["right"]]
    assert len(choose_answers(only_right, rows, 5)) == 5 and len(choose_answers(records, rows, 99)) == 12
