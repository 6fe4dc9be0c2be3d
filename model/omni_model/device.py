"""Where a model runs, and what is asked of a GPU for training."""

from __future__ import annotations

import torch


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
