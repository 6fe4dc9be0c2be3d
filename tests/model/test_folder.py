"""Models on disk: what is loaded equals what was saved, and stock classes agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from omni_model.batch import collate
from omni_model.folder import Preparation, init_new_rows, load_backbone, load_folder, save_folder
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.sequence import Kind
from omni_model.vocabulary import LATENT_TOKENS, read_vocabulary

TALKER = {
    "vocab_size": 64,
    "embedding_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    "tts_codec_start_token_id": 1,
    "tts_codec_end_token_id": 2,
    "tts_codec_pad_token_id": 3,
    "tts_codec_mask_token_id": 4,
}
VOICE = {
    "dit_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 32,
        "emb_dim": 16,
        "num_embeds": 16,
        "mel_dim": 8,
        "enc_dim": 8,
        "enc_emb_dim": 8,
        "enc_channels": [8, 8, 8, 8, 24],
        "enc_attention_channels": 4,
        "enc_se_channels": 4,
        "look_ahead_layers": [0],
        "look_backward_layers": [0],
    },
    "bigvgan_config": {
        "mel_dim": 8,
        "upsample_initial_channel": 16,
        "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
    },
}


@pytest.fixture(scope="module")
def full_folder(backbone, tokenizer, tmp_path_factory) -> Path:
    """The full Omni class around the toy Thinker: talker and voice too, in several shards."""
    folder = tmp_path_factory.mktemp("omni")
    config = Qwen2_5OmniConfig(
        thinker_config=backbone.thinker.config.to_dict(), talker_config=TALKER, token2wav_config=VOICE
    )
    omni = Qwen2_5OmniForConditionalGeneration(config)
    omni.thinker.load_state_dict(backbone.thinker.state_dict())
    omni.save_pretrained(folder, max_shard_size="300KB")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def thinker_folder(backbone, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thinker")
    backbone.thinker.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_full_omni_class_loads_without_its_talker(full_folder, backbone, vocabulary):
    weights = json.loads((full_folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weights.values())) > 3
    assert {name.split(".")[0] for name in weights} == {"thinker", "talker", "token2wav"}
    loaded = load_backbone(str(full_folder))
    _assert_same_weights(loaded.backbone.thinker, backbone.thinker)
    assert loaded.vocabulary == vocabulary
    assert loaded.backbone.width == 64


def test_a_thinker_alone_loads(thinker_folder, backbone, vocabulary):
    loaded = load_backbone(str(thinker_folder))
    _assert_same_weights(loaded.backbone.thinker, backbone.thinker)
    assert loaded.vocabulary == vocabulary
    assert loaded.backbone.thinker.dtype == torch.float32
    assert load_backbone(str(thinker_folder), dtype=torch.bfloat16).backbone.thinker.dtype == torch.bfloat16


def test_the_base_that_ships_is_loaded_by_name(vocabulary):
    loaded = load_backbone("tiny")
    assert 1_000_000 < sum(p.numel() for p in loaded.backbone.parameters()) < 5_000_000
    assert len(loaded.tokenizer) <= loaded.backbone.thinker.get_input_embeddings().weight.shape[0]
    assert loaded.vocabulary == vocabulary
    assert load_folder("tiny").method.name == "sft"


def test_missing_weights_are_an_error_and_not_noise(thinker_folder, tmp_path):
    shutil.copytree(thinker_folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {n: w for n, w in weights.items() if "layers.1.mlp" not in n},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"lacks weights of the Thinker.*layers\.1\.mlp\.down_proj"):
        load_backbone(str(tmp_path))


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"no config\.json in {tmp_path}"):
        load_backbone(str(tmp_path))


def test_a_foreign_tokenizer_is_refused():
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match=r"lacks \[.*<\|AUDIO\|>"):
        read_vocabulary(other)


# --- New tokens (invariant 10) ---


def _without_latent_tokens(folder: Path) -> None:
    """Make the saved tokenizer forget the three tokens, as the real one does not know them."""
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in LATENT_TOKENS]
    vocabulary = state["model"]["vocab"]
    for token in LATENT_TOKENS:
        del vocabulary[token]
    state["model"]["vocab"] = {token: i for i, token in enumerate(sorted(vocabulary, key=vocabulary.get))}
    file.write_text(json.dumps(state))
    file = folder / "tokenizer_config.json"
    state = json.loads(file.read_text())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if key in state:
            state[key] = [t for t in state[key] if t not in LATENT_TOKENS]
    state.pop("added_tokens_decoder", None)
    file.write_text(json.dumps(state))


def test_tokens_the_tokenizer_lacks_get_the_mean_of_the_rows_in_use(thinker_folder, backbone, tmp_path):
    shutil.copytree(thinker_folder, tmp_path, dirs_exist_ok=True)
    _without_latent_tokens(tmp_path)
    before = len(AutoTokenizer.from_pretrained(tmp_path))
    loaded = load_backbone(str(tmp_path))
    new = [loaded.vocabulary.latent, loaded.vocabulary.trigger, loaded.vocabulary.stop]
    assert new == [before, before + 1, before + 2]
    thinker = loaded.backbone.thinker
    for table, old in (
        (thinker.get_input_embeddings().weight, backbone.thinker.get_input_embeddings().weight),
        (thinker.lm_head.weight, backbone.thinker.lm_head.weight),
    ):
        assert table.shape == old.shape  # the real table has unused rows, and so does the toy's
        torch.testing.assert_close(table[new], old[:before].mean(0).expand(3, -1))
        assert torch.equal(table[:before], old[:before])
        assert table.requires_grad


def test_known_tokens_keep_their_rows(thinker_folder, backbone):
    loaded = load_backbone(str(thinker_folder))
    assert torch.equal(loaded.backbone.thinker.lm_head.weight, backbone.thinker.lm_head.weight)


def test_the_tables_grow_where_new_ids_exceed_them(new_backbone, tmp_path):
    thinker = new_backbone().thinker
    old = {"in": thinker.get_input_embeddings().weight.clone(), "out": thinker.lm_head.weight.clone()}
    init_new_rows(thinker, [511, 512, 513])
    tables = {"in": thinker.get_input_embeddings().weight, "out": thinker.lm_head.weight}
    for name, table in tables.items():
        assert table.shape == (514, 64)
        assert torch.equal(table[:511], old[name][:511])
        torch.testing.assert_close(table[511:], old[name][:511].mean(0).expand(3, -1))
        assert table.requires_grad
    thinker.save_pretrained(tmp_path)
    again = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, thinker.lm_head.weight)


def test_new_rows_are_trained(new_backbone, vocabulary, latent, mixed_plans, random_anchors):
    """The trigger is predicted and fed, the stop is fed; the slots' placeholder is never used, so it never learns."""
    learner = Learner(new_backbone(), latent(sync_weight=0.0))
    init_new_rows(learner.backbone.thinker, [vocabulary.latent, vocabulary.trigger, vocabulary.stop])
    plans = mixed_plans()
    learner(collate(plans, anchors=random_anchors(plans)))["loss"].backward()
    fed = learner.backbone.thinker.get_input_embeddings().weight.grad
    predicted = learner.backbone.thinker.lm_head.weight.grad
    assert fed[vocabulary.trigger].abs().max() > 1e-4
    assert fed[vocabulary.stop].abs().max() > 1e-4
    assert not fed[vocabulary.latent].any()
    assert predicted[vocabulary.trigger].abs().max() > 1e-4


# --- Export ---

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
PREPARATION = Preparation(fps=1.5, use_audio_in_video=False, system_prompt="Look.", video_max_pixels=9 * 784)


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


def test_a_folder_that_is_no_export_is_refused(thinker_folder, exported, tmp_path):
    with pytest.raises(ValueError, match=r"has no method\.json"):
        load_folder(thinker_folder)
    shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)
    description = json.loads((tmp_path / "method.json").read_text())
    (tmp_path / "method.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="format 99; this version reads format 1"):
        load_folder(tmp_path)
