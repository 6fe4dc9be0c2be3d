"""What turns a loss into changed weights: DeepSpeed (sharded), or plain torch (for comparison and tests).

Both have the same few methods. `backward` and `step` are called once per micro-batch; the weights change
on the last micro-batch of an accumulation, on the mean of its losses over micro-batches and workers.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from omni_platform.train.config import TrainConfig
from omni_platform.train.reshard import load_resharded
from omni_platform.train.task import Task

_TAG, _TORCH_FILE = "engine", "state.pt"


class Engine(Protocol):
    """A module with its optimizer."""

    device: torch.device

    def forward(self, batch: Any, divisors: Mapping[str, float]) -> dict[str, torch.Tensor]: ...

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self, learning_rate: float) -> None:
        """Change the weights on the last micro-batch of an accumulation, unless the gradient is not finite."""
        ...

    def grad_norm(self) -> float | None:
        """Global gradient norm of the last weight change, before clipping; None where it is not computed."""
        ...

    def save(self, folder: Path) -> None:
        """Write this worker's share of weights and optimizer state. Every worker calls it."""
        ...

    def load(self, folder: Path, *, saved_by: int, leads_node: bool) -> None:
        """Restore what `save` wrote on `saved_by` workers, which need not be as many as now. Every worker calls it."""
        ...

    def whole_weights(self) -> Any:
        """A context in which `module` holds all its weights on worker 0. Every worker enters it."""
        ...


def make_engine(config: TrainConfig, task: Task, device: torch.device) -> Engine:
    """The configured engine around the task's module. The process group must be up."""
    if config.engine == "torch":
        return TorchEngine(config, task, device)
    return DeepSpeedEngine(config, task, device)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The whole weights of the module in a folder that the `save` of any engine wrote, on any number of workers.

    In float32 on the CPU.
    """
    if (folder / _TORCH_FILE).is_file():
        return torch.load(folder / _TORCH_FILE, map_location="cpu", weights_only=True)["module"]
    import_deepspeed(torch.device("cpu"))
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # it talks of every file
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=_TAG)
    assert weights is not None
    return dict(weights)


def make_optimizer(config: TrainConfig, task: Task, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the task's parameter groups."""
    groups = [group for group in task.parameter_groups(config.weight_decay) if group["params"]]
    if not groups:
        raise ValueError("the task has no trainable parameters: everything is frozen")
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=device.type == "cuda",
    )


class TorchEngine:
    """Everything on every worker; gradients are averaged over the workers once per accumulation."""

    def __init__(self, config: TrainConfig, task: Task, device: torch.device) -> None:
        self.device = device
        self._config = config
        self._accumulation = config.accumulation(dist.get_world_size())
        self._module = task.module.to(device)
        self._optimizer = make_optimizer(config, task, device)
        self._micro_steps = 0
        self._norm: float | None = None

    def forward(self, batch: Any, divisors: Mapping[str, float]) -> dict[str, torch.Tensor]:
        return self._module(batch, divisors)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self._accumulation).backward()

    def step(self, learning_rate: float) -> None:
        self._micro_steps += 1
        if self._micro_steps % self._accumulation:
            return
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        limit = self._config.max_grad_norm or float("inf")
        self._norm = float(torch.nn.utils.clip_grad_norm_(trained, limit))
        if math.isfinite(self._norm):
            set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
        self._optimizer.zero_grad()

    def grad_norm(self) -> float | None:
        return self._norm

    def save(self, folder: Path) -> None:
        if dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state = {"module": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / _TORCH_FILE)

    def load(self, folder: Path, *, saved_by: int, leads_node: bool) -> None:
        state = torch.load(folder / _TORCH_FILE, map_location=self.device, weights_only=True)
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])

    def whole_weights(self) -> Any:
        return nullcontext()


class DeepSpeedEngine:
    """ZeRO: optimizer states, gradients and weights are sharded over the workers, as the stage says."""

    def __init__(self, config: TrainConfig, task: Task, device: torch.device) -> None:
        deepspeed = import_deepspeed(device)
        self.device = device
        self._zero_stage = config.zero_stage
        self._module = task.module
        _refuse_scalars(task.module)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=task.module.to(device),
            optimizer=make_optimizer(config, task, device),
            config=deepspeed_config(config, world_size=dist.get_world_size()),
        )

    def forward(self, batch: Any, divisors: Mapping[str, float]) -> dict[str, torch.Tensor]:
        return self._engine(batch, divisors)

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        set_learning_rate(self._optimizer, learning_rate)
        self._engine.step()

    def grad_norm(self) -> float | None:
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save(self, folder: Path) -> None:
        # DeepSpeed makes this folder on worker 0 only, but every worker saves into a folder of its own.
        (folder / _TAG).mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path, *, saved_by: int, leads_node: bool) -> None:
        if not (folder / _TAG).is_dir():
            raise ValueError(f"{folder} holds no DeepSpeed state; it was saved by another engine")
        if saved_by != dist.get_world_size():
            load_resharded(self._engine, folder, _TAG, leads_node=leads_node)
            return
        found, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        assert found is not None

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        if self._zero_stage < 3:
            yield
            return
        deepspeed = import_deepspeed(self.device)
        with deepspeed.zero.GatheredParameters(list(self._module.parameters()), modifier_rank=None):
            yield


def _refuse_scalars(module: torch.nn.Module) -> None:
    # DeepSpeed sends weights as bytes, and fails on these with a message that names none of them.
    scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ValueError(f"DeepSpeed takes no weights without a dimension: give {', '.join(scalars)} shape (1,)")


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Give every parameter group the rate, times the group's own `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


def deepspeed_config(config: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """The run's configuration in DeepSpeed's words."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    if config.zero_stage == 3:
        # Small models have no parameter above the default threshold, and nothing would be sharded.
        zero |= {"stage3_param_persistence_threshold": 0}
    return {
        "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.accumulation(world_size),
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.bf16},
        "checkpoint": {"tag_validation": "Ignore"},
        "steps_per_print": 10**9,
    }


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed without its compiled parts: each takes a compiler half a minute, and none is needed."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # Said anew at every exchange, and about a call that is DeepSpeed's.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # There is no public switch for the shared-memory collective, which is compiled on first use otherwise.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_not_implemented": False}  # type: ignore[attr-defined]
    return deepspeed
