"""Export a model into a folder: python jobs/export.py model=models:/latentomni@champion output_dir=DIR

Loads the folder with the stock Hugging Face class and compares the weights before it says that all is well.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from omni_model.fingerprint import fingerprint_model
from omni_model.folder import check_stock_load, load_folder
from omni_platform import storage, tracking
from omni_platform.artifacts import CARD_NAME, Card, card_bytes
from omni_platform.config import parse_args, to_dict
from omni_platform.lease import hold, refusals_in_one_line
from omni_platform.staging import FILE_LIST, publish_folder


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which model, and where to."""

    model: str
    """models:/name@alias, or the export folder of a run."""
    output_dir: str
    """A new folder (a path or s3://)."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})


CONFIG = ExportConfig


@refusals_in_one_line()
def main() -> None:
    config = parse_args(ExportConfig)
    if storage.list_tree(config.output_dir):
        raise SystemExit(f"{config.output_dir} exists already; name a new folder or remove it")
    source = tracking.resolve_model(config.model, tracking_uri=config.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="export-") as scratch:
        # Checked before it is published: a model that does not load is worse than none.
        copy = Path(scratch) / "model"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(CARD_NAME, FILE_LIST))
        num_weights = check_stock_load(copy)
        method = load_folder(copy).method.name
        card = Card(name="export", inputs={config.model: fingerprint_model(copy)}, config=to_dict(config))
        with hold(config.output_dir, owner="export"):
            publish_folder(copy, config.output_dir, marker=CARD_NAME, data=card_bytes(card))
    print(f"export: {config.output_dir}: {num_weights:,} weights, method {method}, loads with the stock class")


if __name__ == "__main__":
    main()
