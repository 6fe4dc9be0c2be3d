"""The built-in renderer says what kustomize says, and refuses what it does not know."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

ENGINES = [name for name in ("kustomize", "kubectl") if shutil.which(name)]


@pytest.mark.parametrize("env", ["kind", "gpu"])
@pytest.mark.skipif(not ENGINES, reason="neither kustomize nor kubectl is installed to compare with")
def test_equals_real_kustomize(render, env):
    real = yaml.safe_load_all(render.render(render.OVERLAYS / env, engine=ENGINES[0]))
    assert _by_name(render.objects_of(render.OVERLAYS / env, engine="own")) == _by_name(real)


def _by_name(objects):
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


def test_the_command_prints_a_yaml_stream(root):
    command = [sys.executable, "infra/render.py", "kind", "--engine", "own"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    kinds = [item["kind"] for item in yaml.safe_load_all(done.stdout)]
    assert kinds.count("RayJob") == 3
    assert "RayCluster" not in kinds


def test_an_unknown_environment_names_the_known_ones(render):
    with pytest.raises(render.RenderError, match="choose one of: gpu, kind"):
        render.render(render.OVERLAYS / "gpus")


JOB = """
    apiVersion: ray.io/v1
    kind: RayJob
    metadata: {name: one}
    spec:
      entrypoint: a
      groups: [{image: x}, {image: y}]
"""
DEPLOYMENT = """
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: one}
    spec: {containers: [{name: c, image: "img:1"}]}
"""


def _write(folder: Path, kustomization: str, **files: str) -> Path:
    for name, text in {"kustomization": kustomization, **files}.items():
        (folder / f"{name}.yaml").write_text(dedent(text))
    return folder


def _patched(patch: str, target: str = "{kind: RayJob}") -> dict[str, str]:
    lines = f"resources: [item.yaml]\npatches:\n  - {{path: patch.yaml, target: {target}}}\n"
    return {"kustomization": lines, "patch": patch}


def test_json_6902_operations(render, tmp_path):
    patch = """
        - {op: test, path: /spec/groups/1/image, value: y}
        - {op: add, path: /spec/groups/0, value: {image: z}}
        - {op: replace, path: /spec/entrypoint, value: b}
        - {op: remove, path: /spec/groups/2}
        - {op: add, path: /metadata/a~1b, value: c}
    """
    (built,) = render.build(_write(tmp_path, item=JOB, **_patched(patch)))
    assert built["spec"] == {"entrypoint": "b", "groups": [{"image": "z"}, {"image": "x"}]}
    assert built["metadata"]["a/b"] == "c"


@pytest.mark.parametrize(
    ("operation", "complaint"),
    [
        ("{op: replace, path: /spec/nothing, value: 1}", "cannot replace /spec/nothing of RayJob one"),
        ("{op: remove, path: /spec/groups/7}", "cannot remove /spec/groups/7"),
        ("{op: test, path: /spec/entrypoint, value: b}", "found 'a', expected 'b'"),
        ("{op: move, path: /spec/entrypoint, from: /x}", "does not know this operation"),
    ],
)
def test_an_operation_that_does_not_fit_is_refused(render, tmp_path, operation, complaint):
    folder = _write(tmp_path, item=JOB, **_patched(f"- {operation}"))
    with pytest.raises(render.RenderError, match=complaint):
        render.build(folder)


def test_merge_patch_of_a_custom_resource(render, tmp_path):
    patch = """
        apiVersion: ray.io/v1
        kind: RayJob
        metadata: {name: any, labels: {queue: q}}
        spec: {entrypoint: null, suspend: true, groups: [{image: z}]}
    """
    (built,) = render.build(_write(tmp_path, item=JOB, **_patched(patch)))
    assert built["metadata"] == {"name": "one", "labels": {"queue": "q"}}
    assert built["spec"] == {"suspend": True, "groups": [{"image": "z"}]}


def test_a_list_of_a_built_in_kind_is_not_guessed_at(render, tmp_path):
    """Kubernetes merges those lists by key; only the real kustomize knows the keys."""
    patch = "spec: {containers: [{name: c, command: [sh]}]}"
    folder = _write(tmp_path, item=DEPLOYMENT, **_patched(patch, "{kind: Deployment}"))
    with pytest.raises(render.RenderError, match="JSON 6902"):
        render.build(folder)


def test_images_labels_and_namespace(render, tmp_path):
    kustomization = """
        namespace: ns
        resources: [item.yaml]
        labels: [{pairs: {part: p}}]
        images: [{name: im, newTag: "3"}, {name: img, newName: registry.example.com/img, newTag: "2"}]
    """
    (built,) = render.build(_write(tmp_path, kustomization, item=DEPLOYMENT))
    assert built["metadata"] == {"name": "one", "namespace": "ns", "labels": {"part": "p"}}
    assert built["spec"]["containers"][0]["image"] == "registry.example.com/img:2"


@pytest.mark.parametrize(
    ("kustomization", "complaint"),
    [
        ("{resources: [item.yaml], namePrefix: x-}", "'namePrefix' is beyond the built-in renderer"),
        ("{resources: [item.yaml], labels: [{pairs: {}, includeSelectors: true}]}", "'includeSelectors'"),
        ("{resources: [item.yaml], patches: [{path: p, target: {kind: Pod}}]}", "no object matches"),
    ],
)
def test_what_it_does_not_know_is_refused(render, tmp_path, kustomization, complaint):
    with pytest.raises(render.RenderError, match=complaint):
        render.build(_write(tmp_path, kustomization, item=JOB))


def test_a_patch_of_one_object_leaves_its_siblings_alone(render):
    """The base copies one cluster, itself written with YAML anchors, into four objects."""
    objects = _by_name(render.build(render.OVERLAYS / "gpu"))
    train = objects["RayJob", "omni-train"]["spec"]["rayClusterSpec"]
    serve = objects["RayService", "omni-serve"]["spec"]["rayClusterConfig"]
    sizes = [
        group["template"]["spec"]["volumes"][0]["emptyDir"]["sizeLimit"]
        for cluster in (train, serve)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]
    assert sizes == ["8Gi", "192Gi", "2Gi", "16Gi"]
