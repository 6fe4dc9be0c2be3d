"""What the fields of a config mean, in words: the text of `--help` and of error messages."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from typing import Any, Union, get_args, get_origin, get_type_hints


def describe(cls: type, prefix: str = "") -> str:
    """One paragraph per field, for `--help`: dotted name, type, default and the docstring under the field."""
    hints, docs, lines = get_type_hints(cls), field_docs(cls), []
    for field in init_fields(cls):
        name, inner = f"{prefix}{field.name}", dataclass_in(hints[field.name])
        doc = docs.get(field.name, "")
        lines.append(f"  {name}: {type_name(hints[field.name])}{_default_text(field, inner)}")
        lines += textwrap.wrap(doc, 100, initial_indent="      ", subsequent_indent="      ")
        if inner is not None:
            lines.append(describe(inner, f"{name}."))
    return "\n".join(lines)


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
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def init_fields(cls: Any) -> tuple[dataclasses.Field, ...]:
    return tuple(field for field in dataclasses.fields(cls) if field.init)


def dataclass_in(hint: Any) -> type | None:
    members = [hint, *(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ())]
    return next((m for m in members if dataclasses.is_dataclass(m) and isinstance(m, type)), None)


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field, which Python itself does not keep."""
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
