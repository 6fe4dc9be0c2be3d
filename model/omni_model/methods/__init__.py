"""Ways of answering: which trajectory a sample becomes, and which losses teach it. One small file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omni_model.method_options import MethodOptions
from omni_model.methods.base import Method
from omni_model.methods.latent_omni import LatentOmni
from omni_model.methods.pause import Markers, PauseTokens
from omni_model.methods.sft import AnswerOnly, TextCot
from omni_model.options import read_options

METHODS: dict[str, type] = {
    "sft": AnswerOnly,
    "text_cot": TextCot,
    "pause": PauseTokens,
    "markers": Markers,
    "latent_omni": LatentOmni,
}


def make_method(name: str, options: MethodOptions | Mapping[str, Any] | None = None) -> Method:
    """A method by name with its options.

    Raises `ValueError` naming what is known for an unknown name, an unknown option or a value it does not take.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    if options is not None and not isinstance(options, Mapping):
        options = {field.name: getattr(options, field.name) for field in fields(options)}
    return read_options(METHODS[name], options or {}, owner=f"method {name!r}", noun="option")


def without_slots(method: Method) -> Method:
    """The same way of answering with nothing between trigger and stop: a probe for what the markers alone do."""
    return make_method(Markers.name, {"bottleneck": method.unroll.answering_bottleneck})
