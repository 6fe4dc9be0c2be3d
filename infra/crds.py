"""Holds rendered KubeRay objects against the operator's own CRDs, as strictly as the API server would.

    make render ENV=gpu | python infra/crds.py FOLDER_OF_CRDS

Unknown fields, wrong types, duplicate list keys and broken `x-kubernetes-validations` rules are problems.
Rules that compare with an earlier version of the object (`oldSelf`) have nothing to compare with, and pass.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft4Validator  # the JSON Schema dialect that OpenAPI v3.0 is built on

# The parts of ObjectMeta that a manifest may set; CRDs leave `metadata` open and the API server fills it in.
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEXT = {"type": "string"}
_METADATA = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "generateName": _TEXT,
        "namespace": _TEXT,
        "labels": _STRINGS,
        "annotations": _STRINGS,
        "finalizers": {"type": "array", "items": _TEXT},
    },
    "additionalProperties": False,
}
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Schema = dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        sys.exit("usage: python infra/crds.py FOLDER_OF_CRDS < manifests.yaml")
    schemas = load_schemas(Path(arguments[0]))
    found = 0
    for item in filter(None, yaml.safe_load_all(sys.stdin)):
        schema = schemas.get((item["apiVersion"], item["kind"]))
        for problem in problems(schema, item) if schema else []:
            found += 1
            print(f"{item['kind']} {item['metadata']['name']}: {problem}")
    sys.exit(1 if found else 0)


def load_schemas(folder: Path) -> dict[tuple[str, str], Schema]:
    """Closed schemas of every served version in a folder of CRD files, by (apiVersion, kind)."""
    schemas = {}
    for path in sorted(folder.glob("*.yaml")):
        crd = yaml.load(path.read_text(), Loader=_YAML)["spec"]
        for version in crd["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = _METADATA
            schemas[f"{crd['group']}/{version['name']}", crd["names"]["kind"]] = closed(schema)
    if not schemas:
        raise ValueError(f"{folder} holds no CRD files; point at KubeRay's crds/ folder")
    return schemas


def closed(schema: Schema) -> Schema:
    """The schema with `additionalProperties: false` wherever fields are listed and not declared open."""
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = closed(schema["items"])
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        result["type"] = [schema["type"], "null"]
    return result


def problems(schema: Schema, value: Any) -> list[str]:
    """Everything the API server would refuse about a value, each with the path of the field."""
    errors = Draft4Validator(schema).iter_errors(value)
    found = [f"{_dotted(error.absolute_path)}: {error.message[:300]}" for error in errors]
    return found + [f"{_dotted(path)}: {message}" for path, message in _beyond_types(schema, value, ())]


def _dotted(path: Any) -> str:
    return ".".join(map(str, path)) or "(top)"


def _beyond_types(schema: Schema, value: Any, path: tuple) -> Iterator[tuple[tuple, str]]:
    """What plain JSON Schema has no words for: validation rules, and keys that must be unique in a list."""
    for entry in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in entry["rule"] and not holds(entry["rule"], value):
            yield path, entry["message"]
    if isinstance(value, dict):
        for name, item in value.items():
            extra = schema.get("additionalProperties")
            part = schema.get("properties", {}).get(name, extra if isinstance(extra, dict) else {})
            yield from _beyond_types(part, item, (*path, name))
    elif isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        defaults = {key: schema["items"]["properties"][key].get("default") for key in keys}
        names = [tuple(item.get(key, defaults[key]) for key in keys) for item in value] if keys else []
        for name in {name for name in names if names.count(name) > 1}:
            yield path, f"two entries with the same {', '.join(keys)}: {name}"
        for i, item in enumerate(value):
            yield from _beyond_types(schema.get("items", {}), item, (*path, i))


def holds(rule: str, value: Any) -> bool:
    """Whether a CEL rule of the small kind that KubeRay writes holds: has(self.x), in, !, && and ||."""
    python = re.sub(r"has\(self\.(\w+)\)", r"('\1' in self)", rule)
    python = python.replace("&&", " and ").replace("||", " or ").replace("!", " not ")
    if not re.fullmatch(r"(?:self|and|or|not|in|'[\w./-]*'|[\s()\[\],])+", python):
        raise ValueError(f"cannot evaluate the validation rule {rule!r}; teach `holds` its operators")
    return bool(eval(python, {"__builtins__": {}}, {"self": value}))


if __name__ == "__main__":
    main()
