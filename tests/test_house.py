"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "jobs" / "configs"
MAX_LINES = 350
# Not under the folder that has the name of its job.
ELSEWHERE = {"train/tiny_base.yaml": "base", "train/short_base.yaml": "base", "sweep/results.yaml": "film_results"}
# Home folders, but for the one of the user inside the image.
HOME = re.compile(r"(?<![\w.])/(?:home|Users)/(?!ray\b)\w|(?<![\w.])/root/|[A-Z]:\\Users\\")


@cache
def _files() -> tuple[Path, ...]:
    """Every file of the project, ignored ones left out."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        found = [ROOT / line for line in done.stdout.splitlines()]
    else:  # a source archive
        found = [path for path in ROOT.rglob("*") if not {".venv", "outputs"} & set(path.parts)]
    return tuple(path for path in found if path.is_file())


def _texts() -> dict[str, str]:
    texts = {}
    for path in _files():
        try:
            texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return texts


def test_no_platform_package():
    """As a package it would hide the standard library's `platform`, and Ray would not start."""
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_no_path_of_a_developer_s_machine():
    found = [
        f"{name}:{number}"
        for name, text in _texts().items()
        if name != "tests/test_house.py"
        for number, line in enumerate(text.splitlines(), 1)
        if HOME.search(line) or f"{ROOT}/" in line
    ]
    assert found == []


def test_no_python_file_is_too_long():
    lengths = {name: text.count("\n") for name, text in _texts().items() if name.endswith(".py")}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_file_is_a_drawer():
    """A helper has a home; a file named after nothing collects what has none."""
    names = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert [str(path.relative_to(ROOT)) for path in _files() if path.name in names] == []


def test_the_readme_names_every_folder():
    folders = {path.relative_to(ROOT).parts[0] for path in _files() if path.parent != ROOT}
    readme = (ROOT / "README.md").read_text()
    assert [name for name in sorted(folders) if name[0] != "." and f"{name}/" not in readme] == []


def test_links_between_pages_lead_somewhere():
    broken = [
        f"{name}: {link}"
        for name, text in _texts().items()
        if name.endswith(".md")
        for link in re.findall(r"\]\(([^)#\s]+)", text)
        if "://" not in link and not (ROOT / name).parent.joinpath(link).exists()
    ]
    assert broken == []


def _config_files() -> list[str]:
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("name", _config_files())
def test_config_fits_its_job(name):
    from omni_platform.config import load_config

    job = ELSEWHERE.get(name, name.split("/")[0])
    if not (ROOT / "jobs" / f"{job}.py").is_file():
        pytest.skip(f"jobs/configs/{name} has no jobs/{job}.py yet")
    door = _door(job)
    assert hasattr(door, "CONFIG"), f"jobs/{job}.py does not say which dataclass it reads: CONFIG = ..."
    load_config(door.CONFIG, str(CONFIGS / name), [])


@cache
def _door(job: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"door_{job}", ROOT / "jobs" / f"{job}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look up their annotations there
    spec.loader.exec_module(module)
    return module


def test_nothing_is_called_by_tests_alone():
    """A function or class of the product that only its own tests name is dead, or was never wired."""
    sources = {
        name: text
        for name, text in _texts().items()
        if name.endswith(".py")
        and name.split("/")[0] in ("platform", "model", "serving", "jobs", "infra", "benchmarks")
    }
    words = Counter(word for text in sources.values() for word in re.findall(r"\w+", text))
    alone = [
        f"{name}: {node.name}"
        for name, text in sources.items()
        for node in ast.parse(text).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and words[node.name] == 1
    ]
    assert alone == []


def test_nobody_imports_a_job():
    importing = re.compile(r"^\s*(?:from|import) jobs\b", re.MULTILINE)
    assert [n for n, text in _texts().items() if n.endswith(".py") and importing.search(text)] == []


def test_make_lists_its_targets():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = {"setup", "demo", "base", "evidence", "test", "test-slow", "check", "bench", "render", "clean", "help"}
    assert wanted <= set(re.findall(r"^  make (\S+)", listed, re.MULTILINE))


def test_ci_runs_what_a_newcomer_types():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "for target in setup check test demo; do" in script.read_text()


def test_commits_are_checked_with_the_tools_of_the_environment():
    """Hooks that fetch their own tools need a network, and check with other versions than `make check`."""
    pytest.importorskip("pre_commit", reason="not installed; run make setup")
    from pre_commit.clientlib import load_config

    path = ROOT / ".pre-commit-config.yaml"
    load_config(str(path))
    (repo,) = yaml.safe_load(path.read_text())["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system", "pygrep"}
