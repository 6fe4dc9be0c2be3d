"""The driver's part in tracking a run: what it is made of, how it ended, and the model that is to be registered."""

from __future__ import annotations

from typing import Any, Literal

from omni_platform import storage
from omni_platform.artifacts import card_bytes, find_card, fingerprint_bytes
from omni_platform.config import to_dict, to_yaml
from omni_platform.tracking import RunIntent, Telemetry, plan_run
from omni_platform.train.config import TrainConfig
from omni_platform.train.export import export_folder, read_origin

_FIRST_ANSWER_S = 5.0
_STOPPED_SETTLE_S = 10.0


def plan_tracking(config: TrainConfig) -> RunIntent:
    """The run in the tracker, found by what an earlier attempt left in the folder of its checkpoints."""
    assert config.storage_path is not None
    return plan_run(
        run_name=config.run_name,
        run_folder=storage.join(config.storage_path, config.run_name),
        output_dir=config.output_dir,
        tracking_uri=config.tracking_uri,
        experiment_name=config.experiment_name,
    )


def begin_tracking(telemetry: Telemetry, config: TrainConfig) -> None:
    """Log what the run is made of. It does not depend on the tracker: only a wrong MLFLOW_RUN_ID is an error."""
    card = find_card(config.dataset_dir)
    telemetry.status("RUNNING")
    telemetry.describe(
        config=to_dict(config),
        config_yaml=to_yaml(config),
        cards={} if card is None else {f"{card.name}.json": card_bytes(card).decode()},
        tags={} if card is None else {"data_fingerprint": fingerprint_bytes(card_bytes(card))},
    )
    telemetry.check(wait_s=_FIRST_ANSWER_S)


def ask_to_register(telemetry: Telemetry, config: TrainConfig) -> None:
    """Have the export become a version of the registered model: for a run that has come to its end."""
    origin = read_origin(config)
    if origin is None:
        if config.registered_model_name:
            print(
                f"{config.run_name}: not registered: the driver's machine does not see {export_folder(config)}; "
                "output_dir must be a folder that all nodes share, or s3://",
                flush=True,
            )
        return
    telemetry.tags({"exported_step": str(origin["step"]), "exported_step.chosen_by": origin["chosen_by"]})
    if config.registered_model_name:
        telemetry.register(
            config.registered_model_name,
            export_folder(config),
            step=origin["step"],
            fingerprint=origin["fingerprint"],
            tags={name: str(origin[name]) for name in ("run_name", "last_step", "chosen_by", "value")},
        )


def end_tracking(
    telemetry: Telemetry, config: TrainConfig, status: Literal["FINISHED", "FAILED", "KILLED"]
) -> dict[str, Any]:
    """Log how the run ended and send what is left, as far as the tracker answers; where it all is, for the summary.

    Never raises, so that it cannot hide the error that ended the run.
    """
    telemetry.status(status)
    # Whoever stops a run gives it a minute or two, and its checkpoint has taken some of that.
    wait_s = config.tracking_settle_s
    settled = telemetry.settle(wait_s if status == "FINISHED" else min(wait_s, _STOPPED_SETTLE_S))
    where: dict[str, Any] = {
        "tracking_uri": telemetry.intent.tracking_uri,
        "run_id": telemetry.run and telemetry.run.run_id,
        "model_version": telemetry.version,
    }
    if settled.unsent:
        print(
            f"{config.run_name}: {settled.unsent} records did not reach {where['tracking_uri']}; they are kept in "
            f"{settled.spool}; send them with: python jobs/replay_tracking.py spool={settled.spool}",
            flush=True,
        )
        where["spool"] = settled.spool
    return where
