"""Evaluate a model: python jobs/evaluate.py --config jobs/configs/evaluate/film.yaml

Accuracy by question type with intervals, the blind controls, and the controls on latents, on a preprocessed folder:
as JSON, and as a page for a browser.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omni_model.examine import CONDITIONS, Examiner, summarise
from omni_platform import storage, tracking
from omni_platform.artifacts import Card, fingerprint_bytes, read_card, write_card
from omni_platform.bounds import Count, Natural, NotNegative, Share
from omni_platform.config import fingerprint, parse_args, to_dict
from omni_platform.data.batches import TrainingRows
from omni_platform.data.examination import examine
from omni_platform.pictures import draw_conditions
from omni_platform.report.answers import choose_answers
from omni_platform.report.curves import RunCurves, read_curves
from omni_platform.report.page import About, render_page
from omni_platform.runtime import start_ray


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One model, one prepared set of questions."""

    model: str
    """An exported folder, or models:/name@alias."""
    dataset_dir: str
    """The output folder of preprocess for held-out clips (a path or s3://)."""
    output_dir: str
    """Where report.json, report.html, records.jsonl and the picture go."""
    conditions: tuple[str, ...] = CONDITIONS
    """`own` and the controls to run beside it."""
    measured: bool = False
    """Also measure where the model looks and what its latents are like."""
    batch_size: Count = 48
    num_examiners: Count = 1
    """Models answering side by side."""
    num_gpus_per_examiner: NotNegative = 0.0
    limit: Count | None = None
    """Only so many questions."""
    max_new_tokens: Count = 64
    max_phases: Natural = 4
    run_id: str | None = field(default=None, metadata={"env": "MLFLOW_RUN_ID"})
    """The MLflow run that gets the figures; none where empty."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})
    compare_run_ids: tuple[str, ...] = ()
    """MLflow runs whose learning curves the page shows beside those of `run_id`."""
    blind_ceilings: dict[str, Share] = field(default_factory=dict)
    """Question type -> the best accuracy that one sense alone can reach, marked on the page where it is given."""
    num_timelines: Natural = 6
    """Questions whose clip and latents are drawn on the page."""
    num_cpus: Count | None = None
    """CPUs of the Ray that is started where there is no cluster."""


CONFIG = EvaluateConfig


def main() -> None:
    config = parse_args(EvaluateConfig)
    # Before the long part: a run that does not exist is better known at once.
    curves = read_curves(_runs(config), tracking_uri=config.tracking_uri)
    start_ray(num_cpus=config.num_cpus)
    folder = tracking.resolve_model(config.model, tracking_uri=config.tracking_uri)
    build = partial(
        Examiner,
        str(folder),
        conditions=config.conditions,
        measured=config.measured,
        max_new_tokens=config.max_new_tokens,
        max_phases=config.max_phases,
        device="cuda" if config.num_gpus_per_examiner else "cpu",
    )
    records = examine(
        storage.absolute(config.dataset_dir),
        build,
        batch_size=config.batch_size,
        num_examiners=config.num_examiners,
        num_gpus_per_examiner=config.num_gpus_per_examiner,
        limit=config.limit,
    )
    report = summarise(records)
    _write(config, report, records, curves)
    _print(report)


def _runs(config: EvaluateConfig) -> list[str]:
    return [*([config.run_id] if config.run_id else []), *config.compare_run_ids]


def _write(
    config: EvaluateConfig, report: dict[str, Any], records: list[dict[str, Any]], curves: list[RunCurves]
) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    storage.write_bytes(storage.join(config.output_dir, "records.jsonl"), lines)
    storage.write_bytes(storage.join(config.output_dir, "report.json"), json.dumps(report, indent=2).encode())
    storage.write_bytes(storage.join(config.output_dir, "accuracy.png"), draw_conditions(report))
    data = read_card(config.dataset_dir)
    card = Card(
        name="evaluation",
        inputs={config.dataset_dir: fingerprint_bytes(repr(data).encode()), config.model: ""},
        config=to_dict(config),
        config_fingerprint=fingerprint(config),
        counts={"questions": report["n"], "records": len(records)},
    )
    page = _page(config, card, report, records, curves)
    storage.write_bytes(storage.join(config.output_dir, "report.html"), page.encode())
    write_card(config.output_dir, card)
    if config.run_id:
        tracking.log_evaluation(config.run_id, report, config.output_dir, tracking_uri=config.tracking_uri)


def _page(
    config: EvaluateConfig,
    card: Card,
    report: dict[str, Any],
    records: list[dict[str, Any]],
    curves: list[RunCurves],
) -> str:
    about = About(
        model=config.model,
        dataset=config.dataset_dir,
        command=shlex.join(["python", *sys.argv]),
        created_at=card.created_at,
        code_version=card.code_version,
        asked=config.conditions,
        run_id=config.run_id,
    )
    rows = TrainingRows.open(config.dataset_dir)
    answers = choose_answers(records, rows, config.num_timelines)
    return render_page(report, records, about=about, answers=answers, curves=curves, ceilings=config.blind_ceilings)


def _print(report: dict[str, Any]) -> None:
    print(f"evaluation: {report['n']} questions, chance {report['chance']:.3f}")
    for condition, figures in report["conditions"].items():
        everything = figures["all"]
        types = "  ".join(f"{kind} {value['accuracy']:.3f}" for kind, value in figures["by_type"].items())
        interval = f"[{everything['low']:.3f}, {everything['high']:.3f}]"
        print(f"  {condition:14} {everything['accuracy']:.3f} {interval}  {types}")


if __name__ == "__main__":
    main()
