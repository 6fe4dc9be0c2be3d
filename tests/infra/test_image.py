"""The image: built from the pinned Ray, holding the wheel and the doors, run by a user without rights."""

from __future__ import annotations

import re
import tomllib

import pytest


@pytest.fixture(scope="module")
def dockerfile(root) -> str:
    return (root / "infra" / "Dockerfile").read_text()


def test_the_base_is_the_pinned_ray(dockerfile, root):
    pins = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    (ray,) = [pin.partition("==")[2] for pin in pins if pin.startswith("ray[")]
    assert f"ARG RAY_VERSION={ray}\n" in dockerfile
    assert "ARG BASE=rayproject/ray:${RAY_VERSION}-py311-${DEVICE}\n" in dockerfile


def test_the_last_stage_is_not_root(dockerfile):
    users = re.findall(r"^USER (\S+)", dockerfile.split("FROM ")[-1], re.MULTILINE)
    assert users == ["ray"]


def test_everything_copied_exists_and_is_let_through(dockerfile, root):
    allowed = {line[1:] for line in (root / "infra" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    copied = set()
    for line in re.findall(r"^COPY --chown=\S+ (.*)$", dockerfile, re.MULTILINE):
        copied.update(line.split()[:-1])
    assert copied == allowed
    assert [path for path in sorted(copied) if not (root / path).exists()] == []


def test_the_hook_of_the_manifests_is_where_they_look(dockerfile):
    assert "WORKDIR /home/ray/latentomni\n" in dockerfile
    assert "COPY --chown=ray:users infra/drain.py infra/drain.py\n" in dockerfile
