"""The fingerprint of a model follows its content and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_model import fingerprint
from omni_model.fingerprint import fingerprint_model
from omni_model.folder import TINY_BASE
from omni_model.task import build_task


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the toy base."""
    return Path(shutil.copytree(TINY_BASE, tmp_path / "base"))


def change_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[0] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_a_setting(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")


def change_what_is_about_it(folder: Path) -> None:
    (folder / "card.json").write_text("{}")
    (folder / "notes.md").write_text("of another day")


def test_a_copy_elsewhere_is_the_same_model(base: Path) -> None:
    assert fingerprint_model(base) == fingerprint_model("tiny") == fingerprint_model(str(TINY_BASE))
    change_what_is_about_it(base)
    assert fingerprint_model(base) == fingerprint_model("tiny")


@pytest.mark.parametrize("whole_bytes", [1 << 26, 0], ids=["read whole", "read in samples"])
@pytest.mark.parametrize("change", [change_a_weight, change_a_setting])
def test_another_weight_or_setting_is_another_model(
    base: Path, change: Callable[[Path], None], whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", whole_bytes)
    before = fingerprint_model(base)
    assert fingerprint_model(base) == before
    change(base)
    assert fingerprint_model(base) != before


def test_a_large_file_is_read_at_both_ends_and_in_the_middle_of_every_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", 0)
    found = set()
    for place in (None, 0, 50_000, 99_999):
        weights = {"a": torch.zeros(100_000), "b": torch.zeros(100_000)}
        if place is not None:
            weights["b"][place] = 1.0
        save_file(weights, tmp_path / "model.safetensors")
        found.add(fingerprint_model(tmp_path))
    assert len(found) == 4
    save_file({"a": torch.zeros(100_000), "c": torch.zeros(100_000)}, tmp_path / "model.safetensors")
    assert fingerprint_model(tmp_path) not in found


def test_a_hub_name_that_is_not_here_stands_for_itself() -> None:
    assert fingerprint_model("nobody/has-this-model") == "hub:nobody/has-this-model"


def test_a_task_tells_its_base_by_content(base: Path) -> None:
    settings = {"model_name_or_path": str(base), "method": "sft"}
    assert (
        build_task(settings).identity == build_task({"method": "sft"}).identity == {"base": fingerprint_model("tiny")}
    )
    change_a_weight(base)
    assert build_task(settings).identity == {"base": fingerprint_model(base)} != {"base": fingerprint_model("tiny")}


def test_an_exported_model_is_begun_with_to_the_bit(tmp_path: Path) -> None:
    settings = {"method": "latent_omni"}
    trained = build_task(settings)
    with torch.no_grad():
        for parameter in trained.module.parameters():
            parameter.add_(torch.randn_like(parameter))
    trained.export(tmp_path / "export")
    task = build_task(settings)
    task.load_weights(tmp_path / "export")
    ours, theirs = task.module.state_dict(), trained.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(
        ValueError, match=r"is a model of method latent_omni, and this run learns sft; give it as task\."
    ):
        build_task({"method": "sft"}).load_weights(tmp_path / "export")
    with pytest.raises(
        ValueError, match=r"give it as task\.model_name_or_path, or give init_weights_from a checkpoint"
    ):
        build_task({"lora_rank": 2, "freeze": []}).load_weights(tmp_path / "export")
