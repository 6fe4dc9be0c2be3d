"""Make the pages of the sweep: python jobs/film_results.py --config jobs/configs/sweep/results.yaml

Reads every finished cell of one MLflow experiment, and writes tables and pictures for people and rows for machines.
What people wrote into the page stays.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omni_platform import storage
from omni_platform.config import parse_args
from omni_platform.film_results.cells import read_plan, variants_of
from omni_platform.film_results.drawings import draw_cure, draw_curves, read_curves
from omni_platform.film_results.page import CURE_PICTURE, CURVES_PICTURE, render_page, words_of
from omni_platform.film_results.rows import further_rows, rows_of
from omni_platform.film_results.verdicts import best_without_latents
from omni_platform.media.benchmark import BENCHMARK
from omni_platform.media.ceilings import ceilings
from omni_platform.media.film_hops import HOPS
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.sweep import read_results

PAGE, ROWS = "film.md", "film.json"


@dataclass(frozen=True, kw_only=True)
class ResultsConfig:
    """Which sweep is shown, and where."""

    sweep_config: str
    """The sweep's YAML: the order of the variants, and which cells there should be."""
    seeds: tuple[int, ...] = ()
    """Seeds that there should be, where they are others than the YAML's."""
    output_dir: str = "docs/results"
    experiment_name: str = "film"
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})
    """None = the store in the sweep's output folder."""
    further: tuple[str, ...] = ()
    """Experiments about other families or other clips, shown in a table of their own; those not run are left out."""
    curves: tuple[str, ...] = ()
    """Variants whose learning curves are drawn."""
    num_scenes: int = 10_000
    """Scenes from which the ceilings of one sense are counted."""


CONFIG = ResultsConfig


def main() -> None:
    config = parse_args(ResultsConfig)
    plan = read_plan(config.sweep_config)
    plan = replace(plan, seeds=config.seeds or plan.seeds)
    uri = config.tracking_uri or f"sqlite:///{Path(plan.output_dir).absolute()}/mlflow.db"
    variants = variants_of(plan, read_results(config.experiment_name, tracking_uri=uri))
    page = storage.join(config.output_dir, PAGE)
    words = words_of(storage.read_bytes(page).decode() if storage.exists(page) else "")
    found = ceilings((*BENCHMARK, *HELD_OUT, *HOPS), num_scenes=config.num_scenes)
    further = {name: variants_of(plan, of_name) for name in config.further if (of_name := _results(name, uri))}
    shown = [v for name in config.curves for v in variants if v.name == name and v.seeds]
    files = {
        CURVES_PICTURE: draw_curves(read_curves(shown, tracking_uri=uri)),
        CURE_PICTURE: draw_cure(variants, best=best_without_latents(variants)),
        ROWS: _lines(rows_of(variants) + further_rows(further)),
        PAGE: render_page(
            plan,
            variants,
            found,
            command=command_of(sys.argv[1:]),
            sweep_config=_seen_from(config.output_dir, config.sweep_config),
            words=words,
            further=further,
        ).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(config.output_dir, name), data)
    print(f"{sum(v.seeds for of in (variants, *further.values()) for v in of)} cells: {page}")


def command_of(words: Sequence[str]) -> str:
    """What makes the page again, without the store: where that lies is each reader's own."""
    kept = [word for word in words if not word.startswith("tracking_uri=")]
    return shlex.join([".venv/bin/python", "jobs/film_results.py", *kept])


def _seen_from(folder: str, path: str) -> str:
    return path if storage.is_remote(folder) else os.path.relpath(path, storage.local_path(folder))


def _results(experiment_name: str, tracking_uri: str) -> list[dict]:
    try:
        return read_results(experiment_name, tracking_uri=tracking_uri)
    except ValueError as missing:
        print(f"left out: {missing}")
        return []


def _lines(rows: list[dict]) -> bytes:
    """A JSON list with one row a line."""
    return ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n").encode()


if __name__ == "__main__":
    main()
