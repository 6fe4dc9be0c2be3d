"""Export a model into a folder: python jobs/export.py model=models:/latentomni@champion output_dir=DIR

Loads the folder with the stock Hugging Face class and compares the weights before it says that all is well.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from omni_model.folder import check_stock_load, load_folder
from omni_platform import tracking
from omni_platform.config import parse_args


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which model, and where to."""

    model: str
    """models:/name@alias, or the export folder of a run."""
    output_dir: str
    """A new folder."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})


CONFIG = ExportConfig


def main() -> None:
    config = parse_args(ExportConfig)
    target = Path(config.output_dir)
    if target.exists():
        raise SystemExit(f"{target} exists already; name a new folder or remove it")
    source = tracking.resolve_model(config.model, tracking_uri=config.tracking_uri)
    shutil.copytree(source, target)
    num_weights = check_stock_load(target)
    method = load_folder(target).method.name
    print(f"export: {target}: {num_weights:,} weights, method {method}, loads with the stock class")


if __name__ == "__main__":
    main()
