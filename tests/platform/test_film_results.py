"""The sweep's figures: intervals, verdicts, rows and the page, on cells whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from film_cells import FAMILIES, digits, result_of, rivals, variant_of

from omni_platform.film_results.cells import Plan, Variant, count_planned, read_plan, variants_of
from omni_platform.film_results.intervals import difference, estimate
from omni_platform.film_results.page import PLACEHOLDER, render_page, words_of
from omni_platform.film_results.rows import further_rows, rows_of
from omni_platform.film_results.verdicts import best_without_latents, judge
from omni_platform.media.benchmark import BENCHMARK
from omni_platform.media.ceilings import Ceilings
from omni_platform.media.film_hops import HOPS
from omni_platform.media.film_reasoning import HELD_OUT

HOP = next(iter(HOPS))

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
    cure = variant_of("cure", "latent_omni", seeds=seeds, own=own, latents_other=other)
    found = judge(cure, [*rivals(), cure], BENCHMARK)
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
    cure = variant_of("cure", "latent_omni", own=own, latents_other=0.1, steps=steps)
    assert judge(cure, [*rivals(), cure], BENCHMARK).useful == verdict


def test_no_verdict_over_rivals_that_have_not_run():
    cure = variant_of("cure", "latent_omni", own=0.9, latents_other=0.1)
    assert judge(cure, [*rivals(seeds=1), cure], BENCHMARK).cure == "sft has 1 seed: no verdict"
    absent = Variant(name="pause", method="pause")
    assert judge(cure, [*rivals(), absent, cure], BENCHMARK).useful == "pause has 0 seeds: no verdict"


def test_fewer_clips_are_compared_with_each_other():
    few = variant_of("cure_few", "latent_omni", own=0.3, latents_other=0.0)
    variants = [*rivals(), few, variant_of("sft_few", "sft", own=0.2)]
    found = judge(few, variants, BENCHMARK)
    assert (found.best, found.cure) == ("sft_few", "**yes**")
    best = best_without_latents(variants)
    assert best is not None and best.mean == pytest.approx(0.6)


def test_twice_the_steps_are_a_budget_of_their_own():
    double = variant_of("cure_terse_double", "latent_omni", own=0.7, latents_other=0.0, steps=9.0)
    variants = [*rivals(own=0.9), double, variant_of("text_cot_double", "text_cot", own=0.7, steps=15.0)]
    found = judge(double, variants, BENCHMARK)
    assert (found.best, found.cure, found.useful) == (
        "text_cot_double",
        "**yes**",
        "**yes**: over text_cot_double (fewer steps)",
    )
    assert judge(variant_of("cure", "latent_omni", own=0.8), variants, BENCHMARK).best == "text_cot"
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
        result_of("new", 0, "pause", own=0.5),
        result_of("sft", 7, "sft", own=0.5),
        result_of("sft", 0, "sft", own=0.1),
    ]
    # Run again under another config: the last counts.
    results.append(result_of("sft", 0, "sft", own=0.4))
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
    other = result_of("cure", 0, "latent_omni", own=0.5)
    other["rights"]["own"]["same_shape"] = "01"
    with pytest.raises(ValueError, match="sft-s0 and cure-s0 were asked 200 and 2 questions of same_shape"):
        variants_of(plan, [result_of("sft", 0, "sft", own=0.5), other])


def test_rows_leave_out_what_does_not_apply():
    plain, latent = (
        variant_of("sft", "sft", seeds=1, own=0.5),
        variant_of("cure", "latent_omni", own=0.5, latents_zero=0.1),
    )
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


def test_rows_of_other_sweeps_name_their_sweep():
    def sweep(own: float, *families: str) -> list[Variant]:
        found = variant_of("sft", "sft", seeds=1, own=own)
        found.results[0]["rights"]["own"] = dict.fromkeys(families, digits(own))
        return [found]

    rows = further_rows({"one": sweep(0.1, "same_shape", "tone_at_colour"), "two": sweep(0.9, HOP, HELD_OUT[0])})
    assert [(row["sweep"], row["family"], row["own"]) for row in rows] == [
        ("one", "same_shape", 0.1),
        ("one", "tone_at_colour", 0.1),
        ("two", HOP, 0.9),
    ]


def test_the_mean_is_over_the_benchmark_alone():
    variant = variant_of("sft", "sft", seeds=1, own=1.0)
    variant.results[0]["rights"]["own"] |= {HELD_OUT[0]: digits(0.0), "same_shape": "1110" * 5}
    assert rows_of([variant])[-1]["own"] == round((5 + 0.75) / 6, 4)


def test_the_page_keeps_what_people_wrote(plan):
    ceilings = {f: Ceilings(chance=0.1, text=0.2, ears=0.3, eyes=0.4) for f in FAMILIES}
    variants = variants_of(plan, [result_of("sft", 0, "sft", own=0.5), result_of("cure", 0, "latent_omni", own=0.5)])
    first = render_page(plan, variants, ceilings, command="run", sweep_config="film.yaml", words=words_of(""))
    assert PLACEHOLDER in first and "2 of the sweep's 12 cells are finished." in first
    assert "Not there at all: `text_cot`, `cure_terse`" in first
    written = first.replace(PLACEHOLDER, "It failed.\n\n| a | b |")
    again = render_page(plan, variants, ceilings, command="run", sweep_config="film.yaml", words=words_of(written))
    assert again == written
    with pytest.raises(ValueError, match="only one of"):
        words_of(written.replace("<!-- /words -->", ""))


def test_other_families_have_a_table_of_their_own(plan):
    ceilings = {f: Ceilings(chance=0.1, text=0.2, ears=0.3, eyes=0.4) for f in FAMILIES}
    sweep = [
        variant_of("sft", "sft", own=0.5, steps=4.0),
        variant_of("cure", "latent_omni", own=0.9, latents_other=0.2),
        variant_of("text_cot", "text_cot", own=0.6, steps=15.0),
    ]
    for variant in sweep:
        for result in variant.results:
            rights = {name: {"same_shape": of["same_shape"]} for name, of in result["rights"].items()}
            result["rights"] = rights  # type: ignore[index]
    page = render_page(
        plan, [], ceilings, command="run", sweep_config="film.yaml", words="x", further={"film-x": sweep}
    )
    assert "## Other sweeps" in page
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
    assert "## Other sweeps" not in render_page(plan, [], ceilings, command="run", sweep_config="film.yaml", words="x")


def test_a_page_without_cells_is_a_page(plan):
    ceilings = {f: Ceilings(chance=0.1, text=0.2, ears=0.3, eyes=0.4) for f in FAMILIES}
    assert "0 of the sweep's 12 cells" in render_page(
        plan, variants_of(plan, []), ceilings, command="run", sweep_config="film.yaml", words="x"
    )
