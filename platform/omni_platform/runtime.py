"""Starting Ray: connect to a cluster where there is one, else start one on this machine.

`doctor` says beforehand what would go wrong later.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from omni_platform import storage

logger = logging.getLogger(__name__)
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_SOURCE_ROOTS = ("platform", "model", "serving")
_NEEDED = ("torch", "ray", "transformers", "deepspeed", "mlflow", "pyarrow", "decord", "av", "s3fs")
_MIN_SHM_GB = 1.0


def start_ray(
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_memory_bytes: int | None = None,
    env_vars: Mapping[str, str] | None = None,
) -> None:
    """Connect to the cluster of `RAY_ADDRESS` (set in a submitted job too), else start a local one.

    The local one listens on loopback only and has no dashboard; the three sizes are for it alone. `env_vars`
    reach every worker, beside `OMP_NUM_THREADS=1` and the paths of the sources. Where Ray already runs,
    nothing happens.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=cluster_runtime_env(env_vars or {}), logging_level=logging.WARNING)
        return
    # Local workers inherit this environment; a runtime_env would say the same and start seconds later.
    with _environment(_worker_env(env_vars or {})):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=object_store_memory_bytes,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    address = ray.nodes()[0]["NodeManagerAddress"]
    if not address.startswith("127."):
        logger.warning("Ray listens on %s, not on loopback: import omni_platform before ray", address)


def cluster_runtime_env(env_vars: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What the workers of a cluster need beside what `ray job submit` has already given them."""
    # A variable given at submission and again here is refused by Ray; the submission wins.
    given = _submitted_env_vars()
    wanted = _worker_env(env_vars)
    return {"env_vars": {key: value for key, value in wanted.items() if key not in given}}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding of the doctor."""

    name: str
    ok: bool
    detail: str
    """What was found and, where it is not well, what to do."""


def doctor(output_dir: str | Path = "outputs") -> list[Check]:
    """Look at versions, codecs, storage and shared memory; never raises, never starts Ray."""
    return [_check_python(), *_check_versions(), *_check_codecs(), _check_storage(output_dir), _check_shm()]


def _worker_env(env_vars: Mapping[str, str]) -> dict[str, str]:
    # One thread per worker process: many processes share the cores, and torch would take them all in each.
    wanted = {"OMP_NUM_THREADS": "1", **env_vars}
    roots = _source_roots()
    if roots:
        # What the user has put there stays; that of a submitted job has already reached its workers.
        own = [] if _JOB_CONFIG in os.environ else os.environ.get("PYTHONPATH", "").split(os.pathsep)
        wanted["PYTHONPATH"] = os.pathsep.join([*roots, *(path for path in own if path and path not in roots)])
    return wanted


def _source_roots() -> list[str]:
    """The folders that hold our packages, where the code runs from a checkout; none where it is installed.

    In a submitted job they are relative: a worker on any node starts in its copy of the working directory.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not all((checkout / root).is_dir() for root in _SOURCE_ROOTS):
        return []
    if _JOB_CONFIG in os.environ and all(Path(root).is_dir() for root in _SOURCE_ROOTS):
        return list(_SOURCE_ROOTS)
    return [str(checkout / root) for root in _SOURCE_ROOTS]


def _submitted_env_vars() -> dict[str, str]:
    """The env_vars given to `ray job submit`, when this process is such a job."""
    config = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    return (config.get("runtime_env") or {}).get("env_vars") or {}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check(name="python", ok=ok, detail=version if ok else f"{version}; 3.11 or 3.12 is needed")


def _check_versions() -> list[Check]:
    """Installed versions against the pins of our own package."""
    try:
        pins = importlib.metadata.requires("latentomni") or []
    except importlib.metadata.PackageNotFoundError:
        pins = []
    pinned = dict(pin.split(";")[0].split("==") for pin in pins if "==" in pin and "extra" not in pin)
    pinned = {name.split("[")[0].strip(): version.strip() for name, version in pinned.items()}
    return [_check_version(name, pinned.get(name)) for name in _NEEDED]


def _check_version(name: str, pin: str | None) -> Check:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name=name, ok=False, detail="not installed; run `make setup`")
    ok = pin is None or found.partition("+")[0] == pin
    return Check(name=name, ok=ok, detail=found if ok else f"{found} is installed, {pin} was tested")


def _check_codecs() -> list[Check]:
    import av

    checks = []
    for codec in ("h264", "hevc", "vp9", "aac"):
        ok = codec in av.codecs_available
        detail = "decoder found" if ok else "this PyAV cannot decode it; install the wheel from the package index"
        checks.append(Check(name=f"codec {codec}", ok=ok, detail=detail))
    return checks


def _check_storage(output_dir: str | Path) -> Check:
    probe = storage.join(output_dir, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        storage.write_bytes(probe, b"probe")
        readable = storage.read_bytes(probe) == b"probe"
        storage.remove(probe)
    except Exception as error:  # any failure of any store is the finding
        return Check(name="storage", ok=False, detail=f"{output_dir} is not writable: {error}")
    return Check(name="storage", ok=readable, detail=f"{output_dir} is writable")


def _check_shm() -> Check:
    if not Path("/dev/shm").is_dir():
        return Check(name="shared memory", ok=True, detail="no /dev/shm on this system")
    size_gb = shutil.disk_usage("/dev/shm").total / 1e9
    ok = size_gb >= _MIN_SHM_GB
    fix = "" if ok else "; Ray would keep its objects on disk: docker run --shm-size=2g, or an emptyDir on Memory"
    return Check(name="shared memory", ok=ok, detail=f"/dev/shm has {size_gb:.1f} GB{fix}")
