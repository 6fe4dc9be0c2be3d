"""Exported folders: what is loaded equals what was saved, and the stock class agrees."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.folder import Preparation, load_folder, save_folder
from omni_model.methods import make_method
from omni_model.prompt import prompt_template
from omni_model.sequence import Kind

OPTIONS = {
    "num_visual": 3,
    "num_audio": 2,
    "feedback": "linear",
    "norm_match": True,
    "detach_sync_inputs": False,
    "bottleneck": "strict",
    "ospe": "tmrope",
    "segment_s": 1.5,
    "latent_weight": 0.0,
}
PREPARATION = Preparation(
    fps=1.5,
    use_audio_in_video=False,
    prompt=prompt_template("lettered", system_prompt="Look."),
    video_max_pixels=9 * 784,
)


def _assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def exported(backbone, tokenizer, tmp_path_factory):
    """A saved folder and the heads in it."""
    folder = tmp_path_factory.mktemp("exported")
    method = make_method("latent_omni", OPTIONS)
    torch.manual_seed(5)
    heads = method.build_heads(backbone.width)
    for p in heads.parameters():
        torch.nn.init.normal_(p)
    save_folder(folder, backbone=backbone, tokenizer=tokenizer, method=method, heads=heads, preparation=PREPARATION)
    return folder, heads


def test_an_exported_folder_loads_bit_for_bit(exported, backbone):
    folder, heads = exported
    again = load_folder(folder)
    _assert_same_weights(again.loaded.backbone.thinker, backbone.thinker)
    _assert_same_weights(again.heads, heads)
    assert again.method == make_method("latent_omni", OPTIONS)
    assert again.preparation == PREPARATION


@pytest.mark.parametrize("value", [True, False])
def test_switches_round_trip_against_their_defaults(backbone, tokenizer, tmp_path, value):
    """A switch that is off must not come back on, nor the other way round (invariant 14)."""
    method = make_method(
        "latent_omni",
        {"norm_match": value, "detach_sync_inputs": value, "normalise_anchors": value, "sync_weight": 0},
    )
    preparation = replace(PREPARATION, use_audio_in_video=value)
    save_folder(
        tmp_path,
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(backbone.width),
        preparation=preparation,
    )
    again = load_folder(tmp_path)
    assert again.method == method
    assert [again.method.norm_match, again.method.detach_sync_inputs, again.method.normalise_anchors] == [value] * 3
    assert again.preparation.use_audio_in_video is value
    assert not (tmp_path / "method.safetensors").exists()


@pytest.mark.parametrize("name", ["sft", "text_cot"])
def test_methods_without_weights_of_their_own_round_trip(backbone, tokenizer, tmp_path, name):
    method = make_method(name)
    save_folder(
        tmp_path,
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(64),
        preparation=PREPARATION,
    )
    assert load_folder(tmp_path).method == method


@torch.no_grad()
def test_the_stock_class_loads_an_export_with_equal_logits(exported, backbone, prompt, film):
    stock = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(exported[0]).eval()
    media = film(0, 2)
    plan = prompt(media).text("Answer: green", Kind.TEXT).build()
    inputs = {
        "input_ids": plan.input_ids[None],
        "attention_mask": torch.ones(1, len(plan), dtype=torch.long),
        "pixel_values_videos": media.patches,
        "video_grid_thw": torch.tensor([media.grid_thw]),
        "input_features": media.mel[None],
        "feature_attention_mask": torch.ones(1, media.mel.shape[1], dtype=torch.long),
        "use_audio_in_video": True,
        "video_second_per_grid": torch.tensor([media.seconds_per_grid]),
    }
    assert torch.equal(stock(**inputs).logits, backbone.thinker(**inputs).logits)
    assert AutoTokenizer.from_pretrained(exported[0])("<Unified_Latent>")["input_ids"] == [11]


def test_gathered_weights_replace_the_modules_own(new_backbone, backbone, tokenizer, tmp_path):
    """Under ZeRO-3 the module holds shards; the caller hands the gathered weights over."""
    method = make_method("sft")
    save_folder(
        tmp_path,
        backbone=new_backbone(seed=1),
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(64),
        preparation=Preparation(),
        state=backbone.thinker.state_dict(),
    )
    _assert_same_weights(load_folder(tmp_path).loaded.backbone.thinker, backbone.thinker)


def test_a_folder_without_the_methods_weights_is_refused(exported, tmp_path):
    shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "method.safetensors").unlink()
    with pytest.raises(ValueError, match=r"method\.safetensors is missing"):
        load_folder(tmp_path)


def test_a_folder_that_is_no_export_is_refused(exported, tmp_path):
    with pytest.raises(ValueError, match=r"has no method\.json"):
        load_folder(tmp_path)
    shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)
    description = json.loads((tmp_path / "method.json").read_text())
    (tmp_path / "method.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="format 99; this version reads formats 1 and 2"):
        load_folder(tmp_path)
