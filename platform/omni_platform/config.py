"""One YAML file and `key.sub=value` words become a frozen dataclass; whatever does not fit is refused.

A frozen, keyword-only dataclass beside its owner is the schema. Field types: bool, int, float, str, Path,
None unions, Literal, `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]`, Any, nested dataclasses.
A field may name an environment variable with `field(metadata={"env": "NAME"})`: it is read only where neither
the command line nor the file gives a value.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from omni_platform.config_help import dataclass_in, describe, field_docs, init_fields, type_name

T = TypeVar("T")
_HELP = "usage: {program} [--config FILE.yaml] [KEY.SUB=VALUE ...]\n"


class ConfigError(ValueError):
    """A configuration that does not fit its dataclass; the message names the key, its source and the fix."""


@dataclasses.dataclass(frozen=True)
class _Word:
    """The value of a command-line override, not yet read as YAML: a str field wants it as it was typed."""

    text: str


def parse_args(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """Read `--config FILE.yaml key.sub=value ...` (or `--help`) and end the process on a mistake.

    `argv` is without the program's name; None means the words of this process. A mistake is one line on
    stderr and exit status 1, so that a submitted job fails without a traceback that hides it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-h" in words or "--help" in words:
        print(_HELP.format(program=Path(sys.argv[0]).name) + "\n" + describe(cls))
        raise SystemExit(0)
    try:
        path, overrides = _split_words(words)
        return load_config(cls, path, overrides)
    except ConfigError as error:
        raise SystemExit(f"config error: {error}") from None


def load_config(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Build `cls` from a YAML file and `key.sub=value` overrides (these win).

    Where neither gives a value: the field's environment variable, if it names one, then its default.
    Raises `ConfigError` naming the key, the file and the nearest known key.
    """
    tree = {} if path is None else _read_yaml(Path(path))
    source = "the command line" if path is None else str(path)
    for override in overrides:
        _merge_override(tree, override)
    return _build(cls, tree, prefix="", source=source, root=cls)


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
    tree[leaf] = _Word(text)


def _build(cls: type[T], tree: dict[str, Any], *, prefix: str, source: str, root: type) -> T:
    hints, known = get_type_hints(cls), {field.name: field for field in init_fields(cls)}
    for key in tree:
        if key not in known:
            raise ConfigError(_unknown_key(str(key), prefix, list(known), source, root))
    values: dict[str, Any] = {}
    for name, field in known.items():
        raw = tree.get(name, dataclasses.MISSING)
        variable = field.metadata.get("env")
        if raw is dataclasses.MISSING and variable and os.environ.get(variable):
            raw = _Word(os.environ[variable])
        if raw is not dataclasses.MISSING:
            values[name] = _convert(hints[name], raw, prefix + name, source, root)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            doc = field_docs(cls).get(name, "")
            hint = f" or set {variable}" if variable else ""
            raise ConfigError(f"{source}: {prefix + name!r} is required (give {prefix}{name}=...{hint}). {doc}".strip())
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:  # a check in __post_init__
        raise ConfigError(f"{source}: {prefix and prefix[:-1] + ': '}{error}") from error


def _unknown_key(key: str, prefix: str, known: list[str], source: str, root: type) -> str:
    def likeness(name: str) -> float:
        # The right word in the wrong section is a common mistake, so all sections are looked at.
        section, _, leaf = name.rpartition(".")
        return difflib.SequenceMatcher(None, key, leaf).ratio() + 0.05 * (section == prefix.rstrip("."))

    nearest = max(_dotted_names(root), key=likeness)
    hint = f"did you mean {nearest!r}?" if likeness(nearest) >= 0.6 else f"known keys: {', '.join(known)}"
    return f"{source}: unknown key {prefix + key!r}; {hint}"


def _dotted_names(cls: type, prefix: str = "") -> list[str]:
    hints, names = get_type_hints(cls), []
    for field in init_fields(cls):
        inner = dataclass_in(hints[field.name])
        below = _dotted_names(inner, f"{prefix}{field.name}.") if inner is not None else []
        names += [prefix + field.name, *below]
    return names


def _convert(hint: Any, raw: Any, key: str, source: str, root: type) -> Any:
    """`raw` (plain data or a `_Word`) as a value of type `hint`; ConfigError where it is not one."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, raw, key, source, root)
    if isinstance(raw, _Word):
        raw = raw.text if hint is str and not _quoted(raw.text) else _read_word(raw.text, key, source)
    if dataclasses.is_dataclass(hint) and isinstance(raw, dict):
        return _build(hint, raw, prefix=f"{key}.", source=source, root=root)  # type: ignore[arg-type]
    if origin is Literal:
        return raw if raw in args else _refuse(hint, raw, key, source, args)
    if origin in (tuple, list) and isinstance(raw, (list, tuple)):
        item_types = args if origin is tuple and args[-1] is not Ellipsis else (args[0],) * len(raw)
        if len(item_types) != len(raw):
            return _refuse(hint, raw, key, source)
        pairs = enumerate(zip(item_types, raw, strict=True))
        return origin(_convert(t, item, f"{key}[{i}]", source, root) for i, (t, item) in pairs)
    if (origin is dict or hint is dict) and isinstance(raw, dict):
        value_type = args[1] if args else Any
        return {str(k): _convert(value_type, v, f"{key}.{k}", source, root) for k, v in raw.items()}
    return _convert_scalar(hint, raw, key, source)


def _convert_union(args: tuple, raw: Any, key: str, source: str, root: type) -> Any:
    value = _read_word(raw.text, key, source) if isinstance(raw, _Word) else raw
    if value is None and type(None) in args:
        return None
    members = [arg for arg in args if arg is not type(None)]
    problem: ConfigError | None = None
    for member in members:
        try:
            return _convert(member, raw, key, source, root)
        except ConfigError as error:
            problem = problem or error
    assert problem is not None
    if len(members) == 1:
        raise problem
    return _refuse(Union[tuple(args)], value, key, source)  # noqa: UP007 - built from a tuple


def _convert_scalar(hint: Any, raw: Any, key: str, source: str) -> Any:
    if hint is Any:
        return _read_words(raw, key, source)
    if hint is Path and isinstance(raw, str):
        return Path(raw)
    if hint is float and isinstance(raw, (int, float, str)) and not isinstance(raw, bool):
        try:
            return float(raw)  # str too: YAML reads 1e-4 as text
        except ValueError:
            return _refuse(hint, raw, key, source)
    if isinstance(hint, type) and isinstance(raw, hint) and not (hint is int and isinstance(raw, bool)):
        return raw
    return _refuse(hint, raw, key, source)


def _refuse(hint: Any, raw: Any, key: str, source: str, choices: tuple = ()) -> Any:
    if choices:
        near = difflib.get_close_matches(str(raw), [str(c) for c in choices], n=1)
        hint_text = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = ", ".join(map(repr, choices))
        raise ConfigError(f"{source}: {key!r} must be one of {allowed}, got {raw!r}{hint_text}")
    raise ConfigError(f"{source}: {key!r} must be {type_name(hint)}, got {raw!r} ({type(raw).__name__})")


def _read_word(text: str, key: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: the value of {key}={text} is not valid YAML: {error}") from None


def _read_words(raw: Any, key: str, source: str) -> Any:
    """Plain data with every override in it read as YAML, for the parts of a config that have no schema."""
    if isinstance(raw, dict):
        return {str(k): _read_words(v, f"{key}.{k}", source) for k, v in raw.items()}
    return _read_word(raw.text, key, source) if isinstance(raw, _Word) else raw


def _quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
