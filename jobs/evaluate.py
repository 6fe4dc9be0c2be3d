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
from omni_platform.artifacts import CARD_NAME, Card, card_bytes, content_fingerprint, folder_fingerprint, read_card
from omni_platform.bounds import Count, Natural, NotNegative, Share
from omni_platform.config import fingerprint, parse_args, to_dict
from omni_platform.data.batches import TrainingRows
from omni_platform.data.examination import examine
from omni_platform.lease import refusals_in_one_line
from omni_platform.pictures import draw_conditions
from omni_platform.report.answers import choose_answers
from omni_platform.report.curves import RunCurves, read_curves
from omni_platform.report.page import About, render_page
from omni_platform.runtime import start_ray
from omni_platform.staging import Staged, staged_output


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


@refusals_in_one_line()
def main() -> None:
    config = parse_args(EvaluateConfig)
    # Before the long part: a run that does not exist is better known at once.
    curves = read_curves(_runs(config), tracking_uri=config.tracking_uri)
    with staged_output(config.output_dir, key=fingerprint(config), owner="evaluation") as staged:
        model, report = _evaluate(config, staged, curves)
    if config.run_id or model.name:
        with storage.local_folder(config.output_dir) as folder:
            tracking.log_evaluation(
                config.run_id,
                report,
                folder,
                model=model,
                dataset_fingerprint=content_fingerprint(read_card(config.dataset_dir)),
                tracking_uri=config.tracking_uri,
            )
    _print(report)


def _evaluate(
    config: EvaluateConfig, staged: Staged, curves: list[RunCurves]
) -> tuple[tracking.ResolvedModel, dict[str, Any]]:
    start_ray(num_cpus=config.num_cpus)
    model = tracking.find_model(config.model, tracking_uri=config.tracking_uri)
    build = partial(
        Examiner,
        str(model.folder),
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
    report = {**summarise(records), "model": _measured(config, model)}
    _write(config, staged, model, report, records, curves)
    return model, report


def _runs(config: EvaluateConfig) -> list[str]:
    return [*([config.run_id] if config.run_id else []), *config.compare_run_ids]


def _measured(config: EvaluateConfig, model: tracking.ResolvedModel) -> dict[str, Any]:
    """Which model the report is about, by content: an alias may point elsewhere tomorrow."""
    about = {"asked_for": config.model, "fingerprint": folder_fingerprint(model.folder)}
    step = model.tags.get("step")
    return about | {"name": model.name, "version": model.version, "step": None if step is None else int(step)}


def _write(
    config: EvaluateConfig,
    staged: Staged,
    model: tracking.ResolvedModel,
    report: dict[str, Any],
    records: list[dict[str, Any]],
    curves: list[RunCurves],
) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    storage.write_bytes(storage.join(staged.folder, "records.jsonl"), lines)
    storage.write_bytes(storage.join(staged.folder, "report.json"), json.dumps(report, indent=2).encode())
    storage.write_bytes(storage.join(staged.folder, "accuracy.png"), draw_conditions(report))
    data = read_card(config.dataset_dir)
    measured = report["model"]
    named = f"models:/{model.name}/{model.version}" if model.name else config.model
    card = Card(
        name="evaluation",
        inputs={config.dataset_dir: content_fingerprint(data), named: measured["fingerprint"]},
        config=to_dict(config),
        config_fingerprint=fingerprint(config),
        counts={"questions": report["n"], "records": len(records)},
    )
    page = _page(config, card, report, records, curves)
    storage.write_bytes(storage.join(staged.folder, "report.html"), page.encode())
    staged.commit(marker=CARD_NAME, data=card_bytes(card))


def _page(
    config: EvaluateConfig,
    card: Card,
    report: dict[str, Any],
    records: list[dict[str, Any]],
    curves: list[RunCurves],
) -> str:
    about = About(
        model=_title(config, report["model"]),
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


def _title(config: EvaluateConfig, measured: dict[str, Any]) -> str:
    if measured["version"] is None:
        return f"{config.model} ({measured['fingerprint']})"
    step = "" if measured["step"] is None else f", step {measured['step']}"
    return f"{config.model} (version {measured['version']}{step})"


def _print(report: dict[str, Any]) -> None:
    model = report["model"]
    version = "" if model["version"] is None else f" version {model['version']}"
    print(f"evaluation of {model['asked_for']}{version} ({model['fingerprint']})")
    print(f"evaluation: {report['n']} questions, chance {report['chance']:.3f}")
    for condition, figures in report["conditions"].items():
        everything = figures["all"]
        types = "  ".join(f"{kind} {value['accuracy']:.3f}" for kind, value in figures["by_type"].items())
        interval = f"[{everything['low']:.3f}, {everything['high']:.3f}]"
        print(f"  {condition:14} {everything['accuracy']:.3f} {interval}  {types}")


if __name__ == "__main__":
    main()
