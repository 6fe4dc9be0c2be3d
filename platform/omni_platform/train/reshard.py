"""DeepSpeed's sharded state, saved by one number of workers and loaded by another.

DeepSpeed's own converter writes each weight and its optimizer state whole ("universal checkpoint"), and DeepSpeed's own
loader cuts them anew. What its version 0.19.8 loses on the way is put right here; the test that compares the losses of
a run that changed its workers with one that did not is the proof.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omni_platform.train.checkpoint import own_scratch


def load_resharded(engine: Any, folder: Path, tag: str, *, leads_node: bool) -> None:
    """Load what any number of workers saved below `folder`/`tag` into a DeepSpeed engine. Every worker calls it."""
    whole = own_scratch("resharded", folder)
    if leads_node:
        _convert(folder / tag, whole / tag)
    dist.barrier()
    _load(engine, whole, tag)
    dist.barrier()
    if leads_node:
        shutil.rmtree(whole)


def _convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target.parent, ignore_errors=True)
    options = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # stages 1 and 2 save no `universal_checkpoint_info` of their own accord
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it talks of every step
        ds_to_universal.main(options)


def _load(engine: Any, whole: Path, tag: str) -> None:
    optimizer = engine.optimizer.optimizer
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    settings = engine._config
    before, settings.load_universal_checkpoint = settings.load_universal_checkpoint, True
    try:
        found, _ = engine.load_checkpoint(str(whole), tag=tag)
    finally:
        settings.load_universal_checkpoint = before
    assert found is not None
    # Stage 3 gives every group the settings of the first (so all weights would decay) …
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    # … and all states one step counter, which each of them then advances.
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
