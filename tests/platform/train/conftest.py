"""What the tests of training share: the toy task on the path, a process group of one, a tracking store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from omni_platform.tracking import connect, store_uri

sys.path.insert(0, str(Path(__file__).parent))  # workers find `toy_task` through PYTHONPATH, this process here


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all tests of training: making one takes seconds."""
    folder = tmp_path_factory.mktemp("tracking")
    uri = store_uri(None, output_dir=folder)
    connect(uri)
    return uri


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> dict[str, list[dict[str, Any]]]:
    """The attempts of each toy run, by name (see `toy_runs`)."""
    from toy_runs import toy_runs

    return toy_runs(tmp_path_factory.mktemp("loop"), tracking_uri)
