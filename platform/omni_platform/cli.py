"""`latentomni VERB ...` runs a job as `python jobs/VERB.py ...` does, from a checkout or from the installed wheel.

The jobs and their configs are files beside the packages: `jobs/` in a checkout, `omni_jobs/` of an installed wheel.
A job's own words follow the verb, and `latentomni VERB --help` lists its fields. `--config` takes a file of the working
directory or, where there is none of that name, one that comes with the package (see `latentomni configs`).
"""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGES = Path(__file__).resolve().parents[1]


def jobs_folder() -> Path:
    """Where the jobs are: `omni_jobs` of the wheel, else `jobs` of the checkout."""
    installed = _PACKAGES / "omni_jobs"
    return installed if installed.is_dir() else _PACKAGES.parent / "jobs"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job that the first word names with the words after it. Ends the process with 1 for an unknown verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    jobs = {path.stem: path for path in sorted(jobs_folder().glob("*.py"))}
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage(jobs))
        return
    verb, *rest = words
    if verb == "configs":
        print("\n".join(_configs()))
        return
    if verb not in jobs:
        near = difflib.get_close_matches(verb, jobs, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join([*jobs, 'configs'])}"
        raise SystemExit(f"latentomni: unknown verb {verb!r}; {hint}")
    sys.argv = [str(jobs[verb]), *with_packaged_config(rest)]
    # As a script: what it defines then belongs to `__main__`, and reaches Ray's workers by value.
    runpy.run_path(str(jobs[verb]), run_name="__main__")


def with_packaged_config(words: Sequence[str]) -> list[str]:
    """The words of a job, with a config that is not here replaced by the package's of that name."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--config":
            word = _packaged(word)
        elif word.startswith("--config="):
            word = f"--config={_packaged(word.removeprefix('--config='))}"
        found.append(word)
    return found


def _packaged(name: str) -> str:
    candidate = jobs_folder() / name.removeprefix("jobs/")
    return str(candidate) if not Path(name).is_file() and candidate.is_file() else name


def _configs() -> list[str]:
    folder = jobs_folder()
    return sorted(str(path.relative_to(folder)) for path in (folder / "configs").rglob("*.yaml"))


def _usage(jobs: dict[str, Path]) -> str:
    lines = [f"  {verb:<18}{_first_line(path)}" for verb, path in jobs.items()]
    return "\n".join(
        [
            "usage: latentomni VERB [--config FILE.yaml] [KEY.SUB=VALUE ...]",
            "       latentomni VERB --help",
            "",
            *lines,
            f"  {'configs':<18}List the configs that come with the package, as --config takes them",
        ]
    )


def _first_line(path: Path) -> str:
    """What a job's docstring says first, without the command that follows."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0].partition(": python")[0].rstrip(".")
