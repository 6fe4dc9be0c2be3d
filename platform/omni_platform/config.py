"""One YAML file and `key.sub=value` words become a frozen dataclass; whatever does not fit is refused.

A frozen, keyword-only dataclass beside its owner is the schema. Field types: bool, int, float, str, Path,
None unions, Literal, `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]`, Any, nested dataclasses, and any of
them with bounds, `Annotated[int, Ge(1)]` (see `omni_platform.bounds`); floats are finite in any case.
A field may name an environment variable with `field(metadata={"env": "NAME"})`: it is read only where neither
the command line nor the file gives a value. A field whose dataclass depends on another field says so with
`field(metadata={"chosen_by": "method", "kinds": {"a": OptionsOfA}})`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from omni_platform.config_help import describe
from omni_platform.config_tree import COMMAND_LINE, ConfigError, TreeReader, Word

__all__ = ["ConfigError", "fingerprint", "load_config", "parse_args", "read_config", "to_dict", "to_yaml"]

T = TypeVar("T")
_HELP = "usage: {program} [--config FILE.yaml] [KEY.SUB=VALUE ...]\n"


def parse_args(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """Read `--config FILE.yaml key.sub=value ...` (or `--help`) and end the process on a mistake.

    `argv` is without the program's name; None means the words of this process. A mistake is one line on
    stderr and exit status 1, so that a submitted job fails without a traceback that hides it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    asked = [word for word in words if word not in ("-h", "--help")]
    try:
        path, overrides = _split_words(list(asked))
        if len(asked) < len(words):
            # What the other words choose, such as task.method=pause, decides which options there are to describe.
            about = describe(cls, _tree(path, overrides))
            print(_HELP.format(program=Path(sys.argv[0]).name) + "\n" + about)
            raise SystemExit(0)
        return load_config(cls, path, overrides)
    except ConfigError as error:
        raise SystemExit(f"config error: {error}") from None


def load_config(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Build `cls` from a YAML file and `key.sub=value` overrides (these win).

    Where neither gives a value: the field's environment variable, if it names one, then its default.
    Raises `ConfigError` naming the key, what gave it (the file or the command line) and the nearest known key.
    """
    return TreeReader(cls, _tree(path, overrides), COMMAND_LINE if path is None else str(path)).read()


def read_config(cls: type[T], tree: Mapping[str, Any], *, source: str) -> T:
    """Build `cls` from plain values that were read elsewhere; `source` names them in a `ConfigError`."""
    return TreeReader(cls, tree, source).read()


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars: what goes into cards, trackers and task builders."""
    return _plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def fingerprint(config: Any) -> str:
    """16 hex digits that change whenever any value of the config (a dataclass or plain data) changes."""
    plain = _plain(dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config)  # type: ignore[arg-type]
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _tree(path: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    tree = {} if path is None else _read_yaml(Path(path))
    for override in overrides:
        _merge_override(tree, override)
    return tree


def _split_words(words: list[str]) -> tuple[str | None, list[str]]:
    path, overrides = None, []
    while words:
        word = words.pop(0)
        if word == "--config" or word.startswith("--config="):
            if path is not None:
                raise ConfigError("--config is given twice; a run has one file")
            path = word.partition("=")[2] or (words.pop(0) if words else "")
            if not path:
                raise ConfigError("--config needs a file: --config FILE.yaml")
        elif "=" in word:
            # `--key=value` is what fingers type; it can mean one thing only.
            overrides.append(word.removeprefix("--"))
        else:
            raise ConfigError(f"{word!r} is neither --config FILE.yaml nor key.sub=value")
    return path, overrides


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist (working directory {Path.cwd()})")
    text = path.read_text(encoding="utf-8")
    try:
        _refuse_duplicates(yaml.compose(text, Loader=yaml.SafeLoader), path)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, it holds a {type(tree).__name__}")
    return tree


def _refuse_duplicates(node: yaml.Node | None, path: Path) -> None:
    """YAML readers keep the last of two equal keys without a word; here that is a mistake."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if key.value in seen:
            raise ConfigError(f"{path}, line {key.start_mark.line + 1}: key {key.value!r} is given twice")
        seen.add(key.value)
        _refuse_duplicates(value, path)


def _merge_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key.sub=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        below = tree.get(parent)
        if not isinstance(below, dict):
            below = {}
        tree[parent] = dict(below)
        tree = tree[parent]
    tree[leaf] = Word(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
