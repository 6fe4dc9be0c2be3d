"""The one door to Ray: local, on loopback, with workers that find the sources; and the doctor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import ray

from omni_platform import runtime
from omni_platform.runtime import doctor, start_ray

ROOTS = [str(Path(__file__).parents[2] / root) for root in ("platform", "model", "serving")]


@ray.remote
def _look_around(names: list[str]) -> dict[str, str | None]:
    import omni_platform

    return {"file": omni_platform.__file__, **{name: os.environ.get(name) for name in names}}


@pytest.mark.usefixtures("local_ray")
def test_workers_of_a_local_ray_find_the_sources_and_use_one_thread():
    seen = ray.get(_look_around.remote(["OMP_NUM_THREADS", "PYTHONPATH"]))
    assert seen["OMP_NUM_THREADS"] == "1"
    assert str(seen["PYTHONPATH"]).split(os.pathsep)[:3] == ROOTS
    assert seen["file"] == str(Path(ROOTS[0]) / "omni_platform" / "__init__.py")
    start_ray(num_cpus=7)  # a second start is no start
    assert ray.cluster_resources()["CPU"] == 2


@pytest.mark.usefixtures("local_ray")
def test_a_local_ray_lives_on_loopback_and_leaves_the_environment_alone():
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and os.environ["RAY_AUTH_MODE"] in ("disabled", "token")
    assert ROOTS[0] not in os.environ.get("PYTHONPATH", "")


def test_a_submitted_job_ships_relative_roots_and_leaves_what_the_submission_gave(monkeypatch):
    monkeypatch.chdir(Path(ROOTS[0]).parent)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    given = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "4"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(given))
    runtime_env = runtime.cluster_runtime_env({"EXTRA": "1"})
    assert runtime_env == {"env_vars": {"PYTHONPATH": "platform:model:serving", "EXTRA": "1"}}


def test_a_driver_beside_a_cluster_names_its_own_sources(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/my/code", ROOTS[1]]))  # the user's own stays, none comes twice
    runtime_env = runtime.cluster_runtime_env({})
    assert runtime_env == {"env_vars": {"PYTHONPATH": os.pathsep.join([*ROOTS, "/my/code"]), "OMP_NUM_THREADS": "1"}}


def test_the_doctor_finds_what_is_well_and_says_what_to_do_about_the_rest(tmp_path):
    checks = {check.name: check for check in doctor(tmp_path / "outputs")}
    assert checks["storage"].ok and list((tmp_path / "outputs").iterdir()) == []
    for name in ("python", "ray", "torch", "decord", "av", "codec h264", "codec aac"):
        assert checks[name].ok and checks[name].detail, name
    (tmp_path / "file").touch()
    storage = next(check for check in doctor(tmp_path / "file") if check.name == "storage")
    assert not storage.ok and "is not writable" in storage.detail
