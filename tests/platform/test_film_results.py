"""The sweep's figures: intervals, verdicts, rows and the page, on cells whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from omni_platform.film_results.cells import Plan, Variant, count_planned, read_plan, variants_of
from omni_platform.film_results.drawings import CURVES, draw_cure, draw_curves
from omni_platform.film_results.intervals import difference, estimate
from omni_platform.film_results.page import PLACEHOLDER, render_page, words_of
from omni_platform.film_results.probe_tables import exchange_table, pointing_table
from omni_platform.film_results.rows import further_rows, rows_of
from omni_platform.film_results.tables import comparison_table, few_table, shift_table
from omni_platform.film_results.verdicts import best_without_latents, judge
from omni_platform.media.benchmark import BENCHMARK, SHIFTS
from omni_platform.media.ceilings import Ceilings
from omni_platform.media.film_reasoning import HELD_OUT

FAMILIES = (*BENCHMARK, *HELD_OUT)
Q = 200


def _digits(share: float) -> str:
    right = round(share * Q)
    return "1" * right + "0" * (Q - right)


def _result(variant: str, seed: int, method: str, *, steps: float = 5.0, **conditions: float) -> dict:
    return {
        "variant": variant,
        "seed": seed,
        "cell": f"{variant}-s{seed}",
        "run_id": f"{variant}{seed}",
        "method": method,
        "rights": {name: dict.fromkeys(FAMILIES, _digits(share)) for name, share in conditions.items()},
        "report": {"measures": _pointing()},
        "shifts": {shift: {family: {"n": 10, "accuracy": 0.7} for family in FAMILIES} for shift in SHIFTS},
        "steps": dict.fromkeys(FAMILIES, steps),
        "train_s": 100.0,
    }


def _pointing() -> dict:
    point = {"clip_visual": {"mean": 0.75, "chance": 0.125}}
    other = {"clip_visual": {"mean": 0.5, "chance": 0.25}}
    return {"retrieval": point, "retrieval_by_type": dict.fromkeys(FAMILIES, point) | {"same_shape": other}}


def _variant(name: str, method: str, *, seeds: int = 3, steps: float = 5.0, **conditions: float) -> Variant:
    results = tuple(_result(name, seed, method, steps=steps, **conditions) for seed in range(seeds))
    return Variant(name=name, method=method, results=results)


# --- Intervals ---


def test_a_mean_weighs_families_alike():
    found = estimate([np.ones((2, 10)), np.zeros((2, 1000))])
    assert (found.mean, found.low, found.high, found.seeds) == (0.5, 0.5, 0.5, 2)


def test_one_seed_has_the_interval_of_its_questions():
    """Against the closed form of a share: p ± 1.96 √(p (1 - p) / Q)."""
    found = estimate([np.array([[1.0] * 300 + [0.0] * 100])])
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.mean == 0.75
    assert found.low == pytest.approx(0.75 - half, abs=0.005)
    assert found.high == pytest.approx(0.75 + half, abs=0.005)


def test_seeds_that_disagree_widen_the_interval():
    """Three seeds of 0, 0 and 1: a draw of three is all wrong in 8 cases of 27 and all right in one."""
    found = estimate([np.array([[0.0] * 5000, [0.0] * 5000, [1.0] * 5000])])
    assert (found.mean, found.low, found.high) == (pytest.approx(1 / 3), 0.0, 1.0)


def test_what_is_equal_is_not_above_zero_by_rounding():
    """As often right in another order of seeds: sums differ in their last digit, and a verdict must not."""
    first = [np.array([[1.0] * 7, [0.0] * 7, [1.0] * 7])] * 6
    assert difference(first, [array[::-1] for array in first], same_cells=True).low == 0.0


def test_a_difference_of_the_same_answers_is_exactly_zero():
    rights = [np.random.default_rng(0).integers(2, size=(3, 50)).astype(float)]
    found = difference(rights, rights, same_cells=True)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_both_sides_answer_the_questions_that_were_drawn():
    """Right on the same half of the questions but for one: unpaired the interval would be ten times as wide."""
    first = np.array([[1.0] * 50 + [0.0] * 50])
    second = first.copy()
    second[0, 0] = 0.0
    for same in (True, False):
        found = difference([first], [second], same_cells=same)
        assert (found.mean, found.low) == (pytest.approx(0.01), 0.0)
        assert found.high <= 0.04


def test_other_models_have_seeds_of_their_own():
    """The same digits from other models: the seeds' spread stays in the interval."""
    rights = [np.array([[0.0] * 50, [0.5] * 50, [1.0] * 50])]
    assert difference(rights, rights, same_cells=True).high == 0.0
    assert difference(rights, rights, same_cells=False).high > 0.3


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="same questions"):
        difference([np.ones((3, 5))], [np.ones((3, 6))], same_cells=False)
    with pytest.raises(ValueError, match="same cells"):
        difference([np.ones((3, 5))], [np.ones((2, 5))], same_cells=True)
    with pytest.raises(ValueError, match="at least one family"):
        estimate([])


# --- Verdicts ---


def _rivals(own: float = 0.6, seeds: int = 3) -> list[Variant]:
    return [
        _variant("sft", "sft", own=own - 0.2, seeds=seeds, steps=1.0),
        _variant("text_cot", "text_cot", own=own, steps=12.0),
    ]


@pytest.mark.parametrize(
    ("own", "other", "seeds", "verdict"),
    [
        (0.60, 0.20, 3, "**yes**"),
        (0.59, 0.20, 3, "**yes**"),
        (0.585, 0.20, 3, "no: less accurate"),
        (0.60, 0.45, 3, "no: latents cost too little"),
        (0.60, 0.39, 3, "no: cost's interval reaches below 20 points"),
        (0.60, 0.20, 2, "2 seeds: no verdict"),
        (0.60, 0.20, 1, "1 seed: no verdict"),
    ],
)
def test_a_cure_is_accurate_and_pays_for_other_latents(own, other, seeds, verdict):
    cure = _variant("cure", "latent_omni", seeds=seeds, own=own, latents_other=other)
    found = judge(cure, [*_rivals(), cure], BENCHMARK)
    assert (found.cure, found.best) == (verdict, "text_cot")
    assert found.cost is not None and found.cost.mean == pytest.approx(own - other)


@pytest.mark.parametrize(
    ("own", "steps", "verdict"),
    [
        (0.75, 20.0, "**yes**: over sft, text_cot"),
        (0.60, 20.0, "no: not over text_cot"),
        (0.60, 7.0, "**yes**: over sft, text_cot (fewer steps)"),
        (0.58, 7.0, "no: not over text_cot"),
        (0.40, 7.0, "no: not over sft, text_cot"),
    ],
)
def test_useful_is_better_than_every_rival_or_as_good_in_fewer_steps(own, steps, verdict):
    cure = _variant("cure", "latent_omni", own=own, latents_other=0.1, steps=steps)
    assert judge(cure, [*_rivals(), cure], BENCHMARK).useful == verdict


def test_no_verdict_over_rivals_that_have_not_run():
    cure = _variant("cure", "latent_omni", own=0.9, latents_other=0.1)
    assert judge(cure, [*_rivals(seeds=1), cure], BENCHMARK).cure == "sft has 1 seed: no verdict"
    absent = Variant(name="pause", method="pause")
    assert judge(cure, [*_rivals(), absent, cure], BENCHMARK).useful == "pause has 0 seeds: no verdict"


def test_fewer_clips_are_compared_with_each_other():
    few = _variant("cure_few", "latent_omni", own=0.3, latents_other=0.0)
    variants = [*_rivals(), few, _variant("sft_few", "sft", own=0.2)]
    found = judge(few, variants, BENCHMARK)
    assert (found.best, found.cure) == ("sft_few", "**yes**")
    best = best_without_latents(variants)
    assert best is not None and best.mean == pytest.approx(0.6)


def test_twice_the_steps_are_a_budget_of_their_own():
    double = _variant("cure_terse_double", "latent_omni", own=0.7, latents_other=0.0, steps=9.0)
    variants = [*_rivals(own=0.9), double, _variant("text_cot_double", "text_cot", own=0.7, steps=15.0)]
    found = judge(double, variants, BENCHMARK)
    assert (found.best, found.cure, found.useful) == (
        "text_cot_double",
        "**yes**",
        "**yes**: over text_cot_double (fewer steps)",
    )
    assert judge(_variant("cure", "latent_omni", own=0.8), variants, BENCHMARK).best == "text_cot"
    assert double.whole == "cure_terse"


# --- Cells, rows, page ---


@pytest.fixture
def plan(tmp_path) -> Plan:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "output_dir: o\nseeds: [0, 1, 2]\ncells:\n  text_cot: {method: text_cot}\n  sft: {method: sft}\n"
        "  cure: {method: latent_omni}\n  cure_terse: {like: cure}\n"
    )
    return read_plan(path)


def test_variants_stand_in_the_order_of_the_sweep(plan):
    assert plan.methods["cure_terse"] == "latent_omni"
    results = [
        _result("new", 0, "pause", own=0.5),
        _result("sft", 7, "sft", own=0.5),
        _result("sft", 0, "sft", own=0.1),
    ]
    # Run again under another config: the last counts.
    results.append(_result("sft", 0, "sft", own=0.4))
    found = variants_of(plan, results)
    assert [(v.name, v.seeds) for v in found] == [
        ("text_cot", 0),
        ("sft", 2),
        ("cure", 0),
        ("cure_terse", 0),
        ("new", 1),
    ]
    assert count_planned(plan, found) == 1
    rights = found[1].rights("own")
    assert rights is not None and rights[0].mean(1).tolist() == [0.4, 0.5]


def test_cells_of_other_tests_are_refused(plan):
    other = _result("cure", 0, "latent_omni", own=0.5)
    other["rights"]["own"]["same_shape"] = "01"
    with pytest.raises(ValueError, match="sft-s0 and cure-s0 were asked 200 and 2 questions of same_shape"):
        variants_of(plan, [_result("sft", 0, "sft", own=0.5), other])


def test_rows_leave_out_what_does_not_apply():
    plain, latent = _variant("sft", "sft", seeds=1, own=0.5), _variant("cure", "latent_omni", own=0.5, latents_zero=0.1)
    plain.results[0]["report"]["measures"].clear()  # type: ignore[index]
    rows = rows_of([plain, latent])
    assert len(rows) == 4 * (len(FAMILIES) + 1)
    assert rows[0] == {
        "variant": "sft", "latent": False, "family": "colour_at_tone", "seed": 0, "n": 200, "own": 0.5,
    }  # fmt: skip
    assert rows[-1] == {
        "variant": "cure", "latent": True, "family": "all", "seed": 2, "n": 1200, "own": 0.5, "zero": 0.1,
        "retrieval_top1": 0.75,
    }  # fmt: skip
    found = {row["family"]: row["retrieval_top1"] for row in rows if row["variant"] == "cure" and row["seed"] == 0}
    assert (found["same_shape"], found["colour_at_tone"]) == (0.5, 0.75)


def test_of_sweeps_about_one_family_the_last_gives_the_rows():
    def sweep(own: float, *families: str) -> list[Variant]:
        found = _variant("sft", "sft", seeds=1, own=own)
        found.results[0]["rights"]["own"] = dict.fromkeys(families, _digits(own))
        return [found]

    rows = further_rows([sweep(0.1, "same_shape", "tone_at_colour"), sweep(0.9, "same_shape", HELD_OUT[0])])
    assert [(row["family"], row["own"]) for row in rows] == [("tone_at_colour", 0.1), ("same_shape", 0.9)]


def test_the_mean_is_over_the_benchmark_alone():
    variant = _variant("sft", "sft", seeds=1, own=1.0)
    variant.results[0]["rights"]["own"] |= {HELD_OUT[0]: _digits(0.0), "same_shape": "1110" * 5}
    assert rows_of([variant])[-1]["own"] == round((5 + 0.75) / 6, 4)


def test_the_page_keeps_what_people_wrote(plan):
    ceilings = {f: Ceilings(chance=0.1, text=0.2, ears=0.3, eyes=0.4) for f in FAMILIES}
    variants = variants_of(plan, [_result("sft", 0, "sft", own=0.5), _result("cure", 0, "latent_omni", own=0.5)])
    first = render_page(plan, variants, ceilings, command="run", words=words_of(""))
    assert PLACEHOLDER in first and "2 of the sweep's 12 cells are finished." in first
    assert "Not there at all: `text_cot`, `cure_terse`" in first
    written = first.replace(PLACEHOLDER, "It failed.\n\n| a | b |")
    again = render_page(plan, variants, ceilings, command="run", words=words_of(written))
    assert again == written
    with pytest.raises(ValueError, match="only one of"):
        words_of(written.replace("<!-- /words -->", ""))


def test_other_families_have_a_table_of_their_own(plan):
    ceilings = {f: Ceilings(chance=0.1, text=0.2, ears=0.3, eyes=0.4) for f in FAMILIES}
    sweep = [
        _variant("sft", "sft", own=0.5, steps=4.0),
        _variant("cure", "latent_omni", own=0.9, latents_other=0.2),
        _variant("text_cot", "text_cot", own=0.6, steps=15.0),
    ]
    for variant in sweep:
        for result in variant.results:
            rights = {name: {"same_shape": of["same_shape"]} for name, of in result["rights"].items()}
            result["rights"] = rights  # type: ignore[index]
    page = render_page(plan, [], ceilings, command="run", words="x", further={"film-x": sweep})
    rows = [
        [cell.split(" [")[0] for cell in line.strip("| ").split(" | ")]
        for line in page.splitlines()
        if line.startswith("| film-x | same shape | `")
    ]
    yes = "**yes**"
    assert rows == [
        ["film-x", "same shape", "`sft`", "3", "0.50", "–", "4.0 (4.0, 4.0)", "–", "–", "–"],
        [
            "film-x",
            "same shape",
            "`cure`",
            "3",
            "0.90",
            "0.20",
            "5.0 (5.0, 5.0)",
            "0.30",
            yes,
            f"{yes}: over sft, text_cot",
        ],
        ["film-x", "same shape", "`text_cot`", "3", "0.60", "–", "15.0 (15.0, 15.0)", "–", "–", "–"],
    ]
    assert "## Other families" not in render_page(plan, [], ceilings, command="run", words="x")


def test_a_page_without_cells_is_a_page(plan):
    ceilings = {f: Ceilings(chance=0.1, text=0.2, ears=0.3, eyes=0.4) for f in FAMILIES}
    assert "0 of the sweep's 12 cells" in render_page(plan, variants_of(plan, []), ceilings, command="run", words="x")


# --- Tables and pictures ---


def _row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_comparison_counts_cost_against_sft():
    slow = _variant("cure", "latent_omni", own=1.0, steps=7.0)
    for result, train_s in zip(slow.results, (150.0, 200.0, 250.0), strict=True):
        result["train_s"] = train_s  # type: ignore[index]
    row = _row(comparison_table([*_rivals(), slow]), "cure")
    assert row == ["`cure`", "3", *["1.00 [1.00, 1.00]"] * 7, "7.0 (7.0, 7.0)", "2.00 (1.50, 2.50)"]


def test_a_probe_shows_accuracy_and_what_it_costs():
    variant = _variant("cure", "latent_omni", own=1.0, latents_other=0.0)
    row = _row(exchange_table([variant]), "cure")
    assert row == ["`cure`", "3", "1.00 [1.00, 1.00]", "–", "–", "0.00 · 1.00 [1.00, 1.00]", "–", "–"]
    assert _row(pointing_table([variant]), "cure")[2] == "0.75 (0.75, 0.75)"
    assert _row(pointing_table([variant]), "cure")[-2:] == ["0.12", "–"]


def test_shifted_tests_have_intervals_though_only_counts_are_known():
    row = _row(shift_table([_variant("sft", "sft", own=1.0)]), "sft")
    assert row[2] == "1.00 [1.00, 1.00]"
    assert [cell[:6] for cell in row[3:]] == ["0.70 ["] * len(SHIFTS)


def test_fewer_clips_show_what_they_cost():
    variants = [_variant("sft", "sft", own=1.0), _variant("sft_few", "sft", own=0.0)]
    assert _row(few_table(variants), "sft_few")[-1] == "1.00 [1.00, 1.00]"


def test_pictures_are_drawn_with_and_without_cells():
    histories = [{100: 0.2, 200: 0.4}, {100: 0.3}]
    for curves in ({}, {metric: {"sft": histories, "cure": [{}]} for metric in CURVES}):
        assert draw_curves(curves).startswith(b"\x89PNG")
    variants = [*_rivals(), _variant("cure", "latent_omni", own=0.6, latents_other=0.2)]
    for shown in ([], variants):
        assert draw_cure(shown, best=best_without_latents(shown)).startswith(b"\x89PNG")
