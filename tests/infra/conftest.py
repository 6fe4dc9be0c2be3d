"""The repository's scripts as modules, and the rendered manifests of both environments."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ("kind", "gpu")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"infra_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their annotations there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def render() -> ModuleType:
    return _load(ROOT / "infra" / "render.py")


@pytest.fixture(scope="session")
def crds() -> ModuleType:
    return _load(ROOT / "infra" / "crds.py")


@pytest.fixture(scope="session")
def drain() -> ModuleType:
    return _load(ROOT / "infra" / "drain.py")


@pytest.fixture(scope="session")
def read_entrypoint() -> Callable[[str], Any]:
    """The configuration that `python jobs/x.py --config y.yaml key=value` runs with."""
    from omni_platform.config import load_config

    def read(entrypoint: str) -> Any:
        _, script, _, config, *overrides = entrypoint.split()
        door = sys.modules.get(f"infra_{Path(script).stem}") or _load(ROOT / script)
        return load_config(door.CONFIG, ROOT / config, overrides)

    return read


@pytest.fixture(scope="session", params=ENVIRONMENTS)
def manifests(request: pytest.FixtureRequest, render: ModuleType) -> list[dict[str, Any]]:
    """Every object of one environment; a test that takes this runs once per environment."""
    return render.objects_of(render.OVERLAYS / request.param, engine="own")


@pytest.fixture(scope="session")
def of_kind(manifests: list[dict[str, Any]]) -> Callable[[str], list[dict[str, Any]]]:
    return lambda kind: [item for item in manifests if item["kind"] == kind]


@pytest.fixture(scope="session")
def clusters(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The Ray cluster inside each KubeRay object, by the object's name."""
    fields = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    return {
        item["metadata"]["name"]: item["spec"][fields[item["kind"]]] for item in manifests if item["kind"] in fields
    }


@pytest.fixture(scope="session")
def ray_pods(clusters: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod spec of every head and worker group."""
    return dict(_pods(clusters))


def _pods(clusters: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, cluster in clusters.items():
        yield f"{name} head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]["spec"]
