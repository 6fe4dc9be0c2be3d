"""What the page shows of the probes: latents exchanged, senses taken away, where the model looks, what is legible."""

from __future__ import annotations

from collections.abc import Sequence

from omni_platform.film_results.cells import OWN, Variant
from omni_platform.film_results.intervals import difference, estimate
from omni_platform.film_results.tables import MISSING, table, write, write_seeds
from omni_platform.media.benchmark import BENCHMARK

_EXCHANGED = {
    "latents_zero": "zeros",
    "latents_noise": "noise of equal norm",
    "latents_other": "another clip's",
    "latents_first": "the first one held",
    "latents_gold": "gold anchors",
}
_TAKEN = {
    "span_removed": "span removed",
    "markers_only": "markers only",
    "half_budget": "half the latents",
    "double_budget": "twice the latents",
    "media_blocked": "media hidden after",
    "latents_blocked": "latents hidden after",
}
_BLIND = {"no_audio": "silence", "no_video": "black frames", "neither": "neither sense"}
_SITES = ("media", "question", "latents", "after")


def exchange_table(variants: Sequence[Variant]) -> str:
    """Own accuracy, and accuracy · paired cost with other vectors in the latents' place."""
    return _conditions(variants, _EXCHANGED)


def removal_table(variants: Sequence[Variant]) -> str:
    """The same with slots or what words may look at taken away."""
    return _conditions(variants, _TAKEN)


def blind_table(variants: Sequence[Variant]) -> str:
    """The same without a sense."""
    return _conditions(variants, _BLIND)


def pointing_table(variants: Sequence[Variant]) -> str:
    """Whose answer exchanged latents bring, and whether a latent resembles the moment it should point at."""
    head = ["variant", "answers as the donor's question asks"]
    head += [f"{kind}: among the {scope}'s" for scope in ("clip", "batch") for kind in ("visual", "audio")]
    head += ["chance, clip", "chance, batch"]
    measures = ("report", "measures")
    rows = []
    for v in variants:
        kinds = [(scope, f"{scope}_{kind}") for scope in ("clip", "batch") for kind in ("visual", "audio")]
        points = [write_seeds(v.figures(*measures, "retrieval", name, "mean")) for _, name in kinds]
        chances = [
            next((words for s, name in kinds if s == scope and (words := _chance(v, name)) != MISSING), MISSING)
            for scope in ("clip", "batch")
        ]
        rows.append(
            [f"`{v.name}`", write_seeds(v.figures(*measures, "donor_following", "accuracy")), *points, *chances]
        )
    return table(head, _telling(rows))


def vector_table(variants: Sequence[Variant]) -> str:
    """What kind of vectors latents are, and where words and latents look."""
    columns = {
        "norm / media's": ("latents", "norm_ratio"),
        "effective rank, visual": ("latents", "effective_rank_visual"),
        "effective rank, audio": ("latents", "effective_rank_audio"),
        "words on audio-video": ("attention", "words_on_media"),
        "words on latents": ("attention", "words_on_latents"),
        "latents on audio-video": ("attention", "latents_on_media"),
        "ratio, direct": ("attention", "ratio_direct"),
        "ratio, with credit (paper)": ("attention", "ratio_paper"),
    }
    rows = [
        [f"`{v.name}`", *(write_seeds(v.figures("report", "measures", *keys)) for keys in columns.values())]
        for v in variants
    ]
    return table(["variant", *columns], _telling(rows))


def reading_table(variants: Sequence[Variant]) -> str:
    """Accuracy of a linear probe for the answer at each site, mean of the families that every seed has there."""
    rows = []
    for v in variants:
        cells = [write_seeds(_decodable(v, site, "accuracy")) for site in _SITES]
        rows.append([f"`{v.name}`", *cells, write_seeds(_decodable(v, "question", "chance"))])
    head = ["variant", "clip", "end of question", "latents", "after the last span", "chance"]
    return table(head, _telling(rows))


def _conditions(variants: Sequence[Variant], names: dict[str, str]) -> str:
    rows = []
    for v in variants:
        own = v.rights(OWN)
        rights = [v.rights(name) for name in names]
        if own is None or all(found is None for found in rights):
            continue
        cells = [
            MISSING
            if found is None
            else f"{estimate(found).mean:.2f} · {write(difference(own, found, same_cells=True))}"
            for found in rights
        ]
        rows.append([f"`{v.name}`", str(v.seeds), write(estimate(own)), *cells])
    return table(["variant", "seeds", "own", *names.values()], rows)


def _chance(variant: Variant, name: str) -> str:
    return write_seeds(variant.figures("report", "measures", "retrieval", name, "chance")[:1])


def _decodable(variant: Variant, site: str, key: str) -> list[float]:
    """One mean over families a seed; the families are those that all seeds have at the site."""
    of_seeds = [r["report"]["measures"].get("decodability", {}) for r in variant.results]
    families = [f for f in BENCHMARK if of_seeds and all(site in found.get(f, {}) for found in of_seeds)]
    return [sum(found[f][site][key] for f in families) / len(families) for found in of_seeds if families]


def _telling(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Rows that have at least one figure."""
    return [row for row in rows if any(cell != MISSING for cell in row[1:])]
