"""Building a task whose weights never lie whole on any worker: each keeps its share from the first moment (ZeRO-3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import deepspeed_config, import_deepspeed
from omni_platform.train.task import Task


def build_sharded(config: TrainConfig, build_task: Callable[..., Task], device: torch.device) -> Task:
    """The task of a run; with DeepSpeed's ZeRO-3 its pretrained weights are divided while they are read.

    Worker 0 reads them layer by layer and hands out the shares, so the memory of a machine does not grow with its
    workers. Only there is the builder told two more things: `lockstep=True` (all workers must run the same number of
    forwards of every layer) and `whole`, a function from parameters to a context in which they are whole; what worker
    0 writes into them there is kept. The process group must be up, and every worker calls this.
    """
    if config.engine != "deepspeed" or config.zero_stage < 3:
        return build_task(config.task)
    deepspeed = import_deepspeed(device)

    def whole(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0)

    with _told_to_transformers(deepspeed_config(config, world_size=dist.get_world_size())):
        return build_task(config.task, lockstep=True, whole=whole)


@contextmanager
def _told_to_transformers(words: dict[str, Any]) -> Iterator[None]:
    """`from_pretrained` divides weights as long as an object with DeepSpeed's configuration is alive."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    told = HfDeepSpeedConfig(words)
    try:
        yield
    finally:
        # A later load in this process, of an export for example, must give whole weights again.
        unset_hf_deepspeed_config()
        del told
