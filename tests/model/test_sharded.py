"""One model divided between two workers (ZeRO-3): loaded share by share, trained in step, exported whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.folder import load_folder


@pytest.fixture(scope="module")
def results(full_folder: Path, forget_latent_tokens, tmp_path_factory) -> dict[str, Any]:
    """What both workers saw. The base is the full Omni class in several files, and lacks the latent tokens."""
    forget_latent_tokens(full_folder)
    folder = tmp_path_factory.mktemp("sharded")
    runs: dict[str, Any] = {"load": {"do": "load", "zero_stage": 3}}
    for stage in (1, 3):
        runs[f"full{stage}"] = {"do": "train", "zero_stage": stage}
        export = str(folder / f"lora{stage}")
        runs[f"lora{stage}"] = {"do": "train", "zero_stage": stage, "task": {"lora_rank": 4}, "export": export}
    spec = folder / "spec.json"
    spec.write_text(json.dumps({name: {"base": str(full_folder), **run} for name, run in runs.items()}))
    return {**_run_two_workers(spec), "folder": folder}


def _run_two_workers(spec: Path) -> dict[str, Any]:
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sharded_workers.py")), str(spec)],
            env={**shared, "DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()  # one that waits for the other would wait for ever
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)[-8000:]
    return json.loads(spec.with_suffix(".results").read_text())


def test_a_worker_holds_its_share_and_all_shares_are_the_model(results):
    load = results["load"]
    assert load["same"] == [True, True]  # new tokens' rows included
    # A weight that does not divide by two is padded, by one element at most.
    for held in load["held"]:
        assert load["whole"] / 2 <= held <= load["whole"] / 2 + 4 * 200


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_divided_weights_learn_as_whole_ones_though_one_worker_is_mute_and_looks_less(results, kind):
    """Without care the mute worker would skip the audio tower, and the other would wait for it for ever."""
    whole, divided = results[f"{kind}1"], results[f"{kind}3"]
    torch.testing.assert_close(torch.tensor(divided["losses"]), torch.tensor(whole["losses"]), atol=1e-4, rtol=1e-5)
    assert whole["sums"].keys() == divided["sums"].keys()
    for name, value in whole["sums"].items():
        assert divided["sums"][name] == pytest.approx(value, rel=2e-3), name


def test_a_divided_model_with_adapters_is_exported_whole_and_trains_on(results):
    folder = results["folder"]
    for when in ("before", "after"):
        ours, theirs = (load_folder(folder / f"lora{stage}" / when).loaded.backbone.state_dict() for stage in (3, 1))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-4)
    before, after = (
        Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder / "lora3" / when)
        for when in ("before", "after")
    )
    changed = [n for n, v in before.state_dict().items() if not torch.equal(v, after.state_dict()[n])]
    assert any("q_proj" in name for name in changed)
    assert not any("visual" in name or "audio" in name or "norm" in name for name in changed)
