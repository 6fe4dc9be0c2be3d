"""Ceilings counted over scenes of the film, held against exact values that are enumerated or reckoned by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from itertools import combinations, pairwise, permutations, product

import pytest

from omni_platform.media.benchmark import BENCHMARK
from omni_platform.media.ceilings import Ceilings, ceilings, chance
from omni_platform.media.film import BLIND_CEILING
from omni_platform.media.film_hops import HOPS
from omni_platform.media.film_reasoning import HELD_OUT

FAMILIES = dict.fromkeys((*BENCHMARK, *HELD_OUT, *BLIND_CEILING, *HOPS))
TOLERANCE = 0.02
"""Four standard errors of an accuracy of one half, scored on 10,000 scenes."""


@pytest.fixture(scope="module")
def counted() -> dict[str, Ceilings]:
    return ceilings(FAMILIES)


def best_guess(groups: Iterable[Iterable[object]]) -> float:
    """The accuracy of the most frequent answer of each group, over equally likely cases."""
    counters = [Counter(answers) for answers in groups]
    return float(Fraction(sum(max(c.values()) for c in counters), sum(c.total() for c in counters)))


def exact_changes() -> Ceilings:
    """All orders of three pairs of shapes, and all pairs of shots in which two tones can sound."""
    orders = sorted(set(permutations("aabbcc")))
    shots = list(combinations(range(6), 2))
    count = {(o, s): sum(a != b for a, b in pairwise(o[s[0] : s[1] + 1])) for o in orders for s in shots}
    return Ceilings(
        chance=1 / 6,
        text=best_guess([count.values()]),
        ears=best_guess([count[o, s] for o in orders] for s in shots),
        eyes=best_guess([count[o, s] for s in shots] for o in orders),
    )


def exact_synchrony() -> Ceilings:
    """All steps of the flash, and all offsets of the beep."""
    cases = [(flash, flash + offset) for flash in range(5, 20) for offset in (-4, -3, -2, -1, 1, 2, 3, 4)]
    beeps = sorted({beep for _, beep in cases})
    return Ceilings(
        chance=1 / 2,
        text=1 / 2,
        ears=best_guess([flash < beep for flash, beep in cases if beep == heard] for heard in beeps),
        eyes=best_guess([flash < beep for flash, beep in cases if flash == seen] for seen in range(5, 20)),
    )


def exact_hops() -> Ceilings:
    """Eyes know where three or four changes lead from every shot: one early tone of three is asked."""
    best = asked = 0.0
    for count in (3, 4):
        ends = dict.fromkeys(range(count, 6), 0.0)
        for tones in combinations(range(6), 3):
            starts = [shot for shot in tones if shot + count in ends]
            for shot in starts:
                ends[shot + count] += 1 / len(starts)
        best, asked = best + max(ends.values()), asked + sum(ends.values())
    return Ceilings(chance=1 / 6, text=1 / 6, ears=1 / 6, eyes=best / asked)


# A colour is one of six words to the ears; to the eyes it is a shot, the first of which no tone precedes.
EXACT = {
    "colour_at_tone": Ceilings(chance=1 / 6, text=1 / 6, ears=1 / 6, eyes=1 / 6),
    "tone_at_colour": Ceilings(chance=1 / 4, text=1 / 4, ears=1 / 4, eyes=1 / 4),
    "colour_after_tone": Ceilings(chance=1 / 6, text=1 / 6, ears=1 / 6, eyes=1 / 5),
    "colour_n_after_tone": Ceilings(chance=1 / 6, text=1 / 6, ears=1 / 6, eyes=(1 / 5 + 1 / 4) / 2),
    "changes_between_tones": exact_changes(),
    "same_shape": Ceilings(chance=1 / 2, text=1 / 2, ears=1 / 2, eyes=1 / 2),
    # Three of the four shapes are shown, each in two shots.
    "shape_at_tone": Ceilings(chance=1 / 4, text=1 / 4, ears=1 / 4, eyes=1 / 3),
    "flash_before_beep": exact_synchrony(),
    "colour_far_after_tone": exact_hops(),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_counting_finds_the_exact_ceilings(counted: dict[str, Ceilings], family: str) -> None:
    found, exact = counted[family], EXACT[family]
    assert found.chance == exact.chance
    assert (found.text, found.ears, found.eyes) == pytest.approx((exact.text, exact.ears, exact.eyes), abs=TOLERANCE)
    assert found.blind == max(found.ears, found.eyes)


def test_the_known_ceilings_are_those_that_are_counted(counted: dict[str, Ceilings]) -> None:
    for family, known in BLIND_CEILING.items():
        assert counted[family].blind == pytest.approx(known, abs=TOLERANCE)
        assert known == max(EXACT[family].ears, EXACT[family].eyes)


def test_two_families_leak_more_to_the_ears_than_chance_says(counted: dict[str, Ceilings]) -> None:
    """Ears hear how far apart two tones are, and near an end of a clip the flash has room on one side only."""
    for family, ears in {"changes_between_tones": 3 / 5, "flash_before_beep": 2 / 3}.items():
        assert EXACT[family].ears == pytest.approx(ears)
        assert counted[family].ears == pytest.approx(ears, abs=TOLERANCE)
        assert counted[family].ears > max(counted[family].eyes, counted[family].text) + 0.1


def test_the_best_of_one_sense_alone_is_the_better_of_the_two() -> None:
    (found,) = ceilings(("flash_before_beep",), num_scenes=500).values()
    assert found.blind == max(found.ears, found.eyes)
    assert chance("flash_before_beep") == 1 / 2


def test_longer_clips_have_ceilings_of_their_own() -> None:
    """Nine shots show a colour up to three times, which eyes can bet on; the balanced families stay balanced."""
    families = ("colour_at_tone", "colour_after_tone", "tone_at_colour", "same_shape", "changes_between_tones")
    found = ceilings(families, num_scenes=5000, num_shots=9)
    # Six colours, then three more, each another one than its neighbour.
    rows = [(*range(6), *last) for last in product(range(6), repeat=3) if all(a != b for a, b in pairwise((5, *last)))]
    at, after = (sum(max(Counter(row[n:]).values()) for row in rows) / len(rows) / (9 - n) for n in (0, 1))
    assert found["colour_at_tone"].eyes == pytest.approx(at, abs=TOLERANCE)
    assert found["colour_after_tone"].eyes == pytest.approx(after, abs=TOLERANCE)
    balanced = [found["tone_at_colour"], found["same_shape"]]
    assert [one.text for one in balanced] == pytest.approx([1 / 4, 1 / 2], abs=0.04)
    assert [one.blind for one in balanced] == pytest.approx([1 / 4, 1 / 2], abs=0.04)
    assert found["changes_between_tones"].chance == chance("changes_between_tones", num_shots=9) == 1 / 9


def test_families_without_a_description_are_refused() -> None:
    with pytest.raises(ValueError, match="no ceiling is known for tones_by_second; described are colour_at_tone, "):
        ceilings(("tones_by_second",))
