"""Where jobs leave their outputs: through storage, whole, and never over something that they did not make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_model.fingerprint import fingerprint_model
from omni_model.folder import TINY_BASE
from omni_platform import storage
from omni_platform.artifacts import read_card

ROOT = Path(__file__).parents[2]


def run(cwd: Path, job: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A job in a working directory of its own. `local://` is a store like `s3://` to us."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "model", "serving"))
    environment = {**os.environ, "PYTHONPATH": paths, "FSSPEC_LOCAL_AUTO_MKDIR": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / job), *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_a_model_is_exported_into_a_store_and_not_over_anything(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    target = f"local://{tmp_path}/store/model"
    done = run(tmp_path / "cwd", "export.py", f"model={TINY_BASE}", f"output_dir={target}")
    assert done.returncode == 0, done.stderr
    assert f"export: {target}: " in done.stdout
    assert fingerprint_model(tmp_path / "store" / "model") == fingerprint_model("tiny")
    assert read_card(target).inputs == {str(TINY_BASE): fingerprint_model("tiny")}
    assert list((tmp_path / "cwd").iterdir()) == []
    before = storage.signatures(target)
    again = run(tmp_path / "cwd", "export.py", f"model={TINY_BASE}", f"output_dir={target}")
    assert (again.returncode, storage.signatures(target)) == (1, before)
    assert "exists already; name a new folder or remove it" in again.stderr


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("sweep.py", ["output_dir=s3://bucket/a"]),
        ("base.py", ["--config", str(ROOT / "jobs/configs/train/tiny_base.yaml"), "output_dir=s3://bucket/a"]),
        ("demo.py", ["output_dir=s3://bucket/a"]),
    ],
)
def test_a_job_that_cannot_write_to_a_store_says_so_at_once(tmp_path: Path, job: str, words: list[str]) -> None:
    done = run(tmp_path, job, *words)
    assert done.returncode == 1
    assert "output_dir=s3://bucket/a: this job writes files that are opened by their path; give a folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_film_is_not_rendered_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    (tmp_path / "film" / "holiday.mp4").touch()
    done = run(tmp_path, "film.py", "output_dir=film", "num_clips=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"refused: {tmp_path}/film holds 1 file that no run of this version put there (holiday.mp4): they would be "
        "lost. Move them away, or choose another output folder\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film"]
