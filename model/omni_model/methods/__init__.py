"""Ways of answering: which trajectory a sample becomes, and which losses teach it. One small file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omni_model.methods.base import Method
from omni_model.methods.latent_omni import LatentOmni
from omni_model.methods.sft import AnswerOnly, TextCot

METHODS: dict[str, type] = {"sft": AnswerOnly, "text_cot": TextCot, "latent_omni": LatentOmni}


def make_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method by name with its options. Raises `ValueError` naming what is known for an unknown name or option."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    kind, options = METHODS[name], dict(options or {})
    unknown = set(options) - {f.name for f in fields(kind)}
    if unknown:
        known = ", ".join(f.name for f in fields(kind)) or "none"
        raise ValueError(f"method {name!r} has no option {sorted(unknown)}; it knows: {known}")
    return kind(**options)
