"""Adapters: what learns and what stays, and that the merged export is the adapted model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.batch import collate
from omni_model.folder import Preparation, check_stock_load, load_backbone, load_folder, save_folder
from omni_model.lora import LoraOptions, add_adapters, merged_state
from omni_model.methods import make_method
from omni_model.task import ReasoningTask, build_task
from omni_model.vocabulary import LATENT_TOKENS

OPTIONS = {"num_visual": 3, "num_audio": 2, "feedback": "linear"}


@pytest.fixture(scope="module")
def base(backbone, tokenizer, tmp_path_factory) -> str:
    folder: Path = tmp_path_factory.mktemp("base")
    method = make_method("sft")
    heads = method.build_heads(64)
    save_folder(folder, backbone=backbone, tokenizer=tokenizer, method=method, heads=heads, preparation=Preparation())
    return str(folder)


@pytest.fixture
def adapt(base):
    def build(**changes) -> ReasoningTask:
        torch.manual_seed(0)
        return build_task({"model_name_or_path": base, "options": OPTIONS, "lora_rank": 4, **changes})

    return build


@pytest.fixture
def train(mixed_plans, random_anchors):
    """`train(task, steps)`: as the loop would, on three rows."""
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))

    def run(task: ReasoningTask, steps: int = 2) -> None:
        optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=1e-2)
        task.module.train()
        for _ in range(steps):
            task.module(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        task.module.eval()

    return run


def _logits(thinker: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(60).remainder(40)[None]  # the latent tokens are among them
    with torch.no_grad():
        return thinker(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_adapters_add_nothing_at_first(adapt, backbone):
    thinker = adapt().module.backbone.thinker.eval()
    assert [any(isinstance(m, LoraLayer) for m in part.modules()) for part in (thinker, backbone)] == [True, False]
    torch.testing.assert_close(_logits(thinker), _logits(backbone.thinker), atol=1e-6, rtol=1e-6)


def test_adapters_new_rows_and_heads_learn_and_all_else_stays(adapt, backbone, train, vocabulary):
    task = adapt()
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    train(task)
    moved = {name for name, value in task.module.state_dict().items() if not torch.equal(value, before[name])}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapters = {
        f"backbone.thinker.model.language_model.layers.{i}.{'self_attn' if n[1:] == '_proj' else 'mlp'}.{n}.lora_{m}"
        for i in range(2)
        for n in layers
        for m in "AB"
    }
    assert {name.partition(".default")[0] for name in moved if ".lora_" in name} == adapters
    rest = {name for name in moved if ".lora_" not in name}
    rows = {"backbone.thinker.model.language_model.embed_tokens.rows", "backbone.thinker.lm_head.rows"}
    assert rows <= rest and all(name in rows or name.startswith("heads.") for name in rest)
    # In the export: new rows differ, old ones are what they were, on both sides.
    ids = [vocabulary.latent, vocabulary.trigger, vocabulary.stop]
    merged, old = merged_state(task.module.backbone.thinker), backbone.thinker.state_dict()
    for name, learned in (("model.language_model.embed_tokens.weight", ids[1:]), ("lm_head.weight", ids[1:])):
        differ = (merged[name] != old[name]).any(1)
        assert set(learned) <= set(differ.nonzero()[:, 0].tolist()) <= set(ids)


def test_methods_without_latents_leave_the_rows_alone(adapt, vocabulary):
    task = adapt(method="text_cot", options={})
    assert not any(name.endswith(".rows") for name, _ in task.module.named_parameters())
    assert all(".lora_" in n for n, p in task.module.named_parameters() if p.requires_grad)


def test_bare_markers_learn_their_rows_too(adapt, lay_out, film, sample_with, vocabulary):
    """They have no slots, but a trigger that nobody has trained."""
    task = adapt(method="markers", options={})
    before = merged_state(task.module.backbone.thinker)["lm_head.weight"].clone()
    batch = collate([lay_out(task.module.method, film(), sample_with(1))])
    optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=1e-2)
    task.module.train()(batch)["loss"].backward()
    optimizer.step()
    after = merged_state(task.module.backbone.thinker)["lm_head.weight"]
    assert (after[vocabulary.trigger] - before[vocabulary.trigger]).abs().max() > 1e-3


def test_the_export_is_merged_and_the_model_trains_on_unmerged(adapt, train, tmp_path, base):
    task = adapt(lora_alpha=6.0)
    thinker = task.module.backbone.thinker
    train(task)
    wanted = _logits(thinker)
    for name in ("first", "second"):  # a second export must not add the adapters a second time
        task.export(tmp_path / name)
        check_stock_load(tmp_path / name)
        stock = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path / name).eval()
        torch.testing.assert_close(_logits(stock), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(_logits(thinker), wanted)
    assert (wanted - _logits(load_backbone(base).backbone.thinker.eval())).abs().max() > 0.1

    other = adapt(lora_alpha=6.0)
    train(other)
    train(task, 1)
    train(other, 1)  # never exported
    assert torch.equal(_logits(thinker), _logits(other.module.backbone.thinker))
    task.export(tmp_path / "third")
    again = load_folder(tmp_path / "third")
    torch.testing.assert_close(_logits(again.loaded.backbone.thinker.eval()), _logits(thinker), atol=1e-5, rtol=1e-5)


def test_peft_reads_the_adapter_beside_the_export(adapt, train, tmp_path, base):
    task = adapt(lora_target=["q_proj", "down_proj"])
    train(task)
    task.export(tmp_path)
    plain = load_backbone(base).backbone.thinker.eval()
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(_logits(adapted), _logits(task.module.backbone.thinker), atol=1e-5, rtol=1e-5)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert {n.split(".")[-3] for n in names if ".lora_" in n} == {"q_proj", "down_proj"}


def test_one_table_for_both_sides_keeps_one_set_of_rows(new_backbone):
    thinker = new_backbone().thinker
    thinker.lm_head.weight = thinker.get_input_embeddings().weight
    add_adapters(thinker, LoraOptions(rank=2, alpha=2.0, dropout=0.0, target=("all",)), new_ids=[3, 5])
    assert thinker.lm_head.rows is thinker.get_input_embeddings().rows
    with torch.no_grad():
        thinker.lm_head.rows.add_(1.0)
    merged = merged_state(thinker)
    assert torch.equal(merged["lm_head.weight"], merged["model.language_model.embed_tokens.weight"])


def test_tokens_that_were_added_learn_too(adapt, train, base, forget_latent_tokens, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    forget_latent_tokens(tmp_path / "base")
    task = adapt(model_name_or_path=str(tmp_path / "base"))
    ids = [task._loaded.tokenizer.convert_tokens_to_ids(token) for token in LATENT_TOKENS]
    assert task.module.backbone.thinker.lm_head.ids.tolist() == ids


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lora_target": ["qproj"]}, r"lora_target \['qproj'\] is not understood; give \[all\], or some of q_proj, "),
        ({"lora_target": []}, r"lora_target \[\] is not understood"),
        ({"lora_target": "all"}, "lora_target must be a list"),
        ({"freeze": ["llm"]}, "freeze names llm, where the adapters of lora_rank learn"),
        ({"lora_dropout": 1.0}, "task: lora_dropout must be below 1, got 1.0"),
        ({"lora_rank": -1}, "task: lora_rank must be at least 0, got -1"),
    ],
)
def test_mistakes_are_named(adapt, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        adapt(**changes)
