"""A tree of plain values as a frozen dataclass: types, bounds and names checked, mistakes named with their place.

Leaves that the command line gave are `Word`s until their field's type is known, so every message can say whether the
file or the command line gave that very key. A field whose type depends on another one names it in its metadata:
`field(metadata={"chosen_by": "method", "kinds": {"sft": SftOptions, ...}})`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from omni_platform.bounds import problem_of
from omni_platform.config_help import dataclass_in, field_docs, init_fields, type_name

T = TypeVar("T")
COMMAND_LINE = "the command line"


class ConfigError(ValueError):
    """A configuration that does not fit its dataclass; the message names the key, its source and the fix."""


@dataclasses.dataclass(frozen=True)
class Word:
    """A value of the command line, not yet read as YAML: a str field wants it as it was typed."""

    text: str
    source: str = COMMAND_LINE


class TreeReader:
    """Reads one tree. `source` names what gave every leaf that is not a `Word`, such as the YAML file."""

    def __init__(self, root: type, tree: Mapping[str, Any], source: str) -> None:
        self._root, self._tree, self._source = root, tree, source

    def read(self) -> Any:
        """The root dataclass. Raises `ConfigError`."""
        return self._build(self._root, self._tree, "", self._source)

    def _build(self, cls: Any, tree: Mapping[str, Any], prefix: str, source: str) -> Any:
        hints, known = get_type_hints(cls, include_extras=True), {field.name: field for field in init_fields(cls)}
        for key, raw in tree.items():
            if key not in known:
                raise ConfigError(self._unknown_key(str(key), prefix, cls, _source_of(raw, source)))
        values: dict[str, Any] = {}
        for name, field in known.items():
            raw, variable = tree.get(name, dataclasses.MISSING), field.metadata.get("env")
            if raw is dataclasses.MISSING and variable and os.environ.get(variable):
                raw = Word(os.environ[variable], f"environment variable {variable}")
            hint = hints[name]
            if "kinds" in field.metadata:
                hint, raw = self._chosen(field, cls, tree, prefix, source), {} if raw is dataclasses.MISSING else raw
            if raw is not dataclasses.MISSING:
                values[name] = self._value(hint, raw, prefix + name, _source_of(raw, source))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                doc, hint_env = field_docs(cls).get(name, ""), f" or set {variable}" if variable else ""
                raise ConfigError(
                    f"{source}: {prefix + name!r} is required (give {prefix}{name}=...{hint_env}). {doc}".strip()
                )
        try:
            return cls(**values)
        except ConfigError:
            raise
        except ValueError as error:  # a check in __post_init__
            place = _places(str(error), tree, source)
            raise ConfigError(f"{place}: {prefix and prefix[:-1] + ': '}{error}") from error

    def _value(self, hint: Any, raw: Any, key: str, source: str) -> Any:
        value = self._convert(hint, raw, key, source)
        if problem := problem_of(value, hint):
            raise ConfigError(f"{source}: {key!r} {problem}, got {value!r}")
        return value

    def _chosen(self, field: dataclasses.Field, cls: Any, tree: Mapping[str, Any], prefix: str, source: str) -> type:
        """The dataclass of a field that another field decides. ConfigError where that one names none."""
        name, kinds = field.metadata["chosen_by"], field.metadata["kinds"]
        raw = tree.get(name, _default_of(cls, name))
        choice = self._convert(str, raw, prefix + name, _source_of(raw, source))
        return kinds[choice] if choice in kinds else _refuse(Any, choice, prefix + name, _source_of(raw, source), kinds)

    def _unknown_key(self, key: str, prefix: str, cls: Any, source: str) -> str:
        def likeness(name: str) -> float:
            # The right word in the wrong section is a common mistake, so all sections are looked at.
            section, _, leaf = name.rpartition(".")
            return difflib.SequenceMatcher(None, key, leaf).ratio() + 0.05 * (section == prefix.rstrip("."))

        nearest = max(dotted_names(self._root, self._tree), key=likeness, default="")
        known = ", ".join(field.name for field in init_fields(cls)) or "none"
        hint = f"did you mean {nearest!r}?" if nearest and likeness(nearest) >= 0.65 else f"known keys: {known}"
        return f"{source}: unknown key {prefix + key!r}; {hint}"

    def _convert(self, hint: Any, raw: Any, key: str, source: str) -> Any:
        """`raw` (plain data or a `Word`) as a value of type `hint`; ConfigError where it is not one."""
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self._convert(args[0], raw, key, source)
        if origin in (Union, types.UnionType):
            return self._convert_union(args, raw, key, source)
        if isinstance(raw, Word):
            raw = raw.text if hint is str and not _quoted(raw.text) else read_word(raw.text, key, source)
        if dataclasses.is_dataclass(hint) and isinstance(raw, Mapping):
            return self._build(hint, raw, f"{key}.", source)
        if origin is Literal:
            return raw if raw in args else _refuse(hint, raw, key, source, args)
        if origin in (tuple, list) and isinstance(raw, (list, tuple)):
            item_types = args if origin is tuple and args[-1] is not Ellipsis else (args[0],) * len(raw)
            if len(item_types) != len(raw):
                return _refuse(hint, raw, key, source)
            pairs = enumerate(zip(item_types, raw, strict=True))
            return origin(self._convert(t, item, f"{key}[{i}]", source) for i, (t, item) in pairs)
        if (hint is dict or origin in (dict, Mapping)) and isinstance(raw, Mapping):
            return self._convert_mapping(args, raw, key, source)
        return _convert_scalar(hint, raw, key, source)

    def _convert_mapping(self, args: tuple, raw: Mapping, key: str, source: str) -> dict[str, Any]:
        key_type, value_type = args or (str, Any)
        for name in raw if get_origin(key_type) is Literal else ():
            if name not in get_args(key_type):
                _refuse(key_type, name, key, _source_of(raw[name], source), get_args(key_type), "name one of")
        return {
            str(name): self._convert(value_type, value, f"{key}.{name}", _source_of(value, source))
            for name, value in raw.items()
        }

    def _convert_union(self, args: tuple, raw: Any, key: str, source: str) -> Any:
        value = read_word(raw.text, key, source) if isinstance(raw, Word) else raw
        if value is None and type(None) in args:
            return None
        members = [arg for arg in args if arg is not type(None)]
        problem: ConfigError | None = None
        for member in members:
            try:
                return self._convert(member, raw, key, source)
            except ConfigError as error:
                problem = problem or error
        assert problem is not None
        if len(members) == 1:
            raise problem
        return _refuse(Union[tuple(args)], value, key, source)  # noqa: UP007 - built from a tuple


def dotted_names(cls: Any, tree: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[str]:
    """Every key of a config, sections before their fields; of a field with `kinds` those of the kind in `tree`."""
    hints = get_type_hints(cls, include_extras=True)
    for field in init_fields(cls):
        yield prefix + field.name
        inner = kind_named(field, cls, tree) if "kinds" in field.metadata else dataclass_in(hints[field.name])
        below = (tree or {}).get(field.name)
        if inner is not None:
            yield from dotted_names(inner, below if isinstance(below, Mapping) else None, f"{prefix}{field.name}.")


def kind_named(field: dataclasses.Field, cls: Any, tree: Mapping[str, Any] | None) -> type | None:
    """The dataclass that a tree, or else the default, names for a field with `kinds`; None where it names none."""
    name = field.metadata["chosen_by"]
    raw = (tree or {}).get(name, _default_of(cls, name))
    return field.metadata["kinds"].get(raw.text if isinstance(raw, Word) else raw)


def read_word(text: str, key: str, source: str) -> Any:
    """A word as the YAML it is."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: the value of {key}={text} is not valid YAML: {error}") from None


def _convert_scalar(hint: Any, raw: Any, key: str, source: str) -> Any:
    if hint is Any:
        return _read_words(raw, key, source)
    if hint is Path and isinstance(raw, str):
        return Path(raw)
    if hint is float and isinstance(raw, (int, float, str)) and not isinstance(raw, bool):
        try:
            return float(raw)  # str too: YAML reads 1e-4 as text
        except (ValueError, OverflowError):
            return _refuse(hint, raw, key, source)
    if isinstance(hint, type) and isinstance(raw, hint) and not (hint is int and isinstance(raw, bool)):
        return raw
    return _refuse(hint, raw, key, source)


def _refuse(hint: Any, raw: Any, key: str, source: str, choices: Any = (), verb: str = "be one of") -> Any:
    if choices:
        near = difflib.get_close_matches(str(raw), [str(c) for c in choices], n=1)
        hint_text = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = ", ".join(map(repr, choices))
        raise ConfigError(f"{source}: {key!r} must {verb} {allowed}, got {raw!r}{hint_text}")
    raise ConfigError(f"{source}: {key!r} must be {type_name(hint)}, got {raw!r} ({type(raw).__name__})")


def _read_words(raw: Any, key: str, source: str) -> Any:
    """Plain data with every override in it read as YAML, for the parts of a config that have no schema."""
    if isinstance(raw, dict):
        return {str(k): _read_words(v, f"{key}.{k}", source) for k, v in raw.items()}
    return read_word(raw.text, key, source) if isinstance(raw, Word) else raw


def _source_of(raw: Any, default: str) -> str:
    """What gave a value: of a section that was put together from several, all of them."""
    if isinstance(raw, Word):
        return raw.source
    if isinstance(raw, Mapping) and raw:
        sources = {_source_of(value, default) for value in raw.values()}
        return sources.pop() if len(sources) == 1 else default
    return default


def _places(message: str, tree: Mapping[str, Any], default: str) -> str:
    """Where the fields come from that a message names; all that gave something, where it names none of them."""
    named = [key for key in tree if re.search(rf"\b{re.escape(str(key))}\b", message)]
    found = {_source_of(tree[key], default) for key in named or tree}
    # The file first, as on the command line.
    return " and ".join(sorted(found, key=lambda source: (source != default, source))) or default


def _default_of(cls: Any, name: str) -> Any:
    (field,) = [field for field in init_fields(cls) if field.name == name]
    return field.default


def _quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
