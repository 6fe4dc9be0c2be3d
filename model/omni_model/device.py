"""Where a model runs, and how exactly it reckons there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
"""Of products in training; weights and optimizer stay in float32. bfloat16 pays for models of tens of millions of
weights on CPUs that have instructions for it."""


def pick_device(name: str) -> str:
    """`auto` is a GPU where there is one and else the CPU; any other name stays what it is."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def ready_device(name: str) -> str:
    """`pick_device` for training in float32: a GPU then multiplies with TF32, whose ten bits of mantissa are enough for
    products that are added up in float32."""
    device = pick_device(name)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    return device


def weights_dtype(device: str) -> torch.dtype:
    """Of a model that only answers: bfloat16 on a GPU, float32 elsewhere."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def multiplying_in(precision: Precision, device: str) -> AbstractContextManager[object]:
    """What the forward pass and the losses run in: torch's autocast for bfloat16, nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
