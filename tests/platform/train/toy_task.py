"""A task small enough for two processes on two cores: real torch, real losses, dropout and all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omni_platform.schema import RowSize


@dataclass
class Batch:
    x: torch.Tensor  # (B, 8)
    y: torch.Tensor  # (B,)
    weight: torch.Tensor  # (B,): how many tokens stand for each row

    def to(self, device: torch.device) -> Batch:
        return Batch(self.x.to(device), self.y.to(device), self.weight.to(device))


class Net(torch.nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.up = torch.nn.Linear(8, 32)
        self.drop = torch.nn.Dropout(dropout)
        self.down = torch.nn.Linear(32, 1)
        self.scale = torch.nn.Parameter(torch.ones(1))  # fewer elements than workers
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)

    def forward(self, batch: Batch, divisors: dict[str, float]) -> dict[str, torch.Tensor]:
        x = batch.x.to(self.up.weight.dtype)
        guess = self.scale * self.down(self.drop(torch.tanh(self.up(x))))[:, 0]
        text = (batch.weight * (guess - batch.y).square()).sum() / divisors["text"]
        latent = guess.square().sum() / divisors["latent"]
        return {
            "loss": text + 0.1 * latent,
            "text": text,
            "latent": latent,
            "tokens": torch.tensor(len(x), device=x.device),
            "count/text": batch.weight.sum().long(),
            "count/latent": torch.tensor(len(x), device=x.device),
        }


def num_tokens(number: int) -> int:
    """From 1 to 5: rows differ in what they teach."""
    return 1 + number % 5


class ToyTask:
    """Fits y = sum(x). `fail_at`: the row at which collate raises; `bad_row`: the row whose loss is not finite;
    `needs_file`: a path that must lead to a file; `base_file`: one whose content stands for base weights; `refuse_row`:
    the row that the task does not take."""

    loss_weights = {"text": 1.0, "latent": 0.1}  # noqa: RUF012

    def __init__(self, settings: dict[str, Any], **_sharding: Any) -> None:
        self.settings = settings
        if "needs_file" in settings and not Path(settings["needs_file"]).is_file():
            raise FileNotFoundError(f"{settings['needs_file']} from {Path.cwd()}")
        self.module = Net(settings.get("dropout", 0.1))

    def collate(self, rows: list[tuple[int, torch.Tensor, torch.Tensor]]) -> Batch:
        for number, _, _ in rows:
            if number == self.settings.get("fail_at"):
                raise ValueError("row that cannot be collated")
        bad = self.settings.get("bad_row")
        xs = [torch.full_like(x, float("inf")) if number == bad else x for number, x, _ in rows]
        weight = torch.tensor([float(num_tokens(number)) for number, _, _ in rows])
        return Batch(torch.stack(xs), torch.stack([y for _, _, y in rows]), weight)

    def size(self, outline: int) -> RowSize:
        if outline == self.settings.get("refuse_row"):
            raise ValueError(f"row-{outline} is too long")
        return RowSize(length=8, counts={"text": num_tokens(outline), "latent": 1})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "lr_scale": 0.5},
        ]

    def export(self, folder: Path) -> None:
        weights = {name: list(p.shape) for name, p in self.module.named_parameters()}
        total = sum(float(p.detach().double().abs().sum()) for p in self.module.parameters())
        digest = hashlib.sha256(b"".join(p.detach().cpu().float().numpy().tobytes() for p in self.module.parameters()))
        about = {"weights": weights, "total": total, "digest": digest.hexdigest()}
        torch.save(self.module.state_dict(), folder / "weights.pt")
        (folder / "model.json").write_text(json.dumps(about))

    @property
    def identity(self) -> dict[str, str]:
        base = self.settings.get("base_file")
        return {"base": Path(base).read_text()} if base else {}

    def load_weights(self, folder: Path) -> None:
        self.module.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))


class ToyRows:
    """Rows made from their numbers. `kill`: a file; the worker that takes row `at` dies while it exists."""

    def __init__(self, count: int, kill_file: str = "", at: int = -1) -> None:
        self.ids = [f"row-{i}" for i in range(count)]
        self._kill_file, self._at = kill_file, at

    def __len__(self) -> int:
        return len(self.ids)

    def outline(self, index: int) -> int:
        return index

    def row(self, index: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        if index == self._at and Path(self._kill_file).exists():
            Path(self._kill_file).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return index, x, x.sum()
