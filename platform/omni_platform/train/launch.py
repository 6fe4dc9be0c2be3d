"""Starting a run: the tracked run, the Ray Train workers, signals, and the status it ends with."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray._private.worker
import ray.train
import ray.train.torch
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME, ENABLE_PRINT_PATCH_ENV_VAR
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.report_config import CheckpointUploadMode

from omni_platform import lease, storage
from omni_platform.lease import hold_all
from omni_platform.staging import refuse_foreign_files
from omni_platform.tracking import Telemetry
from omni_platform.train.checkpoint import Storage
from omni_platform.train.config import TrainConfig
from omni_platform.train.evaluator import Evaluations, ask_for_evaluation
from omni_platform.train.export import EXPORT
from omni_platform.train.identity import check_resumable, settings_identity
from omni_platform.train.loop import Job, work
from omni_platform.train.place import Place
from omni_platform.train.stop import RunStopped, StopFlag, StopWatch, stop_on_signals
from omni_platform.train.task import Rows, Task
from omni_platform.train.tracked import ask_to_register, begin_tracking, end_tracking, plan_tracking


def fit(
    config: TrainConfig,
    *,
    build_task: Callable[..., Task],
    open_rows: Callable[[], Rows],
    open_eval_rows: Callable[[], Rows] | None = None,
) -> dict[str, Any]:
    """Train on the Ray cluster this process is connected to; returns the summary of the run.

    A run of the same name continues from its newest sound checkpoint and in its MLflow run. Two fits at a time into one
    run's folder or one output_dir are refused (`LeaseHeldError`), and so is a run that is not the one it was
    (`ResumeError`), both before anything is started. The callables are called
    on every worker; `open_eval_rows` belongs to a config with an eval_dataset_dir. Raises RunStopped after SIGTERM or
    SIGINT (the checkpoint is written, the run marked KILLED), and what Ray Train raises after a failure (the run is
    marked FAILED).
    """
    config = with_absolute_paths(config)
    held = (storage.join(str(config.storage_path), config.run_name), config.output_dir)
    with hold_all(held, owner=f"training run {config.run_name}") as (held_run, _):
        refuse_foreign_files(storage.join(config.output_dir, EXPORT))
        settings = settings_identity(config)
        check_resumable(config, _run_storage(config), settings)
        return _fit(config, build_task, open_rows, open_eval_rows, settings=settings, token=held_run.token)


def _fit(
    config: TrainConfig,
    build_task: Callable[..., Task],
    open_rows: Callable[[], Rows],
    open_eval_rows: Callable[[], Rows] | None,
    *,
    settings: dict[str, Any],
    token: str,
) -> dict[str, Any]:
    """`fit` while the run's folder and its output are held."""
    flag_name = f"stop-{config.run_name}-{uuid.uuid4().hex[:8]}"
    flag = StopFlag.options(name=flag_name).remote()  # type: ignore[attr-defined]
    with stop_on_signals(flag) as request, Telemetry(plan_tracking(config), owner=True) as telemetry:
        begin_tracking(telemetry, config)
        try:
            job = Job(
                config=config,
                build_task=build_task,
                open_rows=open_rows,
                run=telemetry.intent,
                on_terminal=sys.stderr.isatty(),
                settings_identity=settings,
            )
            evaluations = Evaluations(job, open_eval_rows, _run_storage(config))
            summary = _in_thread(_make_trainer(job, flag_name, evaluations.name, token).fit).return_value
            if not summary["stopped"]:
                summary |= evaluations.settle()
                _export_best(evaluations, summary)
        except BaseException:
            end_tracking(telemetry, config, "FAILED" if request.signum is None else "KILLED")
            raise
        if summary["stopped"]:
            end_tracking(telemetry, config, "KILLED")
            raise RunStopped(request.signum, _ending(config, summary, f"stopped after step {summary['steps']}"))
        ask_to_register(telemetry, config)
        telemetry.metrics(summary["steps"], {f"goodput/{k}": share for k, share in summary["goodput"].items()})
        if summary["checkpoint_failed"]:
            print(_ending(config, summary, f"finished, and its model is in {summary['export']}"), flush=True)
        return {**summary, "mlflow": end_tracking(telemetry, config, "FINISHED")}


def _export_best(evaluations: Evaluations, summary: dict[str, Any]) -> None:
    """The workers have exported the last step; where an evaluation names a better one, that is exported instead."""
    best = summary.get("best_step")
    if best is not None and best != summary["steps"]:
        evaluations.export(best, last_step=summary["steps"])
    summary["exported_step"] = summary["steps"] if best is None else best


def _ending(config: TrainConfig, summary: dict[str, Any], what: str) -> str:
    failed = summary["checkpoint_failed"]
    lost = f", but its last checkpoint could not be written: {failed}" if failed else ""
    return f"{config.run_name} {what}{lost}"


def _run_storage(config: TrainConfig) -> Storage:
    assert config.storage_path is not None
    return Storage.at(config.storage_path, config.run_name)


def _make_trainer(job: Job, flag_name: str, evaluator: str | None, token: str) -> TorchTrainer:
    config, gpu = job.config, _uses_gpu(job.config)
    say_what_is_missing(config, gpu)
    os.environ.setdefault(ENABLE_PRINT_PATCH_ENV_VAR, "0")  # it shows every printed line twice
    os.environ.setdefault(RAY_CHDIR_TO_TRIAL_DIR, "0")  # a relative path to a model means the same in a worker
    _forget_reported_checkpoints(_run_storage(config))

    run_folder = storage.join(str(config.storage_path), config.run_name)

    def run_worker() -> dict[str, Any]:
        # Not passed as train_loop_config: Ray would load the task's code in its controller too.
        return work(job, _place(flag_name, evaluator, run_folder, token))

    return _Trainer(
        run_worker,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=gpu,
            resources_per_worker=config.resources_per_worker or None,
            elastic_resize_monitor_interval_s=config.elastic_resize_monitor_interval_s,
        ),
        run_config=ray.train.RunConfig(
            name=config.run_name,
            storage_path=config.storage_path,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            # None are removed by Ray: `checkpoint.prune` does it, which also knows those never reported.
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=None),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _place(flag_name: str, evaluator: str | None, run_folder: str, token: str) -> Place:
    """The worker's place as Ray Train tells it. Runs in the worker."""
    context = ray.train.get_context()
    store: Any = context.get_storage()
    storage_here = Storage(files=store.storage_filesystem, folder=store.experiment_fs_path)

    def report(figures: dict[str, float], path: str) -> None:
        checkpoint = ray.train.Checkpoint(path, storage_here.files)
        # Nothing to upload: it is in the run's storage already, and complete.
        ray.train.report(figures, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    return Place(
        device=ray.train.torch.get_device(),
        storage=storage_here,
        leads_node=context.get_local_rank() == 0,
        stop_requested=StopWatch(flag_name).seen if context.get_world_rank() == 0 else _never,
        report=report,
        preempted=_heard_of_preemption,
        may_write=lambda: lease.is_held(run_folder, token),
        evaluate=lambda step: ask_for_evaluation(evaluator, step) if evaluator else None,
    )


def _never() -> bool:
    return False


def _heard_of_preemption() -> bool:
    # `ray.train.get_preemption_info` is a barrier of its own; the loop has an exchange after every step already.
    return get_train_context().preemption_context.preemption_info is not None


class _Trainer(TorchTrainer):
    """TorchTrainer without the helper that asks the dashboard once per second, where there is no dashboard.

    The helper cleans up after a controller that dies and leaves its cluster behind; a local cluster, which
    has no dashboard, ends with its driver. It would write one warning per second into the log.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if ray._private.worker.get_dashboard_url():
            return callbacks
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


def _forget_reported_checkpoints(folder: Storage) -> None:
    """Remove Ray Train's list of reported checkpoints before a start.

    It is written in place: a driver killed at that moment, or a checkpoint removed since, leaves a list that
    Ray refuses to start from. The checkpoint folders themselves tell where to resume.
    """
    if folder.has(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME):
        folder.files.delete_file(folder.path(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME))


def _in_thread(call: Callable[[], Any]) -> Any:
    """Run a call in a thread of its own and wait for it.

    In the main thread Ray Train would take SIGINT for itself and end the workers without a checkpoint.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="train", daemon=True)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def say_what_is_missing(config: TrainConfig, gpu: bool) -> None:
    """Workers that do not fit are waited for (a cluster may grow); without a word that looks like a hang."""
    one = config.resources_per_worker or ({"GPU": 1} if gpu else {"CPU": 1})
    there = ray.cluster_resources()
    for name, amount in one.items():
        if there.get(name, 0) < amount * config.min_workers:
            print(
                f"waiting for the cluster: {config.min_workers} workers need {amount * config.min_workers:g} "
                f"{name}, {there.get(name, 0):g} are there; lower num_workers if it cannot grow",
                flush=True,
            )


def _uses_gpu(config: TrainConfig) -> bool:
    if config.use_gpu != "auto":
        return config.use_gpu
    return ray.cluster_resources().get("GPU", 0) >= config.min_workers


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """A worker on another machine, or MLflow there, would take a relative path for another place."""
    if _in_uploaded_copy() and not Path(config.output_dir).is_absolute():
        print(
            f"warning: output_dir={config.output_dir} lies in the job's uploaded working directory and goes "
            "away with it; give an absolute path",
            file=sys.stderr,
        )
    output_dir = storage.absolute(config.output_dir)
    return dataclasses.replace(
        config,
        output_dir=output_dir,
        dataset_dir=storage.absolute(config.dataset_dir),
        eval_dataset_dir=None if config.eval_dataset_dir is None else storage.absolute(config.eval_dataset_dir),
        init_weights_from=None if config.init_weights_from is None else storage.absolute(config.init_weights_from),
        storage_path=storage.absolute(config.storage_path or storage.join(output_dir, "checkpoints")),
    )


def _in_uploaded_copy() -> bool:
    return "/runtime_resources/working_dir_files/" in os.getcwd()
