"""Write the pages of docs/ that are made from the code: python docs/generate.py

`docs/layout.md` lists every source file with the first line of its docstring. A test compares.
"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = {
    "platform/omni_platform": "files, clusters, data, training, tracking; knows no model",
    "model/omni_model": "models that reason in latent states; torch and transformers only",
    "serving/omni_serving": "answers over HTTP, on Ray Serve",
    "jobs": "one file a stage; the only place that imports all three packages",
    "infra": "image and manifests for KubeRay",
    "benchmarks": "ratios against baselines, alternated in one run",
}


def layout_page() -> str:
    """The text of docs/layout.md."""
    lines = ["# Layout", "", "Made by `python docs/generate.py` from the first line of every module's docstring.", ""]
    for root, meaning in SOURCE_ROOTS.items():
        lines += [f"## `{root}/`", "", f"{meaning[0].upper()}{meaning[1:]}.", "", "| file | what it is |", "|---|---|"]
        lines += [f"| `{path.relative_to(ROOT / root)}` | {first_line(path)} |" for path in _modules(root)]
        lines.append("")
    return "\n".join(lines)


def first_line(path: Path) -> str:
    """The first line of a module's docstring, safe in a table cell."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0].replace("|", "\\|")


def _modules(root: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", root],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    paths = [ROOT / line for line in sorted(listing) if line.endswith(".py")]
    return [path for path in paths if path.is_file() and first_line(path)]


if __name__ == "__main__":
    (ROOT / "docs" / "layout.md").write_text(layout_page(), encoding="utf-8")
