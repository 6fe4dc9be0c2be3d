"""Every import contract notices a violation, also one in a file that did not exist when the contract was written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"omni_platform": "platform", "omni_model": "model", "omni_serving": "serving"}
PLANTED = {
    "serving stands on the model package, which stands on the platform": [
        ("omni_platform/fresh.py", "import omni_model.device\n"),
        ("omni_model/fresh.py", "import omni_serving.errors\n"),
    ],
    "the model package needs torch and transformers only, and of the platform only its rows": [
        ("omni_model/fresh.py", "import ray\n"),
        ("omni_model/methods/fresh.py", "import omni_platform.sweep\n"),
        ("omni_model/fresh.py", "from omni_platform.config_help import describe\n"),
        ("omni_model/fresh.py", "from omni_platform import pictures\n"),
    ],
    "methods do not know each other": [
        ("omni_model/methods/fresh.py", "from omni_model.methods.pause import Markers\n"),
        ("omni_model/methods/trajectory.py", "from omni_model.methods.sft import TextCot\n"),
    ],
    "the options of a task are read without torch": [("omni_model/task_config.py", "import torch\n")],
    "the schema is a leaf": [
        ("omni_platform/schema.py", "from omni_platform.bounds import Count\n"),
        ("omni_platform/schema.py", "import omni_platform.sweep\n"),
    ],
    "a training config is checked without Ray and torch": [("omni_platform/bounds.py", "import torch\n")],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources alone, in a place where violations can be planted."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package, room in PACKAGES.items():
        ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / room / package, folder / package, ignore=ignore)
    return folder


def lint(folder: Path) -> tuple[int, str]:
    """The exit status and the words of `lint-imports`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_contracts_of_the_project_are_those_that_are_tried():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert [contract["name"] for contract in contracts] == list(PLANTED)


def test_the_sources_as_they_are_keep_every_contract(copy):
    status, words = lint(copy)
    assert status == 0, words
    assert f"{len(PLANTED)} kept, 0 broken" in words


@pytest.mark.parametrize(("contract", "file", "line"), [(c, f, x) for c, cases in PLANTED.items() for f, x in cases])
def test_a_planted_violation_is_found(copy, contract, file, line):
    path = copy / file
    before = path.read_text() if path.exists() else None
    # At the end of a file that is there: `from __future__` stays first.
    path.write_text(f"{before or ''}\n{line}")
    try:
        status, words = lint(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
    assert status == 1, words
    assert f"{contract} BROKEN" in " ".join(words.split()), words
