"""The page of the sweep: every table with what it means, and the words that people wrote, which stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omni_platform.film_results import probe_tables, tables
from omni_platform.film_results.cells import Plan, Variant
from omni_platform.media.ceilings import Ceilings

_BEGIN, _END = "<!-- words -->", "<!-- /words -->"
PLACEHOLDER = "To be written: what was predicted ([film_predictions.md](film_predictions.md)), and what came out."
CURVES_PICTURE, CURE_PICTURE = "film_curves.png", "film_cure.png"


def render_page(
    plan: Plan,
    variants: Sequence[Variant],
    ceilings: Mapping[str, Ceilings],
    *,
    command: str,
    sweep_config: str,
    words: str,
    further: Mapping[str, Sequence[Variant]] | None = None,
) -> str:
    """The whole page as Markdown; `words` stand at the top, between their marks.

    `sweep_config` is where the sweep's YAML lies from the page. Sweeps of `further`, by the name of their experiment,
    ask other families.
    """
    made = [v for v in variants if v.seeds]
    parts = [
        _HEAD.format(command=command, config=sweep_config, present=tables.present_text(plan, variants)),
        f"## What was predicted and what came out\n{_BEGIN}\n{words.strip()}\n{_END}\n",
        "## The benchmark\n" + _BENCHMARK + "\n" + tables.benchmark_table(ceilings),
        "## The comparison\n" + _COMPARISON + "\n" + tables.comparison_table(made),
        f"## Learning curves\n{_CURVES}\n![Learning curves]({CURVES_PICTURE})\n",
        "## The probes\n" + _PROBES,
        "### Other vectors in the latents' place\n" + probe_tables.exchange_table(made),
        "### Something taken away\n" + probe_tables.removal_table(made),
        "### Without a sense\n" + probe_tables.blind_table(made),
        "### Do latents point at the right moment?\n" + _POINTING + "\n" + probe_tables.pointing_table(made),
        "### Vectors and attention\n" + _VECTORS + "\n" + probe_tables.vector_table(made),
        "### Where the answer can be read off\n" + _READING + "\n" + probe_tables.reading_table(made),
        # The plan's missing variants too: without them there is no verdict.
        f"## The cure\n{_CURE}\n![Own and another clip's latents]({CURE_PICTURE})\n\n" + tables.cure_table(variants),
        *(["## Other sweeps\n" + _FURTHER + "\n" + tables.further_table(further)] if further else []),
        "## Other tests than training\n" + _SHIFTS + "\n" + tables.shift_table(made),
        "### A family that no training asks\n" + tables.held_out_table(made, ceilings),
        "## Fewer clips\n" + _FEW + "\n" + tables.few_table(variants),
    ]
    return "\n".join(parts)


def words_of(page: str) -> str:
    """What people wrote into an earlier page. Raises `ValueError` where only one of the two marks is there."""
    if (_BEGIN in page) != (_END in page):
        raise ValueError(f"the page has only one of {_BEGIN} and {_END}: put the other back, or words would be lost")
    if _BEGIN not in page:
        return PLACEHOLDER
    return page.split(_BEGIN, 1)[1].rsplit(_END, 1)[0].strip() or PLACEHOLDER


_HEAD = """\
# The film: do latents matter, and do they help?

Every variant begins with the same base and sees the same clips in the same steps; answers are free-running and
greedy, on test clips that no training has seen. What a variant is stands in [the sweep's
config]({config}). All tables, both pictures and [film.json](film.json) are made from
MLflow by
```
{command}
```

{present}

Figures are means over families, seeds and questions with 95 % intervals in brackets: bootstrap over seeds, then
questions, the same questions for both sides of a difference. Of one seed the interval is over questions alone, and
three seeds are few to draw from. Figures of models (attention, ranks, times, probes) are means over seeds, with the
lowest and the highest seed in parentheses.
"""
_BENCHMARK = """\
Computed from the film's world, not from a model: the best accuracy of a guess that knows the question's text, hears
only, or sees only.
"""
_COMPARISON = """\
*Sequential steps* are words and latents generated one after the other, a question. Training time is as measured on
the machine of the sweep, beside other cells.
"""
_CURVES = "Lines are means over seeds, bands reach from the lowest seed to the highest.\n"
_PROBES = """\
Means of the families asked. Each cell: accuracy · what the change costs (own minus changed, paired). A dash: the
change does not apply to the method, or was not run.
"""
_POINTING = """\
Whose answer it is where another clip's latents are fed and the donor's answer is another option; and the share of
spans whose mean is nearest to the moment that the trajectory looks at, among the moments of the clip or of the
batch.
"""
_VECTORS = """\
Attention is a mean over layers, heads and generated positions. The ratio compares audio-video with text: *direct*
counts what a position itself reads of the clip, *with credit* counts looking at latents as looking at the clip, as
the paper does.
"""
_READING = """\
Accuracy of a linear probe on clips it has not learned from, mean of the families asked. To be readable is not to be
used.
"""
_CURE = """\
**Cure**: own accuracy no lower than the best variant without latents, within one point, and another clip's latents
cost at least 20 points, the whole interval above. **Useful**: over every variant without latents, on accuracy with
the paired interval above zero, or within one point of it with fewer sequential steps (every seed below every
seed). Fewer than three seeds, of the variant or of any it is compared with: no verdict. Variants with fewer
clips (`_few`) or twice the steps (`_double`) are compared with each other only. A useful variant that
is no cure need not owe its lead to what its latents hold.
"""
_FURTHER = """\
Sweeps of their own, on other families or other clips or from another base, all variants of one in as many steps
(`_double` in twice as many); how each was run stands in the config that the command above names. Judged by the same two
rules, among the variants run.
"""
_SHIFTS = """\
Means of the families asked. *Longer*: nine shots instead of six. *Noise*: in picture and sound. *Frame
rate*: three frames a second. Intervals of shifted tests take seeds to be right on the same questions as far as they
can be, which makes them the widest.
"""
_FEW = """\
As many steps on fewer clips. *Lost*: with all clips minus with few, over the same questions.
"""
