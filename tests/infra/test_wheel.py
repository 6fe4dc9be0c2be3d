"""The wheel alone, installed beside its dependencies and far from the checkout, does what the checkout does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

VERBS = {
    "base",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "film",
    "film_results",
    "preprocess",
    "promote",
    "replay_tracking",
    "serve",
    "sweep",
    "train",
}


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment that has the wheel, and this environment's packages without their .pth files."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    theirs = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(theirs) + "\n")
    return folder / "bin"


def run(installed: Path, where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(installed / "latentomni"), *words], cwd=where, env=env, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_holds_three_packages_and_the_jobs_with_their_configs(wheel, root):
    """`platform/` itself must never be a package: it would hide the standard library's module."""
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"omni_platform", "omni_model", "omni_serving", "omni_jobs"}
    jobs = {name.removeprefix("omni_jobs/") for name in names if name.startswith("omni_jobs/")}
    listing = subprocess.run(["git", "ls-files", "jobs"], cwd=root, capture_output=True, text=True)
    if listing.returncode == 0:
        assert jobs >= {line.removeprefix("jobs/") for line in listing.stdout.splitlines()}
    assert not [name for name in names if "__pycache__" in name]


def test_help_lists_the_verbs_with_what_they_do(installed, tmp_path):
    done = run(installed, tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    verbs = {line.split()[0]: line[2:].split(maxsplit=1)[1] for line in done.stdout.splitlines()[3:]}
    assert verbs.keys() == VERBS | {"configs"}
    assert verbs["train"] == "Train a model and register it"
    assert verbs["preprocess"] == "Decode clips and pool anchors"


def test_a_typo_of_a_verb_is_named(installed, tmp_path):
    done = run(installed, tmp_path, "trian")
    assert done.returncode == 1 and done.stderr == "latentomni: unknown verb 'trian'; did you mean 'train'?\n"


def test_the_help_of_a_job_is_that_of_the_wheel(installed, tmp_path):
    where = [str(installed / "python"), "-c", "import omni_platform; print(omni_platform.__file__)"]
    assert str(installed.parent) in subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
    for verb, part in (("train", "task.options.num_visual"), ("preprocess", "data.manifest: str (required)")):
        done = run(installed, tmp_path, verb, "--help")
        assert done.returncode == 0 and part in done.stdout, done.stderr


def test_configs_come_with_the_wheel_and_a_file_of_the_same_name_here_goes_before_them(installed, tmp_path):
    listed = run(installed, tmp_path, "configs").stdout.splitlines()
    assert "configs/train/tiny_cpu.yaml" in listed and "configs/serve/local.yaml" in listed
    for name in ("configs/train/latentomni_7b.yaml", "jobs/configs/train/latentomni_7b.yaml"):
        done = run(installed, tmp_path, "train", "--config", name, "learning_rate=-1")
        assert done.stderr == "config error: the command line: 'learning_rate' must be above 0, got -1.0\n"
    (tmp_path / "configs" / "train").mkdir(parents=True)
    (tmp_path / "configs" / "train" / "latentomni_7b.yaml").write_text("seed: -5\n")
    done = run(installed, tmp_path, "train", "--config=configs/train/latentomni_7b.yaml")
    assert "configs/train/latentomni_7b.yaml: 'run_name' is required" in done.stderr


STAGE = """
import importlib.util, sys
from omni_platform.cli import jobs_folder
spec = importlib.util.spec_from_file_location("demo", jobs_folder() / "demo.py")
demo = sys.modules["demo"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
words = ["num_clips=1", "families=[colour_at_tone]", "num_processes=1", "output_dir=demo/film"]
for _ in range(2):
    run = demo.Demo(demo.DemoConfig(output_dir="demo"))
    run.run("film", ["jobs/film.py", "--config", "jobs/configs/film/eval.yaml", *words])
print(run.fingerprint_with("jobs/configs/train/tiny_cpu.yaml"), run.reused)
"""


def test_the_demo_finds_its_stages_in_the_wheel_and_works_where_it_is_called(installed, tmp_path):
    command = [str(installed / "python"), "-c", STAGE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" ['film']\n") and "film: 1 clips, 1 questions" in done.stdout
    assert (tmp_path / "demo" / "film" / "manifest.jsonl").is_file()


def test_a_real_job_runs_from_the_wheel(installed, tmp_path):
    words = ["num_clips=2", "families=[colour_at_tone]", "num_processes=1", "output_dir=film"]
    done = run(installed, tmp_path, "film", "--config", "configs/film/eval.yaml", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "film: 2 clips, 2 questions, 0 broken; rendered: film\n"
    rows = [json.loads(line) for line in (tmp_path / "film" / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all((tmp_path / "film" / row["clip"]).stat().st_size > 0 for row in rows)
