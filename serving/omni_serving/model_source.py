"""Where the served model is: a folder, or a version in the registry. Cheap to import: it is checked first of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omni_serving.config import REGISTRY, ServeConfig


def model_folder(config: ServeConfig) -> Path:
    """The folder of the model on this machine; a registry's is downloaded where it is elsewhere.

    Raises ValueError, with what to change, where there is none.
    """
    if config.model.startswith(REGISTRY):
        # Only a registry needs MLflow, which takes seconds to import.
        from omni_platform.tracking import resolve_model

        return resolve_model(config.model, tracking_uri=config.tracking_uri)
    folder = Path(config.model).absolute()
    if not folder.is_dir():
        raise ValueError(f"model={config.model}: no such folder; give an exported model, or models:/name@alias")
    return folder


def on_this_machine(config: ServeConfig) -> ServeConfig:
    """The same configuration with the model's folder found, for replicas that run on this machine.

    Raises ValueError as `model_folder` does, and for a folder that is no exported model.
    """
    folder = model_folder(config)
    if not (folder / "method.json").is_file():
        raise ValueError(
            f"model={config.model}: the folder has no method.json, so it is not an exported model; export one with "
            "jobs/export.py"
        )
    return replace(config, model=str(folder), served_model_name=config.model_name)
