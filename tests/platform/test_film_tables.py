"""The tables and pictures of the sweep's page, on cells whose answers are known."""

from __future__ import annotations

from film_cells import rivals, variant_of

from omni_platform.film_results.drawings import CURVES, draw_cure, draw_curves, shown_panels
from omni_platform.film_results.probe_tables import exchange_table, pointing_table
from omni_platform.film_results.tables import comparison_table, few_table, shift_table
from omni_platform.film_results.verdicts import best_without_latents
from omni_platform.media.benchmark import SHIFTS


def _row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_comparison_counts_cost_against_sft():
    slow = variant_of("cure", "latent_omni", own=1.0, steps=7.0)
    for result, train_s in zip(slow.results, (150.0, 200.0, 250.0), strict=True):
        result["train_s"] = train_s  # type: ignore[index]
    row = _row(comparison_table([*rivals(), slow]), "cure")
    assert row == ["`cure`", "3", *["1.00 [1.00, 1.00]"] * 7, "7.0 (7.0, 7.0)", "2.00 (1.50, 2.50)"]


def test_a_probe_shows_accuracy_and_what_it_costs():
    variant = variant_of("cure", "latent_omni", own=1.0, latents_other=0.0)
    row = _row(exchange_table([variant]), "cure")
    assert row == ["`cure`", "3", "1.00 [1.00, 1.00]", "–", "–", "0.00 · 1.00 [1.00, 1.00]", "–", "–"]
    assert _row(pointing_table([variant]), "cure")[2] == "0.75 (0.75, 0.75)"
    assert _row(pointing_table([variant]), "cure")[-2:] == ["0.12", "–"]


def test_shifted_tests_have_intervals_though_only_counts_are_known():
    row = _row(shift_table([variant_of("sft", "sft", own=1.0)]), "sft")
    assert row[2] == "1.00 [1.00, 1.00]"
    assert [cell[:6] for cell in row[3:]] == ["0.70 ["] * len(SHIFTS)


def test_fewer_clips_show_what_they_cost():
    variants = [variant_of("sft", "sft", own=1.0), variant_of("sft_few", "sft", own=0.0)]
    assert _row(few_table(variants), "sft_few")[-1] == "1.00 [1.00, 1.00]"


def test_pictures_are_drawn_with_and_without_cells():
    histories = [{100: 0.2, 200: 0.4}, {100: 0.3}]
    for curves in ({}, {metric: {"sft": histories, "cure": [{}]} for metric in CURVES}):
        assert draw_curves(curves).startswith(b"\x89PNG")
    variants = [*rivals(), variant_of("cure", "latent_omni", own=0.6, latents_other=0.2)]
    for shown in ([], variants):
        assert draw_cure(shown, best=best_without_latents(shown)).startswith(b"\x89PNG")


def test_a_mean_of_one_family_is_not_drawn_beside_it():
    def curves(*metrics: str) -> dict:
        return {metric: {"sft": [{100: 0.5} if metric in metrics else {}]} for metric in CURVES}

    assert shown_panels(curves()) == {}
    assert [*shown_panels(curves("val/own", "val/same_shape"))] == ["val/same_shape"]
    two = ["val/own", "val/tone_at_colour", "val/same_shape"]
    assert sorted(shown_panels(curves(*two))) == sorted(two)
