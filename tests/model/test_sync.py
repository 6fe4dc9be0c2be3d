"""The sync loss compares what is seen with what is heard in a look's own seconds, and can change the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_model.batch import collate
from omni_model.learner import Learner
from omni_model.losses import sync_loss
from omni_model.pooling import norm_weighted_pool
from omni_model.sequence import prepare_media
from omni_model.unroll import unroll
from omni_platform.media.film import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import LookStep, TextStep


def _sync_gradient(new_backbone, method, batch, *, vision: bool) -> tuple[Learner, torch.Tensor]:
    """The gradient of the sync loss alone."""
    learner = Learner(new_backbone(), method).train()
    learner.backbone.modules_by_group()["vision"].requires_grad_(vision)
    outcome = unroll(learner.backbone, learner.heads.feedback, batch, method.unroll, training=True)
    loss = method.losses(learner.heads, outcome, batch)["sync"].mean
    loss.backward()
    return learner, loss.detach()


def _largest(module: torch.nn.Module) -> float:
    return max((float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None), default=0.0)


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("engine", ["teacher_parallel", "recurrent"])
def test_the_sync_loss_alone_changes_the_towers(new_backbone, latent, mixed_plans, random_anchors, vision, engine):
    method = latent(engine=engine)
    plans = mixed_plans(method)
    batch = collate(plans, anchors=random_anchors(plans))
    learner, loss = _sync_gradient(new_backbone, method, batch, vision=vision)
    parts = learner.backbone.modules_by_group()
    assert loss > 0
    assert _largest(parts["audio"]) > 1e-4
    assert (_largest(parts["vision"]) > 1e-4) == vision
    assert all(p.grad is not None for p in learner.heads.sync.parameters())
    assert learner.heads.sync.log_scale.grad.abs() > 1e-6


def test_detached_inputs_leave_everything_but_the_heads_alone(new_backbone, latent, mixed_plans, random_anchors):
    method = latent(detach_sync_inputs=True)
    plans = mixed_plans(method)
    batch = collate(plans, anchors=random_anchors(plans))
    learner, loss = _sync_gradient(new_backbone, method, batch, vision=True)
    assert _largest(learner.backbone) == 0.0
    assert _largest(learner.heads.sync) > 1e-4
    assert loss > 0


@torch.no_grad()
def test_the_sync_loss_is_the_mean_over_looks_of_their_own_seconds(backbone, latent, lay_out, film, sample_with):
    """Looks of different lengths; a second has 4 visual and 25 audio tokens."""
    method = latent()
    torch.manual_seed(0)
    heads = method.build_heads(backbone.width)
    looks = [((0, 1),), ((0, 1), (1, 3))]
    plans = []
    for index, row in enumerate(looks):
        steps = [LookStep(start_s=start, end_s=end) for start, end in row]
        sample = replace(sample_with(1), trajectory=(*steps, TextStep(text="Answer: green")))
        plans.append(lay_out(method, film(index, 2 + index), sample))
    batch = collate(plans, anchors=[torch.zeros(len(p.spans), 5, 64) for p in plans])
    outcome = unroll(backbone, heads.feedback, batch, method.unroll, training=True)
    terms = []
    for plan, row in zip(plans, looks, strict=True):
        encoded = backbone.encode(collate([plan]).media)
        for start, end in row:
            moments = 4 * (end - start)
            visual = norm_weighted_pool(heads.sync.visual(encoded.visual_ND[4 * start : 4 * end]), moments)
            audio = norm_weighted_pool(heads.sync.audio(encoded.audio_ND[25 * start : 25 * end]), moments)
            terms.append(sync_loss(visual[None], audio[None], heads.sync.scale))
    ours = method.losses(heads, outcome, batch)["sync"].mean
    torch.testing.assert_close(ours, torch.stack(terms).mean(), atol=1e-4, rtol=1e-4)


def test_a_clip_without_sound_has_no_sync_loss_but_its_heads_take_part(
    new_backbone, latent, lay_out, film, sample_with
):
    method = latent()
    plan = lay_out(method, film(0, 2, False), sample_with(1))
    batch = collate([plan], anchors=[torch.zeros(1, 5, 64)])
    learner, loss = _sync_gradient(new_backbone, method, batch, vision=True)
    assert loss == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in learner.heads.sync.parameters())


def test_a_weight_of_zero_leaves_the_heads_out(new_backbone, latent, mixed_plans, random_anchors):
    method = latent(sync_weight=0.0)
    plans = mixed_plans(method)
    learner = Learner(new_backbone(), method)
    assert learner.heads.sync is None
    out = learner(collate(plans, anchors=random_anchors(plans)))
    assert out["sync"] == 0.0
    torch.testing.assert_close(out["loss"].detach(), out["text"] + method.weights["latent"] * out["latent"])


def test_the_inverse_temperature_starts_at_the_published_value_and_is_capped(latent):
    sync = latent().build_heads(8).sync
    torch.testing.assert_close(sync.scale.detach(), torch.tensor(1 / 0.07))
    with torch.no_grad():
        sync.log_scale.fill_(9.0)
    assert sync.scale == 100.0


@pytest.mark.parametrize("rows", [1, 3])
def test_every_projection_runs_once_a_step(new_backbone, latent, mixed_plans, random_anchors, rows):
    """Workers that share weights gather them where they are used, so they must use them equally often."""
    method, plans = latent(), mixed_plans()[:rows]
    learner = Learner(new_backbone(), method)
    calls = []
    for module in learner.heads.sync.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
    learner(collate(plans, anchors=random_anchors(plans)))
    assert len(calls) == len(set(calls)) == len(list(learner.heads.sync.modules()))


@torch.no_grad()
def test_a_segment_has_as_many_moments_as_its_scarcer_sense_but_at_most_forty(
    backbone, latent, lay_out, sample_with, monkeypatch
):
    """At 112 px a second has 16 visual tokens beside 25 audio tokens."""
    scene = make_scene(seed=3, index=0, num_shots=4)
    frames = render_frames(scene, times_s=np.arange(8) / 2, side_px=112)
    media = prepare_media(frames, sample_fps=2.0, waveform=render_waveform(scene))
    looks = [LookStep(start_s=s, end_s=e) for s, e in ((0, 1), (0, 2), (1, 4))]
    steps = (TextStep(text="The low tone:"), *looks, TextStep(text=" Answer: green"))
    method = latent()
    heads = method.build_heads(backbone.width)
    batch = collate(
        [lay_out(method, media, replace(sample_with(1), trajectory=steps))], anchors=[torch.zeros(3, 5, 64)]
    )
    outcome = unroll(backbone, heads.feedback, batch, method.unroll, training=True)
    made = []
    compared = lambda v, a, scale: made.append((v.shape[1], a.shape[1])) or sync_loss(v, a, scale)  # noqa: E731
    monkeypatch.setattr("omni_model.methods.latent_omni.sync_loss", compared)
    method.losses(heads, outcome, batch)
    assert made == [(16, 16), (32, 32), (40, 40)]
