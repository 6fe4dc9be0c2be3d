"""The task that training is given: rows to batches, which weights learn, and the export."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_segments import stored

from omni_model.batch import join_media
from omni_model.folder import Preparation, load_folder, save_folder
from omni_model.methods import make_method
from omni_model.task import build_task
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import Sample, SegmentFeatures

OPTIONS = {"num_visual": 3, "num_audio": 2}


@dataclass
class Row:
    sample: Sample
    frames: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None
    anchors: tuple[SegmentFeatures, ...]
    other_anchors: tuple[SegmentFeatures, ...]


@pytest.fixture(scope="module")
def base(backbone, tokenizer, tmp_path_factory) -> str:
    folder: Path = tmp_path_factory.mktemp("base")
    method = make_method("sft")
    save_folder(
        folder,
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(64),
        preparation=Preparation(),
    )
    return str(folder)


@pytest.fixture(scope="module")
def rows(sample_with) -> list[Row]:
    out = []
    for index, looks in enumerate((1, 2)):
        scene = make_scene(seed=3, index=index, num_shots=2 + index)
        frames = render_frames(scene, times_s=np.arange(4 + 2 * index) / 2, side_px=56)
        sample = sample_with(looks, sample_id=f"row-{index}")
        anchors, others = stored(_anchors(index, looks), 3), stored(np.full((index, 5, 64), 7.0, np.float32), 3)
        out.append(Row(sample, frames, 2.0, render_waveform(scene), anchors, others))
    return out


def _anchors(index: int, looks: int) -> np.ndarray:
    return np.random.default_rng(index).normal(size=(looks, 5, 64)).astype(np.float32)


@pytest.mark.parametrize("method", ["latent_omni", "pause", "markers", "sft", "text_cot"])
def test_rows_become_a_batch_with_a_loss(base, rows, method):
    options = OPTIONS if method in ("latent_omni", "pause") else {}
    task = build_task({"model_name_or_path": base, "method": method, "options": options})
    batch = task.collate(rows)
    assert batch.input_ids_BL.shape[0] == 2
    assert batch.triggers_BP.shape == ((2, 0) if method in ("sft", "text_cot") else (2, 2))
    assert (batch.anchors_BPKD is None) == (method != "latent_omni")
    if method == "latent_omni":
        np.testing.assert_array_equal(batch.anchors_BPKD[1].numpy(), _anchors(1, 2))
        np.testing.assert_array_equal(batch.others_MKD.numpy(), np.full((1, 5, 64), 7.0))
    if options:
        assert batch.looks_s_BP2.tolist() == [[[0, 1], [0, 0]], [[0, 1], [1, 2]]]
    out = task.module.train()(batch)
    out["loss"].backward()
    assert set(task.loss_weights) == {n for n in out if "/" not in n} - {"loss", "tokens", "positions"}


def test_other_segments_count_where_the_method_wants_them(base, rows):
    losses = {}
    for negatives in ("batch", "clip"):
        options = OPTIONS | {"latent_loss": "infonce", "latent_negatives": negatives}
        task = build_task({"model_name_or_path": base, "method": "latent_omni", "options": options})
        losses[negatives] = [
            float(task.module.train()(task.collate(some))["latent"].detach())
            for some in (rows, [replace(row, other_anchors=row.other_anchors[:0]) for row in rows])
        ]
    assert losses["clip"][0] > losses["clip"][1] + 0.1
    assert losses["clip"][1] == losses["batch"][0] == losses["batch"][1]


@pytest.mark.parametrize("text", [None, ":"])
def test_markers_begin_as_the_config_says(base, rows, backbone, tokenizer, vocabulary, tmp_path, text):
    """In training and, as far as it has not changed them, in the model that is exported."""
    options = {"model_name_or_path": base, "method": "latent_omni", "options": OPTIONS, "markers_like": text}
    task = build_task(options)
    table = backbone.thinker.get_input_embeddings().weight
    (colon,) = tokenizer(":", add_special_tokens=False)["input_ids"]
    markers = [vocabulary.trigger, vocabulary.stop]
    wanted = table[markers] if text is None else table[[colon, colon]]
    task.export(tmp_path)
    exported = load_folder(tmp_path).loaded.backbone.thinker.get_input_embeddings().weight
    assert torch.equal(exported[markers], wanted)
    out = task.module.train()(task.collate(rows))
    out["loss"].backward()
    fed = next(p for n, p in task.module.named_parameters() if n.endswith("embed_tokens.weight")).grad
    assert fed is not None and fed[vocabulary.trigger].abs().max() > 1e-5


def test_the_prompt_and_the_sound_follow_the_config(base, rows, tokenizer):
    task = build_task(
        {
            "model_name_or_path": base,
            "method": "sft",
            "system_prompt": "You listen well.",
            "use_audio_in_video": False,
        }
    )
    plan = task.plan(rows[0])
    assert plan.media.mel is None
    text = tokenizer.decode(plan.input_ids)
    assert text.startswith("<|im_start|>system\nYou listen well.<|im_end|>\n<|im_start|>user\n<|vision_bos|><|VIDEO|>")


def test_a_sample_that_is_too_long_is_named_and_not_cut(base, rows):
    task = build_task({"model_name_or_path": base, "method": "sft", "max_length": 90})
    length = len(build_task({"model_name_or_path": base, "method": "sft"}).plan(rows[1]))
    with pytest.raises(ValueError, match=f"sample row-1 has {length} positions, more than max_length=90"):
        task.collate([rows[1]])


def test_anchors_that_do_not_match_are_refused(base, rows):
    """A silent skip would train on nothing (invariant 13)."""
    task = build_task({"model_name_or_path": base, "options": OPTIONS})
    short = Row(**{**vars(rows[1]), "anchors": rows[1].anchors[:1]})
    with pytest.raises(ValueError, match="row 1 of the batch has 2 latent phases but anchors for 1"):
        task.collate([rows[0], short])
    narrow = [replace(row, anchors=stored(_anchors(0, 3)[:, :, :32], 3)) for row in rows]
    with pytest.raises(ValueError, match="the anchors are 32 wide and the model 64"):
        task.collate(narrow)


def test_phases_can_be_padded_so_that_ranks_stay_in_step(base, rows):
    task = build_task({"model_name_or_path": base, "options": OPTIONS}, lockstep=True)
    assert task.collate(rows[:1]).triggers_BP.shape == (1, 3)


def test_the_audio_tower_runs_for_mute_rows_and_changes_no_value(base, rows):
    """Ranks exchange the gradients of the same weights: those of the audio tower are there, and zero."""
    task = build_task({"model_name_or_path": base, "options": OPTIONS, "freeze": []})
    mute = Row(**{**vars(rows[0]), "waveform": None})
    batch = task.collate([mute])
    assert batch.has_stand_in_sound and batch.media.mel.shape[1] > 0
    assert not task.collate([mute, rows[1]]).has_stand_in_sound
    plain = replace(batch, media=join_media([task.plan(mute).media]), has_stand_in_sound=False)
    torch.manual_seed(0)
    loss = task.module.train()(batch)["loss"]
    loss.backward()
    learned = {name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None}
    assert not any(grad.any() for name, grad in learned.items() if "audio_tower" in name)
    task.module.zero_grad()
    task.module(task.collate([rows[0]]))["loss"].backward()
    assert learned.keys() == {name for name, p in task.module.named_parameters() if p.grad is not None}
    task.module.zero_grad()
    torch.manual_seed(0)
    without = task.module(plain)["loss"]
    without.backward()
    assert torch.equal(loss, without)
    for name, p in task.module.named_parameters():
        assert p.grad is None or torch.equal(p.grad, learned[name]), name


@pytest.mark.parametrize("method", ["latent_omni", "sft"])
def test_everything_frozen_is_refused(base, method):
    options = {**OPTIONS, "feedback": "linear"} if method == "latent_omni" else {}
    config = {"model_name_or_path": base, "method": method, "options": options}
    freeze = ["vision", "audio", "llm", "heads"]
    with pytest.raises(ValueError, match=r"everything is frozen by freeze=\['vision', .*nothing is left to learn"):
        build_task({**config, "freeze": freeze})
    if method == "latent_omni":
        task = build_task({**config, "freeze": freeze[:3]})
        assert {n.split(".")[0] for n, p in task.module.named_parameters() if p.requires_grad} == {"heads"}
        task = build_task({**config, "freeze": ["heads"]})
        assert not any(p.requires_grad for p in task.module.heads.parameters())


@pytest.mark.parametrize("freeze", [[], ["vision"], ["vision", "audio"], ["llm"], ["vision", "audio", "llm"]])
def test_parameter_groups_hold_every_learning_weight_once(base, freeze):
    task = build_task({"model_name_or_path": base, "options": {**OPTIONS, "feedback": "linear"}, "freeze": freeze})
    groups = task.parameter_groups(0.1)
    grouped = [p for group in groups for p in group["params"]]
    learning = [p for p in task.module.parameters() if p.requires_grad]
    assert sorted(map(id, grouped)) == sorted(map(id, learning))
    frozen = {id(p) for name in freeze for p in task.module.backbone.modules_by_group()[name].parameters()}
    assert len(frozen) + len(learning) == len(list(task.module.parameters()))
    assert not frozen & set(map(id, grouped))
    for group in groups:
        # Norms, biases, temperatures and embeddings are not pulled towards zero.
        assert all(p.ndim >= 2 for p in group["params"]) or group["weight_decay"] == 0.0
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}
    table = task.module.backbone.thinker.get_input_embeddings().weight
    assert id(table) not in decayed
    assert id(task.module.heads.feedback.linear.weight) in decayed


def test_the_export_is_the_trained_model(base, rows, tmp_path):
    config = {"model_name_or_path": base, "options": {**OPTIONS, "feedback": "linear"}, "fps": 1.0}
    task = build_task(config)
    optimizer = torch.optim.SGD(task.parameter_groups(0.0), lr=1e-3)
    task.module.train()(task.collate(rows))["loss"].backward()
    optimizer.step()
    task.export(tmp_path)
    again = load_folder(tmp_path)
    for ours, theirs in (
        (task.module.backbone.state_dict(), again.loaded.backbone.state_dict()),
        (task.module.heads.state_dict(), again.heads.state_dict()),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.preparation == Preparation(fps=1.0)
    before = load_folder(base).loaded.backbone.thinker
    assert torch.equal(
        before.model.visual.merger.mlp[0].weight, again.loaded.backbone.thinker.model.visual.merger.mlp[0].weight
    )
    assert not torch.equal(before.lm_head.weight, again.loaded.backbone.thinker.lm_head.weight)


@pytest.mark.parametrize("engine", ["teacher_parallel", "recurrent"])
def test_recomputing_activations_changes_no_gradient(base, rows, engine):
    options = {**OPTIONS, "engine": engine}
    grads, forwards = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        task = build_task({"model_name_or_path": base, "options": options, "gradient_checkpointing": checkpointing})
        model = task.module.backbone.thinker.model
        assert all(layer.gradient_checkpointing == checkpointing for layer in model.visual.blocks)
        loss = task.module.train()(task.collate(rows))["loss"]
        again = []
        model.language_model.layers[0].register_forward_pre_hook(lambda *_, again=again: again.append(1))
        loss.backward()
        forwards.append(len(again))
        grads.append({n: p.grad for n, p in task.module.named_parameters() if p.grad is not None})
    assert forwards[0] == 0 < forwards[1]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-4)


def test_a_share_of_anchors_follows_the_step(base, rows):
    options = {**OPTIONS, "teacher_share": 1.0, "teacher_share_end": 0.0}
    task = build_task({"model_name_or_path": base, "options": options})
    batch = task.collate(rows)
    losses = []
    for step in (0, 4, 0):
        task.begin_step(step, 5)
        losses.append(float(task.module.train()(batch)["loss"].detach()))
    assert losses[0] == losses[2]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_parts_learn_at_rates_of_their_own(base):
    options = {"model_name_or_path": base, "options": OPTIONS, "freeze": [], "lr_scale": {"heads": 10.0, "audio": 0.1}}
    task = build_task(options)
    names = {id(p): name for name, p in task.module.named_parameters()}
    seen = {names[id(p)]: group for group in task.parameter_groups(0.01) for p in group["params"]}
    assert seen.keys() == set(names.values())
    for name, group in seen.items():
        expected = 10.0 if name.startswith("heads.") else 0.1 if "audio_tower" in name else 1.0
        assert group["lr_scale"] == expected
        assert group["weight_decay"] in (0.0, 0.01)
    with pytest.raises(ValueError, match=r"lr_scale names \['ears'\]; the parts are vision, audio, llm, heads"):
        build_task({**options, "lr_scale": {"ears": 2.0}})


def test_mistakes_in_the_config_are_named(base):
    for config, complaint in (
        ({"metod": "sft"}, r"task has no field \['metod'\]; it knows: model_name_or_path, method,"),
        ({"method": "sft", "freeze": ["eyes"]}, r"freeze names \['eyes'\]; the parts are vision, audio, llm, heads"),
        ({"method": "sft", "freeze": "vision"}, "task: freeze must be a list, got 'vision'"),
        ({"method": "sft", "use_audio_in_video": "no"}, "task: use_audio_in_video must be a bool, got 'no'"),
        ({"method": "stf"}, "unknown method 'stf'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            build_task({"model_name_or_path": base, **config})
