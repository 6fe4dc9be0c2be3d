"""What the evaluation beside training measures: every term over all rows, whatever the size of its batches."""

from __future__ import annotations

import pytest
import torch
from toy_task import ToyRows, ToyTask, num_tokens

from omni_platform.train.evaluation import mean_losses


@pytest.mark.parametrize("batch_size", [1, 4, 7, 20])
def test_an_evaluation_is_that_of_all_rows_at_once(batch_size: int) -> None:
    """Rows of 1 to 5 tokens, in batches that do not divide them; one row is refused."""
    torch.manual_seed(0)
    task, rows = ToyTask({"refuse_row": 3}), ToyRows(18)
    found = mean_losses(task, rows, batch_size)
    taken = [n for n in range(18) if n != 3]
    with torch.no_grad():
        guesses = {n: task.module(task.collate([rows.row(n)]), {"text": 1.0, "latent": 1.0}) for n in taken}
    tokens = sum(num_tokens(n) for n in taken)
    text = sum(float(out["text"]) for out in guesses.values()) / tokens
    latent = sum(float(out["latent"]) for out in guesses.values()) / len(taken)
    assert found == pytest.approx({"text": text, "latent": latent, "loss": text + 0.1 * latent}, rel=1e-5)
