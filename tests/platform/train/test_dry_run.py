"""Memory and time told beforehand: exact numbers by stage and precision, and a refusal that helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from omni_platform.train.config import TrainConfig
from omni_platform.train.dry_run import (
    DoesNotFitError,
    DryRunConfig,
    estimate,
    refuse_what_cannot_fit,
    table,
    worlds,
)

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Size:
    num_weights: int = 8_000_000_000
    num_learning: int = 6_000_000_000
    num_exported: int = 8_000_000_000
    recomputes: bool = False
    input_bytes: float = 1.0 * GIB
    largest_layer: int = 500_000_000
    activation_bytes: float = 100.0 * GIB
    recomputed_bytes: float = 10.0 * GIB
    rollout_bytes: float = 2.0 * GIB
    flops: float = 1e15
    recomputing_flops: float = 3e14
    passes_in_a_row: int = 40
    llm_weights: int = 7_000_000_000


def measure(task: Mapping[str, Any], length: int) -> Size:
    """A model whose step grows with the length, and which LoRA makes small."""
    size = Size(
        activation_bytes=length * 0.01 * GIB,
        recomputed_bytes=length * 0.001 * GIB,
        flops=length * 1e11,
        recomputes=bool(task.get("gradient_checkpointing")),
    )
    return Size(**{**vars(size), "num_learning": 40_000_000}) if task.get("lora_rank") else size


def savers(task: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    return [("task.gradient_checkpointing=true", {**task, "gradient_checkpointing": True})]


def config(**changes: Any) -> TrainConfig:
    base = {"run_name": "r", "dataset_dir": "d", "output_dir": "o", "num_workers": 8, "bf16": True}
    return TrainConfig(**{**base, "gradient_accumulation_steps": 12, **changes})


@pytest.mark.parametrize(
    ("changes", "weights", "gradients", "states"),
    [
        ({"zero_stage": 1}, 16.0, 12.0, 12 * 6 / 8),
        ({"zero_stage": 2}, 16.0, 12.0 / 8, 12 * 6 / 8),
        ({"zero_stage": 3}, 16.0 / 8, 12.0 / 8, 12 * 6 / 8),
        ({"zero_stage": 3, "num_workers": 2}, 16.0 / 2, 12.0 / 2, 12 * 6 / 2),
        ({"zero_stage": 2, "bf16": False}, 32.0, 24.0 / 8, 12 * 6 / 8),
        ({"engine": "torch", "bf16": False}, 32.0, 24.0, 8 * 6),
        ({"zero_stage": 2, "task": {"lora_rank": 8}}, 16.0, 0.08 / 8, 12 * 0.04 / 8),
    ],
)
def test_states_by_stage_and_precision(changes, weights, gradients, states):
    """In units of 10^9 bytes: 8 B weights, of which 6 B learn."""
    found = estimate(config(**changes), DryRunConfig(), measure, longest=1000, mean=1000).memory
    assert found["weights"] == pytest.approx(weights * 1e9)
    assert found["gradients"] == pytest.approx(gradients * 1e9)
    assert found["optimizer states"] == pytest.approx(states * 1e9)


def test_activations_are_those_of_the_longest_and_time_that_of_the_mean():
    found = estimate(config(), DryRunConfig(reserve_gib=3.0), measure, longest=4000, mean=1000)
    assert found.memory["activations"] == 40 * GIB and found.memory["latent rollout"] == 2 * GIB
    recomputed = config(task={"gradient_checkpointing": True})
    assert estimate(recomputed, DryRunConfig(), measure, longest=4000, mean=1000).memory["activations"] == 4 * GIB
    # 12 passes: 10^14 operations at 43 % of 989e12 a second, and 40 times three readings of 7 B weights in bf16.
    one_pass_s = 1e14 / (0.43 * 989e12) + 40 * 3 * 7e9 * 2 / 3350e9
    assert found.step_s == pytest.approx(12 * one_pass_s)
    again_s = (1e14 + 3e14) / (0.43 * 989e12) + 40 * 3 * 7e9 * 2 / 3350e9
    assert estimate(recomputed, DryRunConfig(), measure, longest=4000, mean=1000).step_s == pytest.approx(12 * again_s)
    assert found.rows_per_step == 96 and found.positions_per_step == 96_000


def test_the_table_tells_rows_tokens_and_hours():
    run, dry = config(max_steps=750, task={"gradient_checkpointing": True}), DryRunConfig()
    found = estimate(run, dry, measure, longest=4000, mean=1000)
    text = table(run, dry, [found], num_rows=36_000, mean=1000)
    assert "8 GPUs of 80 GiB, ZeRO-2, bf16" in text
    assert f"{found.total / GIB:.1f}  of 80: fits" in text
    assert "96,000  1,000 a row" in text
    assert (
        f"{375 * found.step_s / 3600:.1f} h  375 steps, 36,000 rows; {375 * found.step_s * 8 / 3600:,.1f} GPU hours"
        in text
    )
    assert f"{750 * found.step_s / 3600:.1f} h  750 steps; {750 * found.step_s * 8 / 3600:,.1f} GPU hours" in text
    assert "unknown" in table(run, dry, [found], num_rows=0, mean=1000)


def test_what_cannot_fit_is_refused_with_changes_that_would_do():
    run, dry = config(), DryRunConfig()
    found = estimate(run, dry, measure, longest=8000, mean=8000)
    assert not found.fits
    with pytest.raises(DoesNotFitError) as refused:
        refuse_what_cannot_fit(run, dry, found, measure, longest=8000, savers=savers)
    text = str(refused.value)
    assert f"r on 8 GPUs needs {found.total / GIB:.1f} GiB on every GPU, and there are 80" in text
    helpful = TrainConfig(**{**vars(run), "task": {"gradient_checkpointing": True}})
    needed = estimate(helpful, dry, measure, longest=8000, mean=8000)
    assert needed.fits and f"task.gradient_checkpointing=true ({needed.total / GIB:.1f} GiB)" in text
    assert "; zero_stage=3 (" not in text  # by itself it does not help
    refuse_what_cannot_fit(helpful, dry, needed, measure, longest=8000)


def test_where_nothing_helps_that_is_said():
    run, dry = config(), DryRunConfig(gpu_memory_gib=8.0)
    found = estimate(run, dry, measure, longest=8000, mean=8000)
    with pytest.raises(DoesNotFitError, match="none of the usual changes is enough"):
        refuse_what_cannot_fit(run, dry, found, measure, longest=8000)


def test_an_elastic_run_is_estimated_for_its_fewest_workers_and_refused_where_they_are_too_few():
    """With ZeRO-3, of 8 B weights and 6 B that learn, 8 GPUs hold 1/8 each and 2 GPUs a half."""
    run = config(num_workers=(2, 8), gradient_accumulation_steps=105, zero_stage=3)
    dry = DryRunConfig(reserve_gib=0.0)
    assert worlds(run) == (2, 8) and worlds(config()) == (8,)
    few, many = (estimate(run, dry, measure, longest=100, mean=100, workers=n) for n in worlds(run))
    states = {2: (16.0 + 12.0 + 72.0) / 2, 8: (16.0 + 12.0 + 72.0) / 8}
    for found in (few, many):
        names = ("weights", "gradients", "optimizer states")
        assert sum(found.memory[name] for name in names) == pytest.approx(states[found.workers] * 1e9)
        assert found.rows_per_step == 840
    # Two workers take four times the passes of eight.
    assert few.step_s == pytest.approx(4 * many.step_s)
    small = DryRunConfig(gpu_memory_gib=40.0, reserve_gib=0.0)
    few, many = (estimate(run, small, measure, longest=100, mean=100, workers=n) for n in worlds(run))
    assert many.fits and not few.fits
    text = table(run, small, [few, many], num_rows=8400, mean=100)
    assert "r: 2 to 8 GPUs of 40 GiB, ZeRO-3, bf16" in text
    assert "--- on 2 GPUs ---" in text and "--- on 8 GPUs ---" in text
    assert text.count("DOES NOT FIT") == 1
    assert f"10 steps, 8,400 rows; {10 * few.step_s * 2 / 3600:,.1f} GPU hours" in text
    assert f"10 steps, 8,400 rows; {10 * many.step_s * 8 / 3600:,.1f} GPU hours" in text
    refuse_what_cannot_fit(run, small, many, measure, longest=100, savers=savers)
    with pytest.raises(DoesNotFitError, match=r"r on 2 GPUs needs .* What would make it fit: num_workers=8 \("):
        refuse_what_cannot_fit(run, small, few, measure, longest=100, savers=savers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"host_memory_gib": 100.0},
            r"r on 8 GPUs needs 262\.4 GiB of host memory on a machine, and there are 100: fewer",
        ),
        (
            {"scratch_gib": 50.0},
            r"r on 8 GPUs needs 82\.0 GiB of disk below TMPDIR on a machine, and there are 50: set",
        ),
    ],
)
def test_a_machine_that_is_too_small_is_refused(fields, message):
    """8 workers load 8 B float32 weights each and have three batches of 1 GiB ahead; a checkpoint is 16 + 72 GB."""
    run, dry = config(task={"gradient_checkpointing": True}), DryRunConfig(**fields)
    found = estimate(run, dry, measure, longest=1000, mean=1000)
    assert found.fits
    assert found.footprint.host_bytes == 8 * (4 * 8e9 + 3 * GIB)
    assert found.footprint.scratch_bytes == 16e9 + 72e9
    with pytest.raises(DoesNotFitError, match=message):
        refuse_what_cannot_fit(run, dry, found, measure, longest=1000)


@pytest.mark.parametrize("fields", [{"gpu_memory_gib": 0.0}, {"mfu": 1.2}, {"peak_tflops": -1.0}])
def test_a_gpu_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        DryRunConfig(**fields)
