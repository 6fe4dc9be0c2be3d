"""What the fields of a config mean, in words: the text of `--help` and of error messages."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from omni_platform.bounds import words_of


def describe(cls: Any, tree: Mapping[str, Any] | None = None, prefix: str = "") -> str:
    """One paragraph per field, for `--help`: dotted name, type, default and the docstring under the field.

    Of a field with `kinds`, the fields of the kind that `tree` names, or of every kind where it names none.
    """
    hints, docs, lines = get_type_hints(cls, include_extras=True), field_docs(cls), []
    for field in init_fields(cls):
        name, inner = f"{prefix}{field.name}", dataclass_in(hints[field.name])
        doc, below = docs.get(field.name, ""), (tree or {}).get(field.name)
        below = below if isinstance(below, Mapping) else None
        if "kinds" in field.metadata:
            lines += _describe_kinds(field, name, doc, tree, prefix)
            continue
        lines.append(f"  {name}: {type_name(hints[field.name])}{_default_text(field, inner)}")
        lines += _wrapped(doc)
        if inner is not None:
            lines.append(describe(inner, below, f"{name}."))
    return "\n".join(line for line in lines if line)


def _describe_kinds(
    field: dataclasses.Field, name: str, doc: str, tree: Mapping[str, Any] | None, prefix: str
) -> list[str]:
    chooser, kinds = field.metadata["chosen_by"], field.metadata["kinds"]
    given = (tree or {}).get(chooser)
    given = getattr(given, "text", given)
    lines = [f"  {name}: what the chosen {prefix}{chooser} takes", *_wrapped(doc)]
    for kind, options in kinds.items():
        if given in (kind, None) or given not in kinds:
            listed = describe(options, prefix=f"{name}.")
            lines += [f"  with {prefix}{chooser}={kind}:{'' if listed else ' no options'}", listed]
    return lines


def _wrapped(doc: str) -> list[str]:
    return textwrap.wrap(doc, 100, initial_indent="      ", subsequent_indent="      ")


def _default_text(field: dataclasses.Field, inner: type | None) -> str:
    if inner is not None:
        return ""
    env = f", else from {field.metadata['env']}" if "env" in field.metadata else ""
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}{env}"
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}{env}"
    return f" (required{env})"


def type_name(hint: Any) -> str:
    """A type in words, with its bounds."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{type_name(args[0])}, {words_of(hint)}"
    if hint is type(None) or hint is Ellipsis:
        return "None" if hint is not Ellipsis else "..."
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(member) for member in args)
    if origin is Literal or not args:
        return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return f"{origin.__name__}[{', '.join(type_name(arg) for arg in args)}]"


def init_fields(cls: Any) -> tuple[dataclasses.Field, ...]:
    return tuple(field for field in dataclasses.fields(cls) if field.init)


def dataclass_in(hint: Any) -> type | None:
    members = [hint, *(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ())]
    return next((m for m in members if dataclasses.is_dataclass(m) and isinstance(m, type)), None)


def field_docs(cls: Any) -> dict[str, str]:
    """The string under each field, inherited ones among them, which Python itself does not keep."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_docs(base)
    return docs


def _own_docs(cls: Any) -> dict[str, str]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(after.value.value).split())
    return docs
