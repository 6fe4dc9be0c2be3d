"""Evaluate a model: python jobs/evaluate.py --config jobs/configs/evaluate/film.yaml

Accuracy by question type with intervals, the blind controls, and the controls on latents, on a preprocessed folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omni_model.examine import CONDITIONS, Examiner, summarise
from omni_platform import storage, tracking
from omni_platform.artifacts import Card, fingerprint_bytes, read_card, write_card
from omni_platform.config import fingerprint, parse_args, to_dict
from omni_platform.data.examination import examine
from omni_platform.pictures import draw_conditions
from omni_platform.runtime import start_ray


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One model, one prepared set of questions."""

    model: str
    """An exported folder, or models:/name@alias."""
    dataset_dir: str
    """The output folder of preprocess for held-out clips (a path or s3://)."""
    output_dir: str
    """Where report.json, records.jsonl and the picture go."""
    conditions: tuple[str, ...] = CONDITIONS
    """`own` and the controls to run beside it."""
    batch_size: int = 48
    num_examiners: int = 1
    """Models answering side by side."""
    num_gpus_per_examiner: float = 0.0
    limit: int | None = None
    """Only so many questions."""
    max_new_tokens: int = 64
    max_phases: int = 4
    run_id: str | None = field(default=None, metadata={"env": "MLFLOW_RUN_ID"})
    """The MLflow run that gets the figures; none where empty."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})
    num_cpus: int | None = None
    """CPUs of the Ray that is started where there is no cluster."""


CONFIG = EvaluateConfig


def main() -> None:
    config = parse_args(EvaluateConfig)
    start_ray(num_cpus=config.num_cpus)
    folder = tracking.resolve_model(config.model, tracking_uri=config.tracking_uri)
    build = partial(
        Examiner,
        str(folder),
        conditions=config.conditions,
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
    _write(config, report, records)
    _print(report)


def _write(config: EvaluateConfig, report: dict[str, Any], records: list[dict[str, Any]]) -> None:
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
    write_card(config.output_dir, card)
    if config.run_id:
        tracking.log_evaluation(config.run_id, report, config.output_dir, tracking_uri=config.tracking_uri)


def _print(report: dict[str, Any]) -> None:
    print(f"evaluation: {report['n']} questions, chance {report['chance']:.3f}")
    for condition, figures in report["conditions"].items():
        everything = figures["all"]
        types = "  ".join(f"{kind} {value['accuracy']:.3f}" for kind, value in figures["by_type"].items())
        interval = f"[{everything['low']:.3f}, {everything['high']:.3f}]"
        print(f"  {condition:14} {everything['accuracy']:.3f} {interval}  {types}")


if __name__ == "__main__":
    main()
