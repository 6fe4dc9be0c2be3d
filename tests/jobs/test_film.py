"""The film's door: one line about what was made, and a mistake that is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from omni_platform.data.manifest import read_manifest

ROOT = Path(__file__).parents[2]
CONFIG = "jobs/configs/film/train.yaml"


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/film.py", "--config", CONFIG, *words]
    # Where progress bars are switched off for logs, this test still wants to see one.
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_the_door_renders_a_film_and_finds_it_again(tmp_path):
    words = (f"output_dir={tmp_path}/film", "num_clips=2", "bad_clips=1", "side_px=32", "num_processes=1")
    first = _run(*words)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"film: 2 clips, 7 questions, 1 broken; rendered: {tmp_path}/film\n"
    assert "3/3" in first.stderr  # the progress bar
    assert len(read_manifest(tmp_path / "film").samples) == 7
    assert "; reused: " in _run(*words).stdout


def test_an_unknown_key_ends_the_job_with_the_nearest_match(tmp_path):
    done = _run(f"output_dir={tmp_path}/film", "num_clip=2")
    assert done.returncode == 1 and not (tmp_path / "film").exists()
    assert done.stderr == "config error: the command line: unknown key 'num_clip'; did you mean 'num_clips'?\n"
