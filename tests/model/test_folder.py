"""Models on disk, as others make them: the full Omni class, a Thinker alone, a tokenizer without our tokens."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from tqdm import auto as tqdm_auto
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from omni_model.batch import collate
from omni_model.folder import init_new_rows, load_backbone, load_folder, start_markers_like
from omni_model.learner import Learner
from omni_model.vocabulary import read_vocabulary


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


@pytest.mark.parametrize("name", ["outputs/none", "nobody-has-this"])
def test_a_model_that_is_nowhere_is_named(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import only
    with pytest.raises(ValueError, match=rf"model_name_or_path={name} is no folder here, and the hub has no such"):
        load_backbone(name)


def test_a_foreign_tokenizer_is_refused():
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match=r"lacks \[.*<\|AUDIO\|>"):
        read_vocabulary(other)


# --- New tokens (invariant 10) ---


def test_tokens_the_tokenizer_lacks_get_the_mean_of_the_rows_in_use(
    thinker_folder, backbone, tmp_path, forget_latent_tokens
):
    shutil.copytree(thinker_folder, tmp_path, dirs_exist_ok=True)
    forget_latent_tokens(tmp_path)
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


def test_markers_begin_as_the_token_that_is_named(thinker_folder, backbone):
    """Trigger and stop are read as that token; nothing else changes, and the output side least of all."""
    loaded = load_backbone(str(thinker_folder))
    start_markers_like(loaded, ":")
    (colon,) = loaded.tokenizer(":", add_special_tokens=False)["input_ids"]
    markers = [loaded.vocabulary.trigger, loaded.vocabulary.stop]
    table, before = (b.thinker.get_input_embeddings().weight for b in (loaded.backbone, backbone))
    assert torch.equal(table[markers], before[[colon, colon]])
    assert not torch.equal(before[markers], before[[colon, colon]])
    others = [i for i in range(len(table)) if i not in markers]
    assert torch.equal(table[others], before[others]) and table.requires_grad
    assert torch.equal(loaded.backbone.thinker.lm_head.weight, backbone.thinker.lm_head.weight)


@pytest.mark.parametrize(("text", "count"), [(": red", 2), ("", 0)])
def test_markers_begin_as_one_token_only(thinker_folder, backbone, text, count):
    loaded = load_backbone(str(thinker_folder))
    with pytest.raises(ValueError, match=rf"markers can begin as one token only, and '{text}' is {count}; take"):
        start_markers_like(loaded, text)
    assert torch.equal(loaded.backbone.thinker.lm_head.weight, backbone.thinker.lm_head.weight)
    table, before = (b.thinker.get_input_embeddings().weight for b in (loaded.backbone, backbone))
    assert torch.equal(table, before)


def test_rows_are_written_where_they_are_whole(thinker_folder):
    """Weights divided among workers are written inside the given context, as those of new tokens are."""
    loaded = load_backbone(str(thinker_folder))
    table = loaded.backbone.thinker.get_input_embeddings().weight
    seen = []

    @contextmanager
    def whole(parameters):
        before = table.detach().clone()
        yield
        seen.append(([p is table for p in parameters], bool((table != before).any())))

    start_markers_like(loaded, ":", whole=whole)
    assert seen == [([True], True)]


def test_a_bar_is_drawn_only_where_loading_takes_a_while(monkeypatch):
    drawn = []
    monkeypatch.setattr(tqdm_auto, "tqdm", lambda items, **options: drawn.append(options["desc"]) or items)
    load_backbone("tiny")
    assert drawn == []
    monkeypatch.setattr("omni_model.folder._WORTH_A_BAR", 0)
    load_backbone("tiny")
    assert drawn == ["Loading weights"]
