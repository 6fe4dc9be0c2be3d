"""Prints the manifests of one environment: `python infra/render.py gpu`.

GPUs are counted in one place, the config that a job or service runs: its pods and their GPUs are set from there, with a
node's worth (`gpu-workers.yaml`) as the most that one pod asks for.

Real kustomize (or kubectl, which carries it) does the work where it is installed. Elsewhere `build` reads the
same files: it knows the few kustomization fields that this folder uses, and refuses every other one rather
than print what a cluster would see differently.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

OVERLAYS = Path(__file__).parent / "overlays"
ENGINES = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
LOCAL_CONFIG = "config.kubernetes.io/local-config"
GPU = "nvidia.com/gpu"
# By stage: how many processes (the fewest and the most, where a pair is given), and the GPUs of each.
GPU_FIELDS = {
    "train": ("num_workers", None),
    "preprocess": ("data.num_encoders", "data.num_gpus_per_encoder"),
    "evaluate": ("num_examiners", "num_gpus_per_examiner"),
    "serve": ("num_replicas", "num_gpus_per_replica"),
}
FIELDS = {"apiVersion", "kind", "resources", "patches", "namespace", "labels", "images", "replacements"}

Object = dict[str, Any]


class RenderError(ValueError):
    """A kustomization that cannot be rendered; the message names the file and what to change."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print the manifests of one environment.")
    parser.add_argument("env", help="a folder of infra/overlays")
    parser.add_argument("--engine", choices=[*ENGINES, "own"], help="default: the first one installed")
    args = parser.parse_args(argv)
    try:
        print(render(OVERLAYS / args.env, engine=args.engine), end="")
    except RenderError as error:
        sys.exit(f"render: {error}")


def render(folder: Path, *, engine: str | None = None) -> str:
    """The manifests of an overlay as one YAML stream."""
    if not (folder / "kustomization.yaml").is_file():
        known = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/kustomization.yaml")))
        raise RenderError(f"{folder.name} is not an environment; choose one of: {known}")
    return yaml.safe_dump_all(objects_of(folder, engine=engine), sort_keys=False)


def objects_of(folder: Path, *, engine: str | None = None) -> list[Object]:
    """The objects of an overlay, with as many GPUs as their runs use."""
    engine = engine or next((name for name in ENGINES if shutil.which(name)), "own")
    if engine == "own":
        objects = build(folder)
    else:
        done = subprocess.run([*ENGINES[engine], str(folder)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RenderError(f"{engine} failed on {folder}: {done.stderr.strip()}")
        objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    for item in objects:
        _fit_to_run(item)
    return objects


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization folder, in the order of its resources."""
    path = folder / "kustomization.yaml"
    spec = yaml.safe_load(path.read_text())
    _only(spec, FIELDS, path)
    objects = [item for entry in spec.get("resources", []) for item in _load(folder / entry)]
    # The order in which kustomize applies its transformers.
    for patch in spec.get("patches", []):
        _only(patch, {"path", "target"}, path)
        _apply_patch(objects, folder / patch["path"], patch["target"])
    for item in objects:
        if "namespace" in spec:
            item["metadata"]["namespace"] = spec["namespace"]
        for label in spec.get("labels", []):
            _only(label, {"pairs"}, path)
            item["metadata"].setdefault("labels", {}).update(label["pairs"])
        for image in spec.get("images", []):
            _only(image, {"name", "newName", "newTag"}, path)
        for container in _containers(item):
            container["image"] = _renamed(container["image"], spec.get("images", []))
    for replacement in spec.get("replacements", []):
        _only(replacement, {"source", "targets"}, path)
        _apply_replacement(objects, replacement, path)
    return [item for item in objects if item["metadata"].get("annotations", {}).get(LOCAL_CONFIG) != "true"]


def _fit_to_run(item: Object) -> None:
    """Set pods and GPUs of a RayJob or RayService to what the config it runs uses."""
    field = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(item["kind"])
    if field is None:
        return
    (group,) = item["spec"][field]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    per_node = container["resources"]["requests"].get(GPU, 0)
    if not per_node:
        return
    fewest, most = _gpus_used(item)
    nodes = -(-most // per_node)
    if most % nodes:
        raise RenderError(f"{_name(item)}: {most} GPUs cannot be shared evenly by {nodes} nodes of {per_node}")
    gpus = most // nodes
    for amounts in container["resources"].values():
        amounts[GPU] = gpus
    group |= {"replicas": nodes, "maxReplicas": nodes, "minReplicas": -(-fewest // gpus)}


def _gpus_used(item: Object) -> tuple[int, int]:
    """GPUs of the run at its fewest and at its most processes, from its config file and the words after it."""
    stage = item["metadata"]["labels"]["app.kubernetes.io/component"]
    count_key, share_key = GPU_FIELDS[stage]
    if item["kind"] == "RayService":
        values = yaml.safe_load(item["spec"]["serveConfigV2"])["applications"][0]["args"]
    else:
        _, _, _, config, *words = item["spec"]["entrypoint"].split()
        values = yaml.safe_load((OVERLAYS.parents[1] / config).read_text())
        for word in words:
            key, _, text = word.partition("=")
            _set(values, key, yaml.safe_load(text))
    count, share = _get(values, count_key), 1 if share_key is None else _get(values, share_key)
    if count is None or share is None:
        raise RenderError(f"{_name(item)} asks for GPUs: its config must say {count_key} and {share_key}")
    fewest, most = count if isinstance(count, list) else (count, count)
    return round(fewest * share), round(most * share)


def _get(values: Object, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part, {}) if isinstance(values, dict) else {}
    return None if values == {} else values


def _set(values: Object, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        values = values.setdefault(part, {})
    values[last] = value


def _name(item: Object) -> str:
    return f"{item['kind']} {item['metadata']['name']}"


def _only(mapping: Object, known: set[str], path: Path) -> None:
    for key in mapping.keys() - known:
        raise RenderError(f"{path}: {key!r} is beyond the built-in renderer; install kustomize or kubectl")


def _load(path: Path) -> list[Object]:
    if path.is_dir():
        return build(path)
    return [_unshare(item) for item in yaml.safe_load_all(path.read_text()) if item]


def _unshare(value: Any) -> Any:
    """A copy in which nothing is shared: parts from one YAML anchor are one object until then."""
    if isinstance(value, dict):
        return {key: _unshare(item) for key, item in value.items()}
    return [_unshare(item) for item in value] if isinstance(value, list) else value


def _apply_patch(objects: list[Object], path: Path, target: Object) -> None:
    _only(target, {"kind", "name"}, path)
    chosen = [item for item in objects if _selects(target, item)]
    if not chosen:
        raise RenderError(f"{path}: no object matches its target {target}")
    patch = yaml.safe_load(path.read_text())
    for item in chosen:
        if isinstance(patch, list):
            for operation in patch:
                _apply_operation(item, operation, path)
            continue
        changes = {key: value for key, value in patch.items() if key not in ("apiVersion", "kind")}
        changes["metadata"] = {k: v for k, v in patch.get("metadata", {}).items() if k != "name"}
        if "ray.io/" not in item["apiVersion"] and _has_list(changes):
            raise RenderError(f"{path}: write a change to a list of a {item['kind']} as JSON 6902 operations")
        _merge(item, changes)


def _selects(target: Object, item: Object) -> bool:
    found = {"kind": item["kind"], "name": item["metadata"]["name"]}
    return all(re.fullmatch(pattern, found[key]) for key, pattern in target.items())


def _apply_operation(item: Object, operation: Object, path: Path) -> None:
    """One operation of RFC 6902: test, add, replace or remove."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    try:
        node: Any = item
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        key = int(last) if isinstance(node, list) else last
        _edit(node, key, operation["op"], operation.get("value"))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        name = f"{item['kind']} {item['metadata']['name']}"
        raise RenderError(f"{path}: cannot {operation['op']} {operation['path']} of {name}: {error!r}") from error


def _edit(node: Any, key: Any, op: str, value: Any) -> None:
    if op == "add" and isinstance(node, list):
        node.insert(int(key), _unshare(value))
        return
    if op != "add" and key not in (range(len(node)) if isinstance(node, list) else node):
        raise KeyError(key)
    if op in ("add", "replace"):
        node[key] = _unshare(value)
    elif op == "remove":
        del node[key]
    elif op != "test":
        raise ValueError("the built-in renderer does not know this operation")
    elif node[key] != value:
        raise ValueError(f"found {node[key]!r}, expected {value!r}")


def _has_list(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_list(item) for item in value.values())
    return isinstance(value, list)


def _merge(item: Object, changes: Object) -> None:
    """A merge patch: mappings merge, null removes, and lists (of a custom resource) are replaced."""
    for key, value in changes.items():
        if value is None:
            item.pop(key, None)
        elif isinstance(value, dict) and isinstance(item.get(key), dict):
            _merge(item[key], value)
        else:
            item[key] = _unshare(value)


def _containers(value: Any) -> Iterator[Object]:
    """Every container with an image, wherever in an object it stands."""
    if isinstance(value, list):
        for item in value:
            yield from _containers(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("containers", "initContainers"):
                yield from (container for container in item if "image" in container)
            else:
                yield from _containers(item)


def _renamed(image: str, rules: list[Object]) -> str:
    name, _, tag = image.partition(":")
    for rule in rules:
        if rule["name"] == name:
            return f"{rule.get('newName', name)}:{rule.get('newTag', tag)}".removesuffix(":")
    return image


def _apply_replacement(objects: list[Object], replacement: Object, path: Path) -> None:
    source = replacement["source"]
    chosen = {"kind": source["kind"], "name": source["name"]}
    value: Any = next((item for item in objects if _selects(chosen, item)), None)
    if value is None:
        raise RenderError(f"{path}: no {source['kind']} {source['name']} to copy from")
    for part in source["fieldPath"].split("."):
        value = value[part]
    for target in replacement["targets"]:
        for item in objects:
            if not _selects(target["select"], item):
                continue
            for field in target["fieldPaths"]:
                *parents, last = field.split(".")
                node = item
                for part in parents:
                    node = node.setdefault(part, {})
                node[last] = _unshare(value)


if __name__ == "__main__":
    main()
