"""What the manifests promise: real jobs, one Ray version, no secrets inside, time to save, no open doors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|CREDENTIAL")


@pytest.fixture(scope="module")
def project(root) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def ray_version(project) -> str:
    (pin,) = [line for line in project["dependencies"] if line.startswith("ray[")]
    return pin.partition("==")[2]


def test_each_stage_is_a_job_that_cleans_up(of_kind):
    jobs = {job["metadata"]["name"]: job["spec"] for job in of_kind("RayJob")}
    assert sorted(jobs) == ["omni-evaluate", "omni-preprocess", "omni-train"]
    for spec in jobs.values():
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] > 0
        assert spec["backoffLimit"] >= 1


def test_every_object_belongs_to_a_stage_that_can_be_applied_alone(manifests, root):
    guide = (root / "docs" / "operations.md").read_text()
    for item in manifests:
        assert item["metadata"]["namespace"] == "latentomni"
        assert item["metadata"]["labels"]["app.kubernetes.io/component"] in guide


def test_each_entrypoint_names_a_job_and_a_config_that_exist(of_kind, root):
    for job in of_kind("RayJob"):
        python, script, flag, config, *_ = job["spec"]["entrypoint"].split()
        stage = job["metadata"]["labels"]["app.kubernetes.io/component"]
        assert (python, script, flag) == ("python", f"jobs/{stage}.py", "--config")
        assert config.startswith(f"jobs/configs/{stage}/")
        missing = [path for path in (script, config) if not (root / path).is_file()]
        assert not missing, f"{job['metadata']['name']} names files that do not exist: {missing}"


def test_each_job_accepts_its_entrypoint(of_kind, read_entrypoint):
    for job in of_kind("RayJob"):
        read_entrypoint(job["spec"]["entrypoint"])


def test_the_small_environment_brings_its_own_clips(render, root):
    (job,) = [item for item in render.build(render.OVERLAYS / "kind") if item["kind"] == "Job"]
    pod = job["spec"]["template"]["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        python, script, flag, config = container["command"]
        assert (python, script, flag) == ("python", "jobs/film.py", "--config")
        assert (root / script).is_file() and (root / config).is_file()


def test_rayversion_is_the_pinned_ray_and_the_image_s(clusters, ray_pods, ray_version, project):
    assert {cluster["rayVersion"] for cluster in clusters.values()} == {ray_version}
    for name, pod in ray_pods.items():
        tag = pod["containers"][0]["image"].partition(":")[2]
        assert re.fullmatch(rf"{project['version']}-ray{ray_version}-(cpu|gpu)", tag), f"{name}: {tag}"


def test_all_of_an_environment_runs_one_release(manifests, render):
    tags = {c["image"].rpartition(":")[2].rpartition("-")[0] for c in render._containers(manifests)}
    assert len(tags) == 1


def test_no_secret_stands_in_a_manifest(manifests):
    assert "Secret" not in {item["kind"] for item in manifests}
    for entry in _variables(manifests):
        if "value" in entry:
            assert not SECRET_NAME.search(entry["name"]), f"{entry['name']} is written out"
            assert not urlsplit(entry["value"]).password, f"{entry['name']} holds a password"


def test_each_secret_is_documented(manifests, clusters, root):
    guide = (root / "docs" / "operations.md").read_text()
    named = {
        (entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"])
        for entry in _variables(manifests)
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    named |= {(cluster["authOptions"]["secretName"], "auth_token") for cluster in clusters.values()}
    for name, key in named:
        assert re.search(rf"\| `{name}` \|.*`{key}`", guide), f"docs/operations.md lacks {name} / {key}"


def _variables(value: Any) -> Iterator[dict[str, Any]]:
    """Every environment entry, wherever it stands."""
    if isinstance(value, list):
        for item in value:
            yield from _variables(item)
    elif isinstance(value, dict):
        yield from value.get("env", [])
        for item in value.values():
            yield from _variables(item)


def _env(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}


def test_every_cluster_asks_for_a_token(clusters, ray_pods):
    for cluster in clusters.values():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "omni-ray-token"}
    for pod in ray_pods.values():
        assert _env(pod)["RAY_AUTH_MODE"] == "token"
        assert _env(pod)["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_head_does_no_work(clusters):
    for cluster in clusters.values():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_job_has_time_to_save(ray_pods):
    """SIGTERM to SIGKILL of the driver, inside the wait of the hook, inside the patience of the kubelet."""
    for name, pod in ray_pods.items():
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[:2] == ["python", "/home/ray/latentomni/infra/drain.py"]
        is_head = name.endswith("head")
        assert ("--stop" in hook, "--leave" in hook) == (is_head, not is_head)
        driver_s = int(_env(pod)["RAY_JOB_STOP_WAIT_TIME_S"])
        hook_s = int(hook[hook.index("--timeout_s") + 1])
        assert 120 <= driver_s < hook_s < pod["terminationGracePeriodSeconds"]
        if not is_head:
            # What the cluster is told: time to save, and over before the hook ends.
            assert 120 <= int(hook[hook.index("--deadline_s") + 1]) < hook_s


def test_shared_memory_is_memory_and_fits_its_container(ray_pods):
    for name, pod in ray_pods.items():
        (shm,) = [v for v in pod["volumes"] if v["name"] == "shared-memory"]
        assert shm["emptyDir"]["medium"] == "Memory"
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts["shared-memory"] == "/dev/shm"
        limit = pod["containers"][0]["resources"]["limits"]["memory"]
        assert _gib(shm["emptyDir"]["sizeLimit"]) < _gib(limit), name


def _gib(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity[:-2])


def test_relative_paths_start_where_the_image_keeps_the_jobs(ray_pods, root):
    (workdir,) = re.findall(r"^WORKDIR (/home\S+)", (root / "infra" / "Dockerfile").read_text(), re.MULTILINE)
    assert {pod["containers"][0]["workingDir"] for pod in ray_pods.values()} == {workdir}


def test_outputs_are_on_a_volume(ray_pods, of_kind):
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    for pod in ray_pods.values():
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts["/home/ray/latentomni/outputs"] == mounts["/data"] == "outputs"
        used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        assert used <= claims


def test_no_container_may_become_root(ray_pods, of_kind):
    others = [item["spec"]["template"]["spec"] for item in [*of_kind("Deployment"), *of_kind("Job")]]
    for pod in [*ray_pods.values(), *others]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_gpus_are_asked_for_in_one_environment_only(render):
    def asked(env: str) -> int:
        return str(render.objects_of(render.OVERLAYS / env, engine="own")).count("'nvidia.com/gpu': ")

    assert asked("kind") == 0
    assert asked("gpu") == 2 * 4  # requests and limits of three jobs and the service


def test_a_job_asks_for_the_gpus_that_its_config_uses(render, read_entrypoint):
    """Each number is read from the config's own dataclass here, and from the file by the renderer."""
    objects = render.objects_of(render.OVERLAYS / "gpu", engine="own")
    asked, used = {}, {}
    for item in objects:
        if item["kind"] not in ("RayJob", "RayService"):
            continue
        name = item["metadata"]["labels"]["app.kubernetes.io/component"]
        (group,) = item["spec"].get("rayClusterSpec", item["spec"].get("rayClusterConfig"))["workerGroupSpecs"]
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"]
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        asked[name] = group["replicas"] * resources["requests"]["nvidia.com/gpu"]
        if item["kind"] == "RayJob":
            used[name] = _gpus_of(name, read_entrypoint(item["spec"]["entrypoint"]))
        else:
            args = yaml.safe_load(item["spec"]["serveConfigV2"])["applications"][0]["args"]
            used[name] = args["num_replicas"] * args["num_gpus_per_replica"]
    assert asked == used == {"train": 8, "preprocess": 8, "evaluate": 8, "serve": 1}


def _gpus_of(stage: str, config: Any) -> float:
    if stage == "train":
        assert config.use_gpu is True
        return config.max_workers
    if stage == "preprocess":
        return config.data.num_encoders * config.data.num_gpus_per_encoder
    return config.num_examiners * config.num_gpus_per_examiner


@pytest.mark.parametrize(
    ("words", "nodes", "gpus", "fewest"),
    [
        ("num_workers=16", 2, 8, 2),
        ("num_workers=4", 1, 4, 1),
        ("num_workers=12", 2, 6, 2),
        ("num_workers=[8,16]", 2, 8, 1),
    ],
)
def test_pods_follow_the_workers_of_the_run(render, words, nodes, gpus, fewest):
    (job,) = [i for i in render.build(render.OVERLAYS / "gpu") if i["metadata"]["name"] == "omni-train"]
    job["spec"]["entrypoint"] += f" {words}"
    render._fit_to_run(job)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert (group["replicas"], group["maxReplicas"], group["minReplicas"]) == (nodes, nodes, fewest)
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == gpus


def test_workers_that_cannot_be_shared_by_nodes_are_refused(render):
    (job,) = [i for i in render.build(render.OVERLAYS / "gpu") if i["metadata"]["name"] == "omni-train"]
    job["spec"]["entrypoint"] += " num_workers=9"
    with pytest.raises(render.RenderError, match="RayJob omni-train: 9 GPUs cannot be shared evenly by 2 nodes of 8"):
        render._fit_to_run(job)


def test_jobs_reach_mlflow_under_a_name_it_answers_to(ray_pods, of_kind, monkeypatch):
    from mlflow.server import security_utils

    (service,), (deployment,) = of_kind("Service"), of_kind("Deployment")
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", _env(pod["spec"])["MLFLOW_SERVER_ALLOWED_HOSTS"])
    allowed = security_utils.get_allowed_hosts_from_env()
    for ray_pod in ray_pods.values():
        where = urlsplit(_env(ray_pod)["MLFLOW_TRACKING_URI"])
        assert (where.hostname, where.port) == (
            service["metadata"]["name"],
            service["spec"]["ports"][0]["port"],
        )
        assert security_utils.is_allowed_host_header(allowed, where.netloc)
    assert not security_utils.is_allowed_host_header(allowed, "elsewhere.example.com:5000")


def test_mlflow_keeps_its_records(of_kind):
    """In a file on a volume, or in a database whose address comes from a secret."""
    (deployment,) = of_kind("Deployment")
    entries = {entry["name"]: entry for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    store = entries["MLFLOW_BACKEND_STORE_URI"]
    assert store.get("value", "").startswith("sqlite:////mlflow/") or "secretKeyRef" in store["valueFrom"]
    assert entries["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]["value"] == "false"
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


@pytest.fixture(scope="module")
def serve_config(of_kind) -> dict[str, Any]:
    (service,) = of_kind("RayService")
    return yaml.safe_load(service["spec"]["serveConfigV2"])


def test_ray_serve_accepts_the_service(serve_config):
    from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    (application,) = ServeDeploySchema.model_validate(serve_config).applications
    assert application.import_path == "omni_serving.app:build_app"
    # Ray drops fields that it does not know without a word.
    assert serve_config.keys() <= ServeDeploySchema.model_fields.keys()
    assert serve_config["http_options"].keys() <= HTTPOptionsSchema.model_fields.keys()
    assert serve_config["applications"][0].keys() <= ServeApplicationSchema.model_fields.keys()


def test_the_application_accepts_its_arguments(serve_config):
    from omni_platform.config import load_config
    from omni_serving.config import ServeConfig

    (application,) = serve_config["applications"]
    config = load_config(ServeConfig, None, [f"{key}={value}" for key, value in application["args"].items()])
    assert config.model.startswith("models:/")


def test_readiness_asks_whether_the_model_can_answer(of_kind, serve_config):
    (service,) = of_kind("RayService")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
    assert probe["httpGet"] == {"path": "/health", "port": serve_config["http_options"]["port"]}


def test_the_proxies_bound_what_waits(of_kind, serve_config):
    from omni_platform.config import load_config
    from omni_serving.config import ServeConfig
    from omni_serving.proxy import PROXY_ENV

    (service,) = of_kind("RayService")
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        env = {entry["name"]: entry.get("value") for entry in group["template"]["spec"]["containers"][0]["env"]}
        assert PROXY_ENV.items() <= env.items()
    args = serve_config["applications"][0]["args"]
    config = load_config(ServeConfig, None, [f"{key}={value}" for key, value in args.items()])
    assert serve_config["http_options"]["request_timeout_s"] > config.request_timeout_s
    assert "omni-serve-serve-svc.latentomni.svc" in config.allowed_hosts


def test_what_training_registers_is_evaluated_and_served(serve_config, of_kind, read_entrypoint):
    jobs = {job["metadata"]["name"]: job["spec"]["entrypoint"] for job in of_kind("RayJob")}
    train = read_entrypoint(jobs["omni-train"])
    # A run registers a candidate; what is served is moved by jobs/promote.py alone.
    assert read_entrypoint(jobs["omni-evaluate"]).model == f"models:/{train.registered_model_name}@candidate"
    assert serve_config["applications"][0]["args"]["model"] == f"models:/{train.registered_model_name}@champion"


def test_the_service_on_gpus_is_the_one_of_the_configs(render, root):
    (service,) = [
        item for item in render.objects_of(render.OVERLAYS / "gpu", engine="own") if item["kind"] == "RayService"
    ]
    args = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    config = yaml.safe_load((root / "jobs" / "configs" / "serve" / "cluster.yaml").read_text())
    for only_there in ("host", "port", "model"):
        config.pop(only_there, None)
    assert {key: value for key, value in args.items() if key != "model"} == config
