"""Every KubeRay object fits the operator's own CRDs, and the check notices when one does not."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "kuberay-crds"
needs_crds = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="KubeRay's CRD files are not beside the repository, in ../shared/kuberay-crds"
)


@pytest.fixture(scope="session")
def schemas(crds):
    return crds.load_schemas(FOLDER)


@pytest.fixture(scope="session")
def problems(crds, schemas):
    return lambda item: crds.problems(schemas[item["apiVersion"], item["kind"]], item)


@pytest.fixture
def train(of_kind) -> dict[str, Any]:
    return copy.deepcopy(next(job for job in of_kind("RayJob") if job["metadata"]["name"] == "omni-train"))


@needs_crds
def test_every_kuberay_object_is_valid(manifests, problems):
    ours = [item for item in manifests if item["apiVersion"].startswith("ray.io/")]
    assert [item["kind"] for item in ours] == ["RayJob", "RayJob", "RayJob", "RayService"]
    assert {item["metadata"]["name"]: problems(item) for item in ours} == {
        item["metadata"]["name"]: [] for item in ours
    }


@needs_crds
def test_the_pods_of_built_in_kinds_are_valid(of_kind, crds, schemas):
    """There is no schema of those kinds at hand, but the CRDs carry that of a pod."""
    cluster = schemas["ray.io/v1", "RayCluster"]["properties"]["spec"]["properties"]
    template = cluster["headGroupSpec"]["properties"]["template"]
    for item in [*of_kind("Deployment"), *of_kind("Job")]:
        assert crds.problems(template, item["spec"]["template"]) == [], item["metadata"]["name"]


def _pod(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


FAULTS = {
    "an unknown field": (
        lambda job: job["spec"].update(ttlSecondAfterFinished=1),
        "spec: Additional properties .*ttlSecondAfterFinished",
    ),
    "an unknown field of a container": (
        lambda job: _pod(job)["containers"][0].update(envs=[]),
        r"headGroupSpec\.template\.spec\.containers\.0: Additional properties .*envs",
    ),
    "an unknown field of the metadata": (
        lambda job: job["metadata"].update(label={}),
        "metadata: Additional properties .*label",
    ),
    "a number where text is wanted": (
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "num-cpus: 0 is not of type 'string'",
    ),
    "a missing field": (
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        "'groupName' is a required property",
    ),
    "a quantity that is none": (
        lambda job: _pod(job)["containers"][0]["resources"]["limits"].update(memory="lots"),
        "'lots' does not match",
    ),
    "a variable set twice": (
        lambda job: _pod(job)["containers"][0]["env"].append({"name": "HF_HOME", "value": "x"}),
        r"env: two entries with the same name: \('HF_HOME',\)",
    ),
    "a value outside its rule": (
        lambda job: job["spec"].update(managedBy="somebody"),
        "spec.managedBy: the managedBy field value must be either",
    ),
    "two ways to say one thing": (
        lambda job: job["spec"].update(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}, "deletionRules": []}),
        "spec.deletionStrategy: legacy policies",
    ),
}


@needs_crds
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_refused(name, train, problems):
    plant, complaint = FAULTS[name]
    plant(train)
    found = problems(train)
    assert any(re.search(complaint, problem) for problem in found), found


@needs_crds
def test_the_kueue_patch_is_valid(render, problems, tmp_path):
    """It is commented out in the overlay, so it is tried here."""
    source = render.OVERLAYS / "gpu" / "kueue.yaml"
    (tmp_path / "kueue.yaml").write_text(source.read_text())
    (tmp_path / "job.yaml").write_text(
        "apiVersion: ray.io/v1\nkind: RayJob\nmetadata: {name: one}\nspec: {shutdownAfterJobFinishes: true}\n"
    )
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [job.yaml]\npatches: [{path: kueue.yaml, target: {kind: RayJob}}]\n"
    )
    (job,) = render.build(tmp_path)
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "latentomni"}
    assert job["spec"]["suspend"] is True
    assert problems(job) == []


def test_rules_are_evaluated_or_refused(crds):
    either = "(has(self.a) && has(self.b)) || has(self.c)"
    assert crds.holds(either, {"a": 1, "b": 2})
    assert not crds.holds(either, {"a": 1})
    assert crds.holds("!has(self.a)", {})
    assert not crds.holds("self in ['x', 'y']", "z")
    with pytest.raises(ValueError, match="teach `holds`"):
        crds.holds("self.size() > 3", {})


def test_open_objects_stay_open_and_closed_ones_close(crds):
    schema = {"properties": {"a": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}}}}
    closed = crds.closed(schema)
    assert closed["additionalProperties"] is False
    assert "additionalProperties" not in closed["properties"]["a"]


@needs_crds
def test_the_command_fails_on_a_fault(root, tmp_path):
    rendered = subprocess.run(
        [sys.executable, "infra/render.py", "kind", "--engine", "own"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    command = [sys.executable, "infra/crds.py", str(FOLDER)]
    assert subprocess.run(command, cwd=root, input=rendered.stdout).returncode == 0
    faulty = rendered.stdout.replace(b"backoffLimit", b"backofLimit")
    done = subprocess.run(command, cwd=root, input=faulty, capture_output=True)
    assert done.returncode == 1
    assert b"'backofLimit' was unexpected" in done.stdout
